"""Tables of quality cells: every set and size of structure, every method, and how ours compares.

A structure's value is the mean over the scans that have it, a set's the mean over its structures (as in
`pipeline.quality.score_tables`). A column of a method stands for the cells of one way of taking the first n.

Reads: `Cell` values. Writes: Markdown, and the same figures as plain values for JSON.
Bounds: a method is compared with ours over the scans that both have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.quality_cells import COUNTS, SCORING, Cell
from pipeline.quality.score_tables import Summary, summarize
from pipeline.quality.scoring import ScanScore

AT = COUNTS.index(2000)
"""The column at which methods are compared."""

ALL = len(COUNTS)
"""The column of all masks that a method gives."""

Scores = Mapping[str, Mapping[str, ScanScore]]
"""By column name, then by scan."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean best IoU of ours at 2,000 over that of another column."""

    other: str
    per_set: Mapping[str, float]
    mean_of_ratios: float
    ratio_of_means: float
    left_out: tuple[str, ...]
    """Sets where the other reaches nothing: there is no ratio."""


def columns_of(cells: Iterable[Cell]) -> dict[str, dict[str, ScanScore]]:
    """Scores by column (method, and how the first n are taken where there are several ways), then by scan."""
    columns: dict[str, dict[str, ScanScore]] = defaultdict(dict)
    for cell in cells:
        for ranking, scored in cell.scores.items():
            columns[f"{cell.method}, {ranking}" if ranking else cell.method][cell.scan_id] = scored
    return dict(columns)


def set_means(scores: Iterable[ScanScore], column: int = AT) -> dict[str, float]:
    """Mean best IoU of each data set at a column."""
    return {s.dataset: s.iou[column] for s in summarize(scores, SCORING).datasets}


def compare(columns: Scores, ours: str, other: str, column: int = AT) -> Comparison | None:
    """Ours at 2,000 against another column of the table at `column`; None where they share no scan."""
    shared = [scan for scan in columns.get(ours, {}) if scan in columns.get(other, {})]
    if not shared:
        return None
    mine = set_means(columns[ours][scan] for scan in shared)
    theirs = set_means((columns[other][scan] for scan in shared), column)
    ratios = {name: mine[name] / theirs[name] for name in mine if theirs[name] > 0}
    return Comparison(
        other=other,
        per_set=ratios,
        mean_of_ratios=float(np.mean(list(ratios.values()))) if ratios else float("nan"),
        ratio_of_means=float(np.mean(list(mine.values())) / max(np.mean(list(theirs.values())), 1e-9)),
        left_out=tuple(name for name in mine if name not in ratios),
    )


def fairest(columns: Scores, method: str) -> str | None:
    """The column of a flat method with the highest mean over sets at 2,000: the better of its ways."""
    ways = [name for name in columns if name.startswith(f"{method}, ")]
    means = {way: np.mean(list(set_means(columns[way].values()).values())) for way in ways}
    return max(ways, key=lambda way: float(means[way])) if ways else None


def comparisons(columns: Scores) -> list[tuple[str, Comparison]]:
    """What the summary lines tell of: (in words, the comparison)."""
    wanted: list[tuple[str, str | None, int]] = []
    for method in ("slic", "felzenszwalb"):
        best = fairest(columns, method)
        wanted += [(f"all masks of {method}", best, ALL), (f"2,000 masks of {method} ({best})", best, AT)]
    made = fairest(columns, "slic-2000")
    wanted.insert(2, ("slic made for 2,000 masks", made, ALL))
    wanted += [(name, name, AT) for name in ("watershed", "components", "first")]
    found = [(words, compare(columns, "ours", other, at)) for words, other, at in wanted if other]
    return [(words, comparison) for words, comparison in found if comparison]


def markdown(cells: Sequence[Cell], heading: Sequence[str]) -> str:
    """The report: summary lines, sets against methods, then each set by size of structure."""
    columns = columns_of(cells)
    lines = ["# Quality of mask proposals", "", *heading, "", "## Ours at 2,000 proposals", ""]
    lines += [f"- {summary_line(words, c)}" for words, c in comparisons(columns)]
    lines += ["", "## Mean best IoU at 2,000 proposals", "", *_overview(columns), ""]
    for dataset in sorted({cell.dataset for cell in cells}):
        members = [cell for cell in cells if cell.dataset == dataset]
        lines += [f"## {dataset}", "", *_set_table(members), ""]
    return "\n".join(lines)


def summary_line(words: str, comparison: Comparison) -> str:
    """A comparison in one line."""
    line = (
        f"ours / {words}: {comparison.mean_of_ratios:.2f} (mean of the ratios of "
        f"{len(comparison.per_set)} sets), {comparison.ratio_of_means:.2f} (ratio of the means)"
    )
    worst = sorted(comparison.per_set, key=lambda name: comparison.per_set[name])[:2]
    line += "; least " + ", ".join(f"{name} {comparison.per_set[name]:.2f}" for name in worst)
    return line + (f"; no ratio: {', '.join(comparison.left_out)}" if comparison.left_out else "")


def _overview(columns: Scores) -> list[str]:
    names = list(columns)
    means = {name: set_means(columns[name].values()) for name in names}
    sets = sorted({dataset for values in means.values() for dataset in values})
    rows = [
        [dataset, *(f"{means[n][dataset]:.3f}" if dataset in means[n] else "" for n in names)]
        for dataset in sets
    ]
    whole = [np.mean([means[n][s] for s in sets]) if set(sets) <= set(means[n]) else None for n in names]
    rows.append(["mean of sets", *("" if value is None else f"{value:.3f}" for value in whole)])
    return table(["data set", *names], rows)


def _set_table(cells: Sequence[Cell]) -> list[str]:
    heading = ["size", "method", "structures", "atoms: IoU", "Dice", *(f"n = {n:,}" for n in COUNTS), "all"]
    rows = []
    costs: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for cell in cells:
        for ranking in cell.scores:
            name = f"{cell.method}, {ranking}" if ranking else cell.method
            costs[name].append((cell.seconds, cell.num_bytes))
    for name, scores in columns_of(cells).items():
        scored = summarize(scores.values(), SCORING)
        seconds, num_bytes = np.mean(costs[name], axis=0)
        for summary in [*scored.datasets, *scored.size_classes]:
            whole = summary.group == summary.dataset
            cost = [f"{seconds:.1f}", f"{num_bytes / 1e6:.2f}"] if whole else ["", ""]
            rows.append(["every" if whole else summary.group, name, *_cells(summary), *cost])
    order = {name: place for place, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    rows.sort(key=lambda row: order[row[0]])
    return table([*heading, "CPU s", "MB"], rows)


def _cells(summary: Summary) -> list[str]:
    """Counts, the limit, then IoU with the share found at IoU 0.5 and at 0.7, a cell for each n."""
    half, most = summary.recall
    found = [f"{i:.3f} ({h:.0%}, {m:.0%})" for i, h, m in zip(summary.iou, half, most, strict=True)]
    return [str(summary.structures), f"{summary.limit_iou:.3f}", f"{summary.limit_dice:.3f}", *found]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]


def document(cells: Sequence[Cell]) -> dict[str, Any]:
    """All of it as plain values: comparisons, then sets and sizes by column, then the cost of each cell."""
    columns = columns_of(cells)
    summaries: dict[str, dict[str, Any]] = {}
    for name, scores in columns.items():
        of_set: dict[str, list[ScanScore]] = defaultdict(list)
        for scored in scores.values():
            of_set[scored.dataset].append(scored)
        summaries[name] = {}
        for dataset, members in sorted(of_set.items()):
            whole = summarize(members, SCORING)
            parts = {s.group: asdict(s) for s in whole.size_classes}
            summaries[name][dataset] = {"every": asdict(whole.datasets[0])} | parts
    costs = [
        {"scan": c.scan_id, "method": c.method, "seconds": c.seconds, "bytes": c.num_bytes} for c in cells
    ]
    return {
        "counts": list(COUNTS),
        "comparisons": {words: asdict(c) for words, c in comparisons(columns)},
        "columns": summaries,
        "costs": costs,
    }
