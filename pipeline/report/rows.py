"""A row of the store's table of scans: from the index, then from the scan's tables, then from its voxels.

Each step adds to the one before, so that a table of any store can be shown at once and filled in later.
What is not known yet is None.

Reads: a stored scan (`pipeline.report.stored.StoredScan`), a `ScanOverview`. Writes: plain values.
Bounds: `index_row` reads nothing, `table_row` some kilobytes of a scan; only an overview needs its voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pipeline.quality import SIZE_CLASSES_MM3, SOURCE, VOXELS, IntArray
from pipeline.report.overview import ScanOverview
from pipeline.report.stored import DescribedScan, StoredScan

SCORE_EDGES = tuple(float(edge) for edge in np.logspace(-4, 0, 25))
"""Edges of the bins in which scores are counted; the outer bins also count scores beyond."""


class IndexLine(DescribedScan, Protocol):
    """A scan's line in the index of a store."""

    @property
    def scan_id(self) -> str:
        """Its id, unique in its store."""

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Voxels of level 0 along z, y, x."""

    @property
    def num_proposals(self) -> int:
        """Number of proposals."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the label maps."""


@dataclass(frozen=True, kw_only=True)
class ScanRow:
    """Facts about a scan that the table, the charts and the search for unusual scans use."""

    scan_id: str
    dataset: str
    modality: str
    split: str
    case: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    num_proposals: int
    num_labels: int
    """Number of label maps."""
    source_spacing_mm: tuple[float, float, float] | None = None
    """Voxel size of the source file, sorted from the smallest edge to the largest."""
    unit: str = ""
    mean: float | None = None
    """Mean intensity, in the unit."""
    std: float | None = None
    low: float | None = None
    """Lower clip bound of the intensities."""
    high: float | None = None
    num_atoms: int | None = None
    size_counts: tuple[int, ...] | None = None
    """Number of proposals of each size class."""
    source_counts: tuple[tuple[str, int], ...] | None = None
    """Number of proposals of each source."""
    score_counts: tuple[int, ...] | None = None
    """Number of proposals in each bin of `SCORE_EDGES`."""
    stored_bytes: int | None = None
    seconds: float | None = None
    """Time that it took to prepare it."""
    covered: float | None = None
    """Fraction of the body's voxels that at least one proposal contains."""
    outside: float | None = None
    """Fraction of the proposals that are outside the body."""
    num_structures: int | None = None
    """Number of scored structures."""
    mean_iou: float | None = None
    found: float | None = None
    """Fraction of the scored structures with a best IoU of 0.5 or more."""

    @property
    def extent_zyx_mm(self) -> tuple[float, float, float]:
        """Lengths of the scan."""
        z, y, x = (n * mm for n, mm in zip(self.shape_zyx, self.spacing_zyx_mm, strict=True))
        return z, y, x


def index_row(line: IndexLine) -> ScanRow:
    """Return the row of a scan with the values in the store's index."""
    return ScanRow(
        scan_id=line.scan_id,
        dataset=line.dataset,
        modality=line.modality,
        split=line.split,
        case=line.case,
        shape_zyx=line.shape_zyx,
        spacing_zyx_mm=line.spacing_zyx_mm,
        num_proposals=line.num_proposals,
        num_labels=len(line.labels),
    )


def table_row(row: ScanRow, scan: StoredScan, stored_bytes: int) -> ScanRow:
    """Return the row with values from the scan's attributes and its table of proposals.

    Args:
        row: The scan's row.
        scan: The stored scan.
        stored_bytes: Bytes of the scan's files.
    """
    proposals = scan.proposals
    mm3 = proposals.table[:, VOXELS] * float(np.prod(scan.spacing_zyx_mm))
    sizes = np.bincount(
        np.searchsorted(SIZE_CLASSES_MM3, mm3, side="right"), minlength=len(SIZE_CLASSES_MM3) + 1
    )
    clipped = np.clip(proposals.scores, SCORE_EDGES[0], SCORE_EDGES[-1])
    scores, _ = np.histogram(clipped, bins=np.array(SCORE_EDGES))
    return replace(
        row,
        **_intensity(scan.attributes),
        source_spacing_mm=_source_spacing(scan.attributes),
        num_atoms=sum(scan.num_atoms(layer) for layer in range(scan.num_layers)),
        size_counts=tuple(int(n) for n in sizes),
        source_counts=tuple(source_counts(proposals.table, proposals.sources).items()),
        score_counts=tuple(int(n) for n in scores),
        stored_bytes=stored_bytes,
    )


def full_row(row: ScanRow, overview: ScanOverview) -> ScanRow:
    """Return the row with values from the scan's voxels and its score."""
    return replace(
        row,
        covered=overview.covered_fraction,
        outside=overview.outside_fraction,
        num_structures=overview.num_structures,
        mean_iou=overview.mean_iou,
        found=overview.found_fraction,
    )


def source_counts(table: IntArray, sources: Sequence[str]) -> dict[str, int]:
    """Return the number of proposals of each source; codes that share a name are added up."""
    counts: dict[str, int] = {}
    for name, count in zip(sources, np.bincount(table[:, SOURCE], minlength=len(sources)), strict=True):
        counts[name] = counts.get(name, 0) + int(count)
    return counts


def _intensity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    known = attributes.get("intensity")
    if not isinstance(known, Mapping):
        return {}
    values = {name: float(known[name]) for name in ("mean", "std", "low", "high") if name in known}
    return values | {"unit": str(known.get("unit", ""))}


def _source_spacing(attributes: Mapping[str, Any]) -> tuple[float, float, float] | None:
    grid = attributes.get("source_grid")
    if not isinstance(grid, Mapping) or "spacing_xyz_mm" not in grid:
        return None
    small, middle, large = sorted(float(mm) for mm in grid["spacing_xyz_mm"])
    return small, middle, large
