"""The batch as it travels from a loader's worker to the training device: codes and words, two bytes each.

Nothing is a float before the device: a sample of two 168^3 cuts is 38 MB so, and 683 MB as float32 images and
13 float32 masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from training.views import Triple


class Cuts(Protocol):
    """What augmentation has to know of B cuts; see `Batch`."""

    @property
    def scale(self) -> Tensor:
        """float32 (B,): z-score units a code step."""

    @property
    def offset(self) -> Tensor:
        """float32 (B,): z-score of code 0."""

    @property
    def padding_codes(self) -> Tensor:
        """int16 (B,): the image outside the scan."""

    @property
    def crop_zyx(self) -> Triple:
        """Voxels of a view."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Two cuts of each of B scans, before augmentation."""

    reference_codes: Tensor
    """int16 (B, 1, Z, Y, X), cut: z-score = code * scale + offset. Outside the scan: `padding_codes`."""
    target_codes: Tensor
    """The same of the target."""
    reference_words: Tensor
    """int16 (B, Z, Y, X), cut: bit k is mask k, k < K - 1; the last, all ones, has none. Outside 0."""
    target_words: Tensor
    """The same of the target: the same K masks."""
    scale: Tensor
    """float32 (B,): z-score units a code step."""
    offset: Tensor
    """float32 (B,): z-score of code 0."""
    padding_codes: Tensor
    """int16 (B,): the image outside the scan: the lower clip bound (air in CT, background elsewhere)."""
    sample_indices: Tensor
    """int64 (B,), on the CPU: which samples of the run these are."""
    scan_ids: tuple[str, ...]
    """Whose they are."""
    seed: int
    """The run's."""
    num_masks: int
    """K, the all-ones mask counted."""
    crop_zyx: Triple
    """Voxels of a view: what augmentation takes from the middle of a cut."""

    def __len__(self) -> int:
        return len(self.scan_ids)

    @property
    def reference(self) -> Tensor:
        """Z-scores of the reference, float32 (B, 1, Z, Y, X), cut."""
        return self._z_scores(self.reference_codes)

    @property
    def target(self) -> Tensor:
        """Z-scores of the target, float32 (B, 1, Z, Y, X), cut."""
        return self._z_scores(self.target_codes)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU copies while others compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            reference_codes=function(self.reference_codes),
            target_codes=function(self.target_codes),
            reference_words=function(self.reference_words),
            target_words=function(self.target_words),
            scale=function(self.scale),
            offset=function(self.offset),
            padding_codes=function(self.padding_codes),
        )

    def _z_scores(self, codes: Tensor) -> Tensor:
        return codes * self.scale.view(-1, 1, 1, 1, 1) + self.offset.view(-1, 1, 1, 1, 1)
