"""Oracle score of a scan: for every labelled structure, the best IoU and Dice of any proposal.

Reads: a stored scan (image codes, atoms, orders, table, labels; see `pipeline.quality.stored_scan.ScanLike`).
Writes: one `ScanScore`: a `StructureScore` for each structure present, and a `SkippedStructure` with the
        reason
for each one that is declared but absent, or too small on the stored grid. Every structure is reported.
Bounds: a structure is scored as a whole (a label of many lesions is one structure), on the stored grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.quality.intervals import num_atoms
from pipeline.quality.overlap import (
    COUNTS,
    AtomLimit,
    BestOverlap,
    Overlap,
    atom_limit,
    best_overlap,
    interval_overlap,
    name_of,
    structure_counts,
)
from pipeline.quality.slic_baseline import SlicConfig, baseline_overlap, slic_scales
from pipeline.quality.stored_scan import SOURCE, LabelLike, ScanLike, imported_names, rows_by_origin

SIZE_CLASSES_MM3 = (1e3, 1e4, 1e5, 1e6)
"""Upper bounds of the size classes in mm3: 1 mL, 10 mL, 100 mL, 1 L."""
SIZE_CLASS_NAMES = ("under 1 mL", "1 to 10 mL", "10 to 100 mL", "0.1 to 1 L", "1 L and over")
"""Names of the size classes, smallest first."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of the score."""

    counts: tuple[int, ...] = COUNTS
    """Numbers of best-ranked proposals for which quality is reported, in addition to all of them."""
    recall_at: tuple[float, ...] = (0.5, 0.7)
    """A structure is found if its IoU is at least this."""
    min_voxels: int = 27
    """Structures of fewer voxels on the stored grid are listed, not scored: 27 = 3 x 3 x 3, 91 mm3 at 1.5
    mm."""
    slic: SlicConfig = field(default_factory=SlicConfig)
    """Settings of the flat baseline, which is computed on request."""


@dataclass(frozen=True, kw_only=True)
class OriginScore:
    """Best overlap with a structure of the proposals of one origin."""

    name: str
    """"own", or the name of an imported source."""
    iou: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class StructureScore:
    """Best overlap of the proposals of one scan with one structure."""

    scan_id: str
    dataset: str
    modality: str
    label: str
    """Name of the label map."""
    value: int
    """Value in the label map."""
    name: str
    """Name of the structure."""
    voxels: int
    volume_mm3: float
    iou: tuple[float, ...]
    """Best IoU among the first n proposals, for each of the counts, then for all."""
    dice: tuple[float, ...]
    """Best Dice, for the same counts."""
    best: int
    """Row of the proposal with the best IoU, -1 if there is none."""
    best_source: str
    """Name of that proposal's source, empty if there is none."""
    limit_iou: float
    """Best IoU of any union of atoms (layer 0)."""
    limit_dice: float
    """Best Dice of any union of atoms (layer 0)."""
    slic_iou: float | None = None
    """Best IoU of any segment of flat multi-scale SLIC; None if it was not computed."""
    slic_dice: float | None = None
    """Best Dice of the same; None if it was not computed."""
    by_origin: tuple[OriginScore, ...] = ()
    """Best overlap of the scan's own proposals, and of each imported source; empty without imported ones."""

    @property
    def size_class(self) -> str:
        """Name of the structure's size class."""
        return size_class(self.volume_mm3)


@dataclass(frozen=True, kw_only=True)
class SkippedStructure:
    """A structure that was not scored, and the reason."""

    scan_id: str
    dataset: str
    label: str
    value: int
    name: str
    voxels: int
    reason: str
    """"absent" or "fewer than n voxels"."""


@dataclass(frozen=True, kw_only=True)
class ScanScore:
    """Scores of all structures of one scan."""

    scan_id: str
    dataset: str
    modality: str
    num_proposals: int
    counts: tuple[int, ...]
    """Numbers of proposals; scores have one more entry, for all proposals."""
    structures: tuple[StructureScore, ...]
    skipped: tuple[SkippedStructure, ...]


def size_class(volume_mm3: float) -> str:
    """Return the name of the size class of a volume in mm3."""
    return SIZE_CLASS_NAMES[int(np.searchsorted(SIZE_CLASSES_MM3, volume_mm3, side="right"))]


def score_scan(
    scan: ScanLike,
    *,
    config: ScoreConfig | None = None,
    slic: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ScanScore:
    """Return the scores of a scan's proposals against each of its label maps.

    Args:
        scan: A stored scan; without labels the score has no structures.
        config: Counts, thresholds and the settings of the baseline.
        slic: Whether flat multi-scale SLIC is scored too (minutes for a large scan).
        progress: Called with a line of text before each slow step.
    """
    config = config or ScoreConfig()
    labels = list(scan.labels)
    flat: list[BestOverlap] = []
    if slic and labels:
        scales = slic_scales(scan.image, scan.spacing_zyx_mm, config=config.slic, progress=progress)
        flat = baseline_overlap(scales, [label.array for label in labels])
    structures: list[StructureScore] = []
    skipped: list[SkippedStructure] = []
    for index, label in enumerate(labels):
        scored, left_out = _score_label(scan, label, config, flat[index] if flat else None)
        structures += scored
        skipped += left_out
    return ScanScore(
        scan_id=scan.scan_id,
        dataset=scan.dataset,
        modality=scan.modality,
        num_proposals=len(scan.table),
        counts=config.counts,
        structures=tuple(structures),
        skipped=tuple(skipped),
    )


def _score_label(
    scan: ScanLike, label: LabelLike, config: ScoreConfig, flat: BestOverlap | None
) -> tuple[list[StructureScore], list[SkippedStructure]]:
    """Return the scores of the structures of one label map, and the structures that were not scored."""
    present = structure_counts(label.array)
    declared = {value for value in (label.value_names or {}) if value != 0}
    values = [value for value, voxels in present.items() if voxels >= config.min_voxels]
    skipped = [
        SkippedStructure(
            scan_id=scan.scan_id,
            dataset=scan.dataset,
            label=label.name,
            value=value,
            name=name_of(value, label.name, label.value_names),
            voxels=present.get(value, 0),
            reason=f"fewer than {config.min_voxels} voxels" if value in present else "absent",
        )
        for value in sorted(declared | set(present))
        if present.get(value, 0) < config.min_voxels
    ]
    if not values:
        return [], skipped
    overlap = interval_overlap(scan, label.array, values=values)
    best = best_overlap(overlap, config.counts)
    origins = _by_origin(scan, overlap)
    limit = atom_limit(scan.atoms[0], label.array, num_atoms=num_atoms(scan, 0), values=values)
    scores = [_structure_score(scan, label, best, limit, flat, s) for s in range(len(values))]
    return [replace(score, by_origin=origins[s]) for s, score in enumerate(scores)], skipped


def _by_origin(scan: ScanLike, overlap: Overlap) -> list[tuple[OriginScore, ...]]:
    """Return the best overlap with each structure by origin; nothing if all proposals are the scan's own."""
    if not imported_names(scan):
        return [()] * len(overlap.values)
    every = overlap.iou
    best = {name: every[:, rows].max(axis=1, initial=0.0) for name, rows in rows_by_origin(scan).items()}
    return [
        tuple(
            OriginScore(name=name, iou=float(iou[s]), dice=float(2 * iou[s] / (1 + iou[s])))
            for name, iou in best.items()
        )
        for s in range(len(overlap.values))
    ]


def _structure_score(
    scan: ScanLike, label: LabelLike, best: BestOverlap, limit: AtomLimit, flat: BestOverlap | None, s: int
) -> StructureScore:
    """Return the score of structure `s` of a label map, with its names."""
    value, row = best.values[s], int(best.best[s])
    voxels = int(best.structure_voxels[s])
    return StructureScore(
        scan_id=scan.scan_id,
        dataset=scan.dataset,
        modality=scan.modality,
        label=label.name,
        value=value,
        name=name_of(value, label.name, label.value_names),
        voxels=voxels,
        volume_mm3=voxels * float(np.prod(scan.spacing_zyx_mm)),
        iou=tuple(float(x) for x in best.iou[s]),
        dice=tuple(float(x) for x in best.dice[s]),
        best=row,
        best_source=scan.sources[int(scan.table[row, SOURCE])] if row >= 0 else "",
        limit_iou=float(limit.iou[s]),
        limit_dice=float(limit.dice[s]),
        slic_iou=None if flat is None else float(flat.iou[flat.values.index(value), -1]),
        slic_dice=None if flat is None else float(flat.dice[flat.values.index(value), -1]),
    )
