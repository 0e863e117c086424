"""Batches as the loader sends them to the training device: codes and words, two bytes per voxel each.

Values become floats on the device only: a sample of two cuts of 168^3 voxels takes 38 MB as codes and words,
but 683 MB as float32 images and 13 float32 masks.
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
    """Common fields of batches of B samples: intensity scale, scan ids, sample numbers, crop size."""

    scale: Tensor
    """float32 (B,): z-score units per code step."""
    offset: Tensor
    """float32 (B,): z-score of code 0."""
    padding_codes: Tensor
    """int16 (B,): code outside the scan: the lower clip bound (air in CT, background otherwise)."""
    sample_indices: Tensor
    """int64 (B,): numbers of the samples in the run; always on the CPU."""
    scan_ids: tuple[str, ...]
    """The scan of each sample."""
    seed: int
    """Seed of the run."""
    crop_zyx: Triple
    """Voxels of a view, which augmentation takes from the middle of a cut."""

    def __len__(self) -> int:
        return len(self.scan_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, which a GPU can copy from while it computes."""
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
    """int16 (B, 1, Z, Y, X): cuts; z-score = code * scale + offset. `padding_codes` outside the scan."""
    target_codes: Tensor
    """The same for the target."""
    reference_words: Tensor
    """int16 (B, Z, Y, X): cuts; bit k is mask k < K - 1, the last mask (all ones) has no bit. 0 outside."""
    target_words: Tensor
    """The same for the target, with the same K masks."""
    num_masks: int
    """K, including the mask of all ones."""

    @property
    def reference(self) -> Tensor:
        """Cuts of the reference, float32 (B, 1, Z, Y, X), z-scores."""
        return self._z_scores(self.reference_codes)

    @property
    def target(self) -> Tensor:
        """Cuts of the target, float32 (B, 1, Z, Y, X), z-scores."""
        return self._z_scores(self.target_codes)

    def _z_scores(self, codes: Tensor) -> Tensor:
        return codes * self.scale.view(-1, 1, 1, 1, 1) + self.offset.view(-1, 1, 1, 1, 1)
