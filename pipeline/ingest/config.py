"""Every choice of the ingest half: what is read, how it is cropped, resampled and scaled.

Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.formats import SeriesRules

INGEST_VERSION = 1
"""Of the code that reads and standardises scans: raised when the same input and settings give other voxels,
so that stored scans are known to be stale."""

LATER_SETTINGS = ("set_spacing_mm",)
"""Settings that stores of version 1 were made without: unset, they leave those stores fresh."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Settings of `discover`, `read_source` and `standardize`; checked when made."""

    spacing_mm: float = 1.5
    """Edge of a stored voxel in mm, the same along all axes."""

    margin_mm: float = 10.0
    """Kept around the body or foreground on every side, in mm, as far as the scan reaches."""

    crop: bool = True
    """Crop to the body or foreground; False keeps the whole volume."""

    body_threshold_hu: float = -500.0
    """CT voxels above it are body (soft tissue, bone, lung vessels); air and lung parenchyma are not."""

    ct_window_hu: tuple[float, float] = (-991.0, 500.0)
    """CT is clipped to it, in HU (the published recipe)."""

    percentiles: tuple[float, float] = (2.0, 98.0)
    """MR and PET are clipped to these percentiles of the stored volume (the published recipe)."""

    num_codes: int = 4000
    """MR and PET are stored in this many steps over their window; CT in steps of 1 HU."""

    min_size_voxels: int = 3
    """Least number of voxels along every axis of an input; below it is a 2D image, not a volume."""

    min_extent_mm: float = 8.0
    """Least size of the stored volume along every axis, in mm."""

    min_spacing_mm: float = 0.01
    """A smaller voxel edge is taken for a broken header."""

    max_spacing_mm: float = 25.0
    """A larger voxel edge is taken for a broken header."""

    max_extent_mm: float = 3000.0
    """A larger scan along any axis is taken for a broken header: nobody is longer."""

    max_stored_voxels: int = 1_000_000_000
    """A larger stored volume is refused before its memory is asked for."""

    set_spacing_mm: float | None = None
    """Edge of a voxel, in mm, of the images in .npz sets, which tell none; None: `spacing_mm`, so that they
    are stored voxel for voxel."""

    frame: int | None = None
    """Which frame of every 4D file to take, counted from 0; None makes 4D files an error. A manifest's
    `frame` column goes before it."""

    label_tolerance_voxels: float = 0.1
    """How far any corner of a label's grid may lie from its image's, in the image's smallest voxel edges."""

    slice_gap_tolerance: float = 0.05
    """How far a DICOM slice gap may differ from the median gap, as a fraction of it."""

    tilt_tolerance_degrees: float = 0.3
    """How far the line through DICOM slice positions may lean from the slices' normal."""

    @property
    def series_rules(self) -> SeriesRules:
        """The settings that decide which DICOM slices make a volume."""
        return SeriesRules(
            frame=self.frame,
            min_slices=self.min_size_voxels,
            slice_gap_tolerance=self.slice_gap_tolerance,
            tilt_tolerance_degrees=self.tilt_tolerance_degrees,
        )

    def __post_init__(self) -> None:
        _require(0.05 <= self.spacing_mm <= 20, "spacing_mm", "between 0.05 and 20", self.spacing_mm)
        _require(self.margin_mm >= 0, "margin_mm", "at least 0", self.margin_mm)
        low, high = self.ct_window_hu
        _require(low < high, "ct_window_hu", "a rising pair", self.ct_window_hu)
        _require(abs(low) < 32000 and abs(high) < 32000, "ct_window_hu", "within int16", self.ct_window_hu)
        first, last = self.percentiles
        _require(0 <= first < last <= 100, "percentiles", "a rising pair within 0 to 100", self.percentiles)
        _require(100 <= self.num_codes <= 32000, "num_codes", "between 100 and 32000", self.num_codes)
        _require(self.min_size_voxels >= 2, "min_size_voxels", "at least 2", self.min_size_voxels)
        _require(self.min_extent_mm >= 0, "min_extent_mm", "at least 0", self.min_extent_mm)
        _require(
            0 < self.min_spacing_mm < self.max_spacing_mm,
            "min_spacing_mm",
            "above 0 and below max_spacing_mm",
            self.min_spacing_mm,
        )
        _require(
            self.set_spacing_mm is None or self.set_spacing_mm > 0,
            "set_spacing_mm",
            "above 0",
            self.set_spacing_mm,
        )
        _require(self.max_extent_mm > 0, "max_extent_mm", "above 0", self.max_extent_mm)
        _require(self.max_stored_voxels > 0, "max_stored_voxels", "above 0", self.max_stored_voxels)
        _require(self.frame is None or self.frame >= 0, "frame", "at least 0", self.frame)
        _require(0 <= self.label_tolerance_voxels <= 1, "label_tolerance_voxels", "within 0 to 1", None)
        _require(0 <= self.slice_gap_tolerance < 0.5, "slice_gap_tolerance", "within 0 to 0.5", None)
        _require(0 <= self.tilt_tolerance_degrees < 45, "tilt_tolerance_degrees", "within 0 to 45", None)


def _require(holds: bool, field: str, must: str, got: object) -> None:
    if not holds:
        raise ConfigError(
            f"ingest setting {field} must be {must}" + ("" if got is None else f", got {got!r}")
        )
