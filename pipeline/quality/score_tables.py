"""Tables of the scores of many scans, as Markdown, CSV and JSON.

The value of a structure is the mean over the scans that have it; that of a data set the mean over its
structures; the overall value the mean over data sets. So every data set has the same weight, however many
scans or structures it has. Recall at a threshold is a mean of the same kind over 0 and 1.

Reads: `ScanScore` of each scan. Writes: text; floats are rounded only in Markdown.
Bounds: a scan with fewer proposals than a count enters that column with all of its proposals.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.quality.scoring import (
    SIZE_CLASS_NAMES,
    ScanScore,
    ScoreConfig,
    SkippedStructure,
    StructureScore,
)
from pipeline.quality.stored_scan import OWN


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over a group of structures; sequences follow the counts, then all proposals."""

    group: str
    """What was averaged: "all", a data set, a size class or a structure."""
    dataset: str
    """The data set; empty if several are averaged."""
    scans: int
    structures: int
    """Number of different structures (data set and name)."""
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    recall: tuple[tuple[float, ...], ...]
    """For each threshold, the fraction of structures found with the first n proposals."""
    limit_iou: float
    limit_dice: float
    volume_ml: float
    """Median volume of the structures in millilitres."""
    slic_iou: float | None
    slic_dice: float | None
    slic_recall: tuple[float, ...] | None
    """For each threshold, the fraction of structures found by flat SLIC."""

    def ratio(self, column: int) -> float | None:
        """Return the mean best IoU of a column, divided by that of flat SLIC; None without SLIC."""
        return self.iou[column] / self.slic_iou if self.slic_iou else None


@dataclass(frozen=True, kw_only=True)
class StoreScore:
    """Score of a whole store."""

    counts: tuple[int, ...]
    recall_at: tuple[float, ...]
    scans: tuple[ScanScore, ...]
    """All scored scans, also those without labels."""
    overall: Summary | None
    """None if no structure was scored."""
    datasets: tuple[Summary, ...]
    size_classes: tuple[Summary, ...]
    structures: tuple[Summary, ...]

    @property
    def skipped(self) -> tuple[SkippedStructure, ...]:
        """Structures of all scans that were not scored."""
        return tuple(entry for scan in self.scans for entry in scan.skipped)


def summarize(scans: Iterable[ScanScore], config: ScoreConfig | None = None) -> StoreScore:
    """Return the means of the scores by structure, size class and data set.

    Raises:
        ValueError: the scans were scored at other counts than the config's.
    """
    config = config or ScoreConfig()
    ordered = tuple(sorted(scans, key=lambda scan: scan.scan_id))
    for scan in ordered:
        if scan.counts != config.counts:
            raise ValueError(f"{scan.scan_id} was scored at {scan.counts}, not at {config.counts}")
    every = [entry for scan in ordered for entry in scan.structures]

    def grouped(key: Callable[[StructureScore], tuple[str, str]]) -> list[Summary]:
        members: dict[tuple[str, str], list[StructureScore]] = defaultdict(list)
        for entry in every:
            members[key(entry)].append(entry)
        return [
            _summary(group, dataset, members[dataset, group], config) for dataset, group in sorted(members)
        ]

    by_class = {s.group: s for s in grouped(lambda e: ("", e.size_class))}
    return StoreScore(
        counts=config.counts,
        recall_at=config.recall_at,
        scans=ordered,
        overall=_summary("all", "", every, config) if every else None,
        datasets=tuple(grouped(lambda e: (e.dataset, e.dataset))),
        size_classes=tuple(by_class[name] for name in SIZE_CLASS_NAMES if name in by_class),
        structures=tuple(grouped(lambda e: (e.dataset, e.name))),
    )


def _summary(group: str, dataset: str, entries: Sequence[StructureScore], config: ScoreConfig) -> Summary:
    """Return means of the entries over scans, then structures, then data sets."""
    flat = [entry for entry in entries if entry.slic_iou is not None]
    limits = _nested_mean(entries, lambda e: [e.limit_iou, e.limit_dice])
    return Summary(
        group=group,
        dataset=dataset,
        scans=len({e.scan_id for e in entries}),
        structures=len({(e.dataset, e.name) for e in entries}),
        iou=_nested_mean(entries, lambda e: e.iou),
        dice=_nested_mean(entries, lambda e: e.dice),
        recall=tuple(_recall(entries, threshold, lambda e: e.iou) for threshold in config.recall_at),
        limit_iou=limits[0],
        limit_dice=limits[1],
        volume_ml=float(np.median([e.volume_mm3 for e in entries])) / 1000,
        slic_iou=_nested_mean(flat, _slic_iou)[0] if flat else None,
        slic_dice=_nested_mean(flat, lambda e: [e.slic_dice or 0.0])[0] if flat else None,
        slic_recall=tuple(_recall(flat, t, _slic_iou)[0] for t in config.recall_at) if flat else None,
    )


def _slic_iou(entry: StructureScore) -> list[float]:
    return [entry.slic_iou or 0.0]


def _recall(
    entries: Sequence[StructureScore], threshold: float, iou: Callable[[StructureScore], Sequence[float]]
) -> tuple[float, ...]:
    """Return the fraction of structures whose IoU reaches the threshold, one value per column."""
    return _nested_mean(entries, lambda e: [float(x >= threshold) for x in iou(e)])


def _nested_mean(
    entries: Sequence[StructureScore], values: Callable[[StructureScore], Sequence[float]]
) -> tuple[float, ...]:
    """Return the mean over scans within a structure, over structures within a data set, over data sets."""
    tree: dict[str, dict[str, list[Sequence[float]]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        tree[entry.dataset][entry.name].append(values(entry))
    means = [np.mean([np.mean(rows, axis=0) for rows in names.values()], axis=0) for names in tree.values()]
    return tuple(float(x) for x in np.mean(means, axis=0))


def to_json(score: StoreScore) -> str:
    """Return the whole score as JSON: summaries, every structure of every scan, and structures not scored."""
    return json.dumps(asdict(score), indent=1, sort_keys=True) + "\n"


def to_csv(score: StoreScore) -> str:
    """Return a table with one row per structure of a scan, scored or not, in full precision."""
    columns = [*(str(n) for n in score.counts), "all"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["scan", "dataset", "modality", "label", "value", "structure", "status", "voxels", "volume_mm3"]
    head += ["size_class", *(f"{measure}_at_{n}" for measure in ("iou", "dice") for n in columns)]
    head += ["atoms_limit_iou", "atoms_limit_dice", "slic_iou", "slic_dice", "best_proposal", "best_source"]
    every = (entry for scan in score.scans for entry in scan.structures)
    origins = sorted({one.name for entry in every for one in entry.by_origin})
    head += [f"dice_{name}" for name in origins]
    writer.writerow(head)
    for scan in score.scans:
        for e in scan.structures:
            row = [
                e.scan_id,
                e.dataset,
                e.modality,
                e.label,
                e.value,
                e.name,
                "scored",
                e.voxels,
                e.volume_mm3,
            ]
            row += [e.size_class, *e.iou, *e.dice, e.limit_iou, e.limit_dice, e.slic_iou, e.slic_dice]
            dice = {one.name: one.dice for one in e.by_origin}
            writer.writerow([*row, e.best, e.best_source, *(dice.get(name, "") for name in origins)])
        for s in scan.skipped:
            row = [s.scan_id, s.dataset, scan.modality, s.label, s.value, s.name, s.reason, s.voxels]
            writer.writerow(row + [""] * (len(head) - len(row)))
    return text.getvalue()


def to_markdown(score: StoreScore) -> str:
    """Return tables of data sets, size classes and structures, and a list of structures not scored."""
    unlabelled = sum(1 for scan in score.scans if not scan.structures)
    lines = [
        "# Oracle score of the proposals",
        "",
        f"{len(score.scans) - unlabelled} scans with scored structures, {unlabelled} without. Best overlap"
        " that any of the first n proposals of a scan reaches with a labelled structure; mean over scans,"
        " then structures, then data sets. *IoU of atoms* is the limit: the best union of atoms.",
        "",
    ]
    if score.overall is None:
        lines.append("No label in the store has a structure that can be scored.")
        return "\n".join([*lines, *_left_out(score)]) + "\n"
    several = len(score.datasets) > 1
    groups = {
        "data set": [*score.datasets, score.overall] if several else list(score.datasets),
        "size": list(score.size_classes),
    }
    for title, rows in groups.items():
        lines += [f"## By {title}", "", *_iou_table(title, rows, score), ""]
        lines += [*_recall_table(title, rows, score), ""]
    lines += _origin_tables(score, several=several)
    lines += ["## By structure", "", *_iou_table("structure", score.structures, score, datasets=several), ""]
    return "\n".join(lines + _left_out(score)) + "\n"


def _shown(score: StoreScore) -> list[tuple[int, str]]:
    """Return the columns that are shown as (index, heading).

    A count that no scan exceeds is left out, since it equals the last column.
    """
    most = max((scan.num_proposals for scan in score.scans), default=0)
    chosen = [(i, f"{n:,}") for i, n in enumerate(score.counts) if n < most]
    return [*chosen, (len(score.counts), "all")]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; the first column is left-aligned, the others right-aligned."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]


def _iou_table(
    title: str, rows: Sequence[Summary], score: StoreScore, *, datasets: bool = False
) -> list[str]:
    """Return best IoU against the number of proposals, Dice, limit and baseline."""
    columns = _shown(score)
    slic = any(row.slic_iou is not None for row in rows)
    heading = [*(["data set"] if datasets else []), title, "scans", "mL"]
    heading += [f"IoU, n = {name}" if i == 0 else name for i, (_, name) in enumerate(columns)]
    heading += ["Dice, all", "IoU of atoms", *(["IoU of SLIC", "all / SLIC"] if slic else [])]
    body = []
    for row in rows:
        cells = [*([row.dataset] if datasets else []), _escape(row.group), str(row.scans)]
        cells += [_volume(row.volume_ml), *(f"{row.iou[i]:.3f}" for i, _ in columns)]
        cells += [f"{row.dice[-1]:.3f}", f"{row.limit_iou:.3f}"]
        if slic:
            ratio = row.ratio(-1)
            cells += ["" if row.slic_iou is None else f"{row.slic_iou:.3f}", f"{ratio:.2f}" if ratio else ""]
        body.append(cells)
    return _table(heading, body)


def _recall_table(title: str, rows: Sequence[Summary], score: StoreScore) -> list[str]:
    """Return the fraction of structures found against the number of proposals.

    One row per group and threshold.
    """
    columns = _shown(score)
    slic = any(row.slic_recall is not None for row in rows)
    heading = [title, "found at IoU", *(f"n = {name}" for _, name in columns), *(["SLIC"] if slic else [])]
    body = []
    for row in rows:
        for t, threshold in enumerate(score.recall_at):
            cells = [_escape(row.group), f"{threshold:g}", *(f"{row.recall[t][i]:.1%}" for i, _ in columns)]
            if slic:
                cells.append("" if row.slic_recall is None else f"{row.slic_recall[t]:.1%}")
            body.append(cells)
    return _table(heading, body)


def origin_dice(entries: Sequence[StructureScore]) -> dict[str, float]:
    """Return the mean best Dice of the own proposals, of each imported source, and of all together.

    Args:
        entries: Structures of scans with imported masks; a source that a scan lacks counts as 0.
    """
    names = sorted({one.name for entry in entries for one in entry.by_origin} - {OWN})
    columns = [OWN, *names]

    def values(entry: StructureScore) -> list[float]:
        dice = {one.name: one.dice for one in entry.by_origin}
        return [*(dice.get(name, 0.0) for name in columns), entry.dice[-1]]

    return dict(zip([*columns, "all"], _nested_mean(entries, values), strict=True))


def _origin_tables(score: StoreScore, *, several: bool) -> list[str]:
    """Return a table of the best Dice by source; no line if no scan has imported masks."""
    entries = [entry for scan in score.scans for entry in scan.structures if entry.by_origin]
    if not entries:
        return []
    every = origin_dice(entries)
    body = []
    for dataset in sorted({entry.dataset for entry in entries}):
        members = [entry for entry in entries if entry.dataset == dataset]
        body.append((dataset, members, origin_dice(members)))
    if several:
        body.append(("all", entries, every))
    rows = [
        [_escape(name), str(len({e.scan_id for e in members})), *(f"{dice.get(c, 0.0):.3f}" for c in every)]
        for name, members, dice in body
    ]
    heading = ["data set", "scans", *(f"Dice, {name}" if i == 0 else name for i, name in enumerate(every))]
    note = "Scans with imported masks only. Best Dice among the own proposals, each imported source, and all."
    return ["## By source", "", note, "", *_table(heading, rows), ""]


def _left_out(score: StoreScore) -> list[str]:
    """Return the structures that were not scored, one line per data set and reason."""
    reasons: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for entry in score.skipped:
        reasons[entry.dataset, entry.reason][entry.name] += 1
    if not reasons:
        return []
    lines = ["## Not scored", ""]
    for (dataset, reason), names in sorted(reasons.items()):
        listed = ", ".join(f"{name} ({n} scans)" if n > 1 else name for name, n in sorted(names.items()))
        lines.append(f"- {dataset}, {reason}: {len(names)} structures: {listed}")
    return lines


def _volume(volume_ml: float) -> str:
    return f"{volume_ml:,.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
