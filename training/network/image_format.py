"""Preparation of images that a network expects, as plain values stored with exported weights.

Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.network.iris import CROP_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """How an image is prepared for a network: spacing, intensities, axes."""

    spacing_mm: float
    """Edge of a voxel, the same along all axes."""
    ct_window_hu: tuple[float, float]
    """CT is clipped to this window."""
    percentiles: tuple[float, float]
    """MR and PET are clipped to these percentiles of the scan."""
    body_threshold_hu: float
    """A CT is cropped to the bounding box of its voxels above this value."""
    margin_mm: float
    """Margin around this box on every side."""
    crop_voxels: tuple[int, int, int]
    """Voxels (z, y, x) of the training crops; good windows are not smaller."""
    whole_scans: bool = False
    """Whether the network was trained on whole scans, each stretched over one crop."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values that a program without this package can follow."""
        clipped = {"clip_percentiles": list(self.percentiles)}
        return {
            "spacing_mm": [self.spacing_mm] * 3,
            "axes": ["z: to the head", "y: to the front", "x: to the patient's right"],
            "axes_multiple_of": CROP_MULTIPLE,
            "crop_voxels": list(self.crop_voxels),
            "whole_scans_stretched_over_a_crop": self.whole_scans,
            "normalisation": {
                "ct": {"clip_hu": list(self.ct_window_hu)},
                "mr": clipped,
                "pet": clipped,
                "then": "(value - mean) / standard deviation, both of the whole clipped scan",
            },
        }
