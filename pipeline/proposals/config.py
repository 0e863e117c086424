"""Settings of the mask proposals.

Reads: nothing. Writes: nothing. Scales and sizes are in mm and mm^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError, require
from pipeline.hierarchies import TreeSpec, Window
from pipeline.proposals.outlines import Outlines

MAX_ATOMS = 65_534
"""The most atoms: uint16 ids without two reserved values (format version 1)."""

DEFAULT_TREES = (
    "fine-contrast-0.7mm",
    "fine-contrast-2.2mm",
    "fine-boundary-0.7mm",
    "fine-round-0.7mm",
    "fine-piecewise",
    "fine-compact",
    "fine-volume-1mm",
    "fine-dynamics-1.5mm",
    "coarse-neck-0.7mm",
    "coarse-contrast-2.2mm-balanced",
    "coarse-contact-2.2mm",
    "coarse-boundary-2.2mm",
    "coarse-volume-2.2mm",
    "coarse-dynamics-2.2mm",
    "voxels-contact-0.7mm",
    "voxels-contrast-0.7mm",
    "voxels-contrast-2.2mm",
)
"""See `docs/decisions/0003-proposals.md` for what each tree adds."""


_ROUNDED_LEAST_IOU, _ROUNDED_LEAST_VOLUME = 0.3, 0.5
"""Limits for the rounded copy of a region: least IoU with the region, least fraction of its volume. They are
low because the region itself is a proposal too."""


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Settings of the mask proposals; checked when made."""

    ct_windows_hu: tuple[Window, ...] = ((-160.0, 240.0), (-991.0, 500.0), (0.0, 150.0))
    """Intensity windows of a CT: soft tissue, wide, narrow. Boundary evidence is summed over them."""

    percentile_windows: tuple[Window, ...] = ((0.0, 100.0), (5.0, 95.0))
    """Intensity windows of other scans: percentiles of the voxels above the floor (lowest 3 % of the
    stored range)."""

    scales_mm: tuple[float, ...] = (0.7, 1.0, 1.5, 2.2)
    """Gaussian scales of the boundary evidence, in mm; at least 0.45 voxels are used."""

    fine_scale_mm: float = 0.7
    """Scale whose basins are the fine supervoxels; one of `scales_mm`."""

    coarse_scale_mm: float = 1.5
    """Scale whose basins are the coarse supervoxels; one of `scales_mm`."""

    max_regions: int = 1 << 16
    """Small, similar supervoxels are merged until no more than this many are left; then trees are grown. 16
    bits hold their numbers."""

    max_voxel_leaves: int = 200_000
    """Scans with no more voxels than this also get trees whose leaves are voxels."""

    trees: tuple[str, ...] = DEFAULT_TREES
    """Trees to grow: PARTITION-METHOD-SCALEmm (see `hierarchies.TreeSpec`)."""

    component_thresholds_hu: tuple[float, ...] = (-900, -700, -400, -150, -50, 20, 70, 130, 200, 300, 420)
    """Thresholds of the connected components in CT, in HU: lung, fat, soft tissue, contrast, bone. Empty: no
    components."""

    component_percentiles: tuple[float, ...] = (10, 20, 35, 50, 65, 80, 90, 95, 98, 99)
    """The same for other scans, as percentiles of the voxels above the floor. Empty: no components."""

    min_volume_mm3: float = 100.0
    """Smallest volume of a proposal, in mm^3."""

    max_volume_fraction: float = 0.6
    """Regions that fill a larger fraction of the scan are dropped."""

    min_body_fraction: float = 0.5
    """Regions with a smaller fraction of their voxels in the body are dropped: table, air, streaks."""

    body_threshold_hu: float = -500.0
    """CT voxels above this are body, and so are cavities that they enclose (lung, bowel gas)."""

    candidates_per_half_octave: int = 600
    """The most candidates per tree in each volume class; classes are a factor of sqrt(2) wide."""

    max_proposals: int = 2000
    """The most proposals of a scan."""

    outline_smoothing: float = 0.1
    """Width of the blur that smooths the outlines of regions of supervoxels: its standard deviation as a
    fraction of the cube root of the region's volume. A region is kept where its blurred mask exceeds 0.5. 0
    for no smoothing. Level sets are never blurred."""

    max_outline_sigma_mm: float = 6.0
    """The largest standard deviation of this blur, in mm."""

    rounding: float = 0.3
    """The best regions get a second, rounder copy: the standard deviation of its blur, as a fraction of the
    cube root of the region's volume. 0 for no copies."""

    max_rounding_sigma_mm: float = 20.0
    """The largest standard deviation of that blur, in mm."""

    rounded_fraction: float = 0.15
    """The largest fraction of the proposals, best first, that may get a rounder copy."""

    duplicate_iou: float = 0.95
    """A region is dropped if its IoU with a better one is larger than this."""

    max_atoms: int = MAX_ATOMS
    """The most atoms; above this, slivers are absorbed. Fewer atoms take fewer bytes."""

    def __post_init__(self) -> None:
        """Check the settings."""
        # One region and its background are two atoms.
        require(1 < self.max_atoms <= MAX_ATOMS, "max_atoms", f"2..{MAX_ATOMS}", self.max_atoms)
        require(self.max_proposals > 0, "max_proposals", "positive", self.max_proposals)
        require(self.max_regions > 1, "max_regions", "above 1", self.max_regions)
        require(0 <= self.outline_smoothing <= 0.5, "outline_smoothing", "in 0..0.5", self.outline_smoothing)
        require(0 <= self.rounding <= 0.5, "rounding", "in 0..0.5", self.rounding)
        require(0 <= self.rounded_fraction <= 1, "rounded_fraction", "in 0..1", self.rounded_fraction)
        for name in ("max_outline_sigma_mm", "max_rounding_sigma_mm"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        require(0 < self.duplicate_iou <= 1, "duplicate_iou", "in (0, 1]", self.duplicate_iou)
        require(
            0 < self.max_volume_fraction <= 1, "max_volume_fraction", "in (0, 1]", self.max_volume_fraction
        )
        if not (self.ct_windows_hu and self.percentile_windows):
            raise ConfigError("at least one intensity window is needed")
        for low, high in (*self.ct_windows_hu, *self.percentile_windows):
            if not low < high:
                raise ConfigError(f"an intensity window must rise, got [{low:g}, {high:g}]")
        require(
            list(self.scales_mm) == sorted({s for s in self.scales_mm if s > 0}),
            "scales_mm",
            "positive and rise",
            list(self.scales_mm),
        )
        for name in ("fine_scale_mm", "coarse_scale_mm"):
            value = getattr(self, name)
            require(value in self.scales_mm, name, "one of scales_mm", f"{value:g}")
        try:
            specs = [TreeSpec.parse(name) for name in self.trees]
        except ValueError as error:
            raise ConfigError(f"trees: {error}") from error
        for spec in specs:
            if spec.uses_boundary_evidence and spec.scale_mm not in self.scales_mm:
                raise ConfigError(f"trees: {spec.name} needs the scale {spec.scale_mm:g} in scales_mm")

    def outlines(self, voxel_mm3: float) -> tuple[Outlines, Outlines]:
        """Return the outline settings of regions, and of their rounder copies.

        Args:
            voxel_mm3: Volume of a voxel in mm^3.
        """
        edge_mm = float(np.cbrt(voxel_mm3))
        return (
            Outlines(fraction=self.outline_smoothing, max_sigma_voxels=self.max_outline_sigma_mm / edge_mm),
            Outlines(
                fraction=self.rounding,
                max_sigma_voxels=self.max_rounding_sigma_mm / edge_mm,
                apart=1.0,
                least_iou=_ROUNDED_LEAST_IOU,
                least_volume=_ROUNDED_LEAST_VOLUME,
            ),
        )

    @property
    def num_rounded(self) -> int:
        """How many of the best proposals may get a rounder copy."""
        return int(self.rounded_fraction * self.max_proposals) if self.rounding else 0

    @property
    def specs(self) -> tuple[TreeSpec, ...]:
        """The trees to grow."""
        return tuple(TreeSpec.parse(name) for name in self.trees)
