"""Settings of the ingest: how scans are read, cropped, resampled and coded.

Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import require
from pipeline.formats import SeriesRules

INGEST_VERSION = 1
"""Version of the code that reads and standardises scans. It is raised when the same input and settings give
other voxels; then scans that were stored before are out of date."""

REFUSALS_VERSION = 2
"""Version of the rules by which inputs are refused. It is raised when some are read that were refused before;
then failures of earlier runs are tried again. Stored scans stay up to date."""

LATER_SETTINGS = {"set_spacing_mm": None, "resample_labels": False, "pet_unit": "suv"}
"""Settings that the first stores did not have, with the values under which these stores are up to date."""

IDLE_SETTINGS = ("read_timeout_seconds",)
"""Settings that change no scan."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Settings of `discover`, `read_source` and `standardize`; checked when made."""

    spacing_mm: float = 1.5
    """Edge of a stored voxel in mm, the same along all axes."""

    margin_mm: float = 10.0
    """Margin around the body or foreground on every side, in mm, as far as the scan reaches."""

    crop: bool = True
    """Crop to the body or foreground; False keeps the whole volume."""

    body_threshold_hu: float = -500.0
    """CT voxels above this are body (soft tissue, bone, lung vessels); air and lung parenchyma are not."""

    ct_window_hu: tuple[float, float] = (-991.0, 500.0)
    """CT is clipped to this window, in HU (as in the published recipe)."""

    percentiles: tuple[float, float] = (2.0, 98.0)
    """MR and PET are clipped to these percentiles of the stored volume (as in the published recipe)."""

    num_codes: int = 4000
    """Number of steps over the window for MR and PET; CT has steps of 1 HU."""

    min_size_voxels: int = 3
    """Smallest number of voxels along every axis of an input; a smaller one is a 2D image, not a volume."""

    min_extent_mm: float = 8.0
    """Smallest size of the stored volume along every axis, in mm."""

    min_spacing_mm: float = 0.01
    """Smallest voxel edge that is accepted, in mm; the header is taken for wrong below it."""

    max_spacing_mm: float = 25.0
    """Largest voxel edge that is accepted, in mm."""

    max_extent_mm: float = 3000.0
    """Largest size of a scan along any axis that is accepted, in mm; no patient is longer."""

    max_stored_voxels: int = 1_000_000_000
    """Largest stored volume that is accepted, in voxels; checked before memory is allocated."""

    set_spacing_mm: float | None = None
    """Voxel edge in mm of the images in .npz sets, which have no voxel size; None: `spacing_mm`, so that they
    are not resampled."""

    pet_unit: Literal["suv", "stored"] = "suv"
    """Unit of PET from DICOM: "suv" divides by the injected dose per body weight where the header allows it,
    and says so; "stored" keeps the values (Bq/ml, mostly)."""

    frame: int | None = None
    """Index of the frame of every 4D file, from 0; if None, 4D files are an error. A manifest's `frame`
    column has priority."""

    read_timeout_seconds: float = 300.0
    """Longest time without a byte while a scan is read, in seconds; then it fails, and the next run tries it
    again (a network disk that does not answer)."""

    resample_labels: bool = False
    """Resample a label map that lies on another grid than its image by nearest neighbour, with a note; False
    refuses it. A label on the image's grid in another order or direction of axes is turned in either case."""

    label_tolerance_voxels: float = 0.1
    """Largest distance between a corner of a label's grid and of its image's, in the image's smallest
    voxel edge."""

    slice_gap_tolerance: float = 0.05
    """Largest difference of a gap between DICOM slices from the median gap, as a fraction of the median."""

    tilt_tolerance_degrees: float = 0.3
    """Largest angle between the line through DICOM slice positions and the slices' normal, in degrees."""

    @property
    def series_rules(self) -> SeriesRules:
        """The settings that decide which DICOM slices form a volume."""
        return SeriesRules(
            frame=self.frame,
            min_slices=self.min_size_voxels,
            slice_gap_tolerance=self.slice_gap_tolerance,
            tilt_tolerance_degrees=self.tilt_tolerance_degrees,
        )

    def __post_init__(self) -> None:
        must = self._must
        must("spacing_mm", 0.05 <= self.spacing_mm <= 20, "between 0.05 and 20")
        must("read_timeout_seconds", self.read_timeout_seconds > 0, "above 0")
        must("margin_mm", self.margin_mm >= 0, "at least 0")
        low, high = self.ct_window_hu
        must("ct_window_hu", low < high, "a rising pair")
        must("ct_window_hu", abs(low) < 32000 and abs(high) < 32000, "within int16")
        first, last = self.percentiles
        must("percentiles", 0 <= first < last <= 100, "a rising pair within 0 to 100")
        must("num_codes", 100 <= self.num_codes <= 32000, "between 100 and 32000")
        must("min_size_voxels", self.min_size_voxels >= 2, "at least 2")
        must("min_extent_mm", self.min_extent_mm >= 0, "at least 0")
        rising = 0 < self.min_spacing_mm < self.max_spacing_mm
        must("min_spacing_mm", rising, "above 0 and below max_spacing_mm")
        must("set_spacing_mm", self.set_spacing_mm is None or self.set_spacing_mm > 0, "above 0")
        must("max_extent_mm", self.max_extent_mm > 0, "above 0")
        must("max_stored_voxels", self.max_stored_voxels > 0, "above 0")
        must("pet_unit", self.pet_unit in ("suv", "stored"), "suv or stored")
        must("frame", self.frame is None or self.frame >= 0, "at least 0")
        must("label_tolerance_voxels", 0 <= self.label_tolerance_voxels <= 1, "within 0 to 1")
        must("slice_gap_tolerance", 0 <= self.slice_gap_tolerance < 0.5, "within 0 to 0.5")
        must("tilt_tolerance_degrees", 0 <= self.tilt_tolerance_degrees < 45, "within 0 to 45")

    def _must(self, name: str, holds: bool, must: str) -> None:
        require(holds, f"ingest setting {name}", must, getattr(self, name))
