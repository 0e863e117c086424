"""The batch as it travels from a loader's worker to the training device: codes and words, two bytes each.

Nothing is a float before the device: a sample of two 168^3 cuts is 38 MB so, and 683 MB as float32 images and
13 float32 masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from training.data.boxes import Triple


@dataclass(frozen=True, kw_only=True, eq=False)
class Cuts:
    """What batches of B cuts share: how codes are read, whose they are, the way to a device."""

    scale: Tensor
    """float32 (B,): z-score units a code step."""
    offset: Tensor
    """float32 (B,): z-score of code 0."""
    padding_codes: Tensor
    """int16 (B,): the image outside the scan: the lower clip bound (air in CT, background elsewhere)."""
    sample_indices: Tensor
    """int64 (B,), on the CPU wherever the rest is: which samples of the run these are."""
    scan_ids: tuple[str, ...]
    """Whose they are."""
    seed: int
    """The run's."""
    crop_zyx: Triple
    """Voxels of a view: what augmentation takes from the middle of a cut."""

    def __len__(self) -> int:
        return len(self.scan_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which a GPU copies while others compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        tensors = {part.name: getattr(self, part.name) for part in fields(self)}
        moved: dict[str, Any] = {
            name: function(tensor)
            for name, tensor in tensors.items()
            if isinstance(tensor, Tensor) and name != "sample_indices"
        }
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(Cuts):
    """Two cuts of each of B scans, before augmentation."""

    reference_codes: Tensor
    """int16 (B, 1, Z, Y, X), cut: z-score = code * scale + offset. Outside the scan: `padding_codes`."""
    target_codes: Tensor
    """The same of the target."""
    reference_words: Tensor
    """int16 (B, Z, Y, X), cut: bit k is mask k, k < K - 1; the last, all ones, has none. Outside 0."""
    target_words: Tensor
    """The same of the target: the same K masks."""
    num_masks: int
    """K, the all-ones mask counted."""

    @property
    def reference(self) -> Tensor:
        """Z-scores of the reference, float32 (B, 1, Z, Y, X), cut."""
        return self._z_scores(self.reference_codes)

    @property
    def target(self) -> Tensor:
        """Z-scores of the target, float32 (B, 1, Z, Y, X), cut."""
        return self._z_scores(self.target_codes)

    def _z_scores(self, codes: Tensor) -> Tensor:
        return codes * self.scale.view(-1, 1, 1, 1, 1) + self.offset.view(-1, 1, 1, 1, 1)
