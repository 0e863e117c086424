"""Sums of the probabilities of overlapping windows, on the network's device until the image is done.

    windows, a batch at a time --x Gaussian weights--> sums of each structure --/ summed weights--> mean

Reads:  probabilities float32 (B, k, z, y, x) on the device, and the boxes of their windows.
Writes: probabilities float32 (k, z, y, x) of the image, on the host.
Bounds: sums are float32, in the order of the windows: on a CPU the bits of NumPy's sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Size, Slices, window_weights

_CARD_SHARE = 8
"""The sums of one pass may take one part in this many of a CUDA card's memory."""


class WindowSums:
    """Weighted sums of the probabilities of some structures, of all windows of an image."""

    def __init__(self, counts: Sequence[int], shape: Size, window: Size, device: torch.device) -> None:
        """Start with zeros.

        Args:
            counts: Structures of each job.
            shape: Voxels of the image.
            window: Voxels of a window.
            device: Where the probabilities are.
        """
        self.sums: list[Tensor | None] = [torch.zeros((count, *shape), device=device) for count in counts]
        self.norm = torch.zeros(shape, device=device)
        self.weights = torch.from_numpy(window_weights(window)).to(device)

    def add(self, boxes: Sequence[Slices], found: Sequence[Tensor]) -> None:
        """Add the probabilities (B, k, z, y, x) of each job in B windows to the sums of the image."""
        for total, probabilities in zip(self.sums, found, strict=True):
            assert total is not None
            for box, probability in zip(boxes, probabilities, strict=True):
                _add(total, probability * self.weights, box)
        for box in boxes:
            _add(self.norm[None], self.weights[None], box)

    def take(self, job: int) -> NDArray[np.float32]:
        """Return the probabilities (k, z, y, x) of a job on the host, and free its memory."""
        total = self.sums[job]
        assert total is not None
        self.sums[job] = None
        total /= self.norm
        mean: NDArray[np.float32] = total.cpu().numpy()
        return mean


def accumulator_bytes(wanted: int, device: torch.device) -> int:
    """Return the memory for the sums of one pass over the image: as wanted, and more on a large CUDA card.

    Every pass encodes the windows again.
    """
    if device.type != "cuda":
        return wanted
    return max(wanted, int(torch.cuda.get_device_properties(device).total_memory) // _CARD_SHARE)


def _add(total: Tensor, values: Tensor, box: Slices) -> None:
    """Add the values of a window to the part of `total` (k, z, y, x) that it covers."""
    inside = [
        slice(max(part.start, 0), min(part.stop, size))
        for part, size in zip(box, total.shape[1:], strict=True)
    ]
    own = [
        slice(part.start - outer.start, part.stop - outer.start)
        for part, outer in zip(inside, box, strict=True)
    ]
    total[:, inside[0], inside[1], inside[2]] += values[:, own[0], own[1], own[2]]
