"""Tables of an evaluation: Markdown, CSV with one row per case, and JSON.

*Reads* an `Evaluation`. *Writes* text. Undefined numbers are "-" in Markdown, empty in CSV and null in JSON.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.scores import MEASURES, Evaluation, Interval, Measure, Score, bootstrap, plain

TITLES: dict[Measure, str] = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "asd_mm": "ASD (mm)"}
"""Name of each measure in tables."""

_EXPLANATION = """\
If a target has a structure but nothing was predicted (missed), Dice is 0, and HD95 and ASD have no value;
they are means over the other cases. If a target lacks a structure (absent), it has no Dice and is in no mean;
"drawn though absent" counts how often something was predicted. Brackets: 95 % intervals, bootstrap over
targets; - for fewer than two targets. Measured on the store's grid.
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Means and intervals of an evaluation."""

    evaluation: Evaluation
    """All scores."""
    overall: dict[Measure, Interval]
    """Interval of the mean over structures."""
    each: dict[Measure, list[Interval]]
    """Interval of each structure's mean, in the order of `evaluation.structures`."""

    @classmethod
    def of(cls, evaluation: Evaluation, *, num_resamples: int = 2000, seed: int = 0) -> Table:
        """Return the means and intervals of an evaluation.

        Args:
            evaluation: All scores.
            num_resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.
        """
        found = {
            measure: bootstrap(evaluation, measure, num_resamples=num_resamples, seed=seed)
            for measure in MEASURES
        }
        return cls(
            evaluation=evaluation,
            overall={measure: interval for measure, (interval, _) in found.items()},
            each={measure: intervals for measure, (_, intervals) in found.items()},
        )

    def structure_rows(self) -> list[tuple[str, ...]]:
        """Return one row per structure, then the mean over structures, with the columns of `COLUMNS`."""
        rows = []
        for number, one in enumerate(self.evaluation.structures):
            means = [_mean_text(m, getattr(one, m), self.each[m][number]) for m in MEASURES]
            counts = (one.num_cases, one.num_missed, one.num_absent, one.num_drawn_though_absent)
            name = f"{one.dataset} / {one.label} / {one.structure}".removeprefix(" / ")
            rows.append((name, *means, *map(str, counts)))
        means = [_mean_text(m, self.evaluation.mean(m), self.overall[m]) for m in MEASURES]
        structures = self.evaluation.structures
        totals = [
            str(sum(getattr(one, name) for one in structures))
            for name in ("num_cases", "num_missed", "num_absent", "num_drawn_though_absent")
        ]
        rows.append(("mean of structures", *means, *totals))
        return rows

    def narrow_rows(self) -> list[tuple[str, ...]]:
        """Return the rows for narrow terminals (`NARROW_COLUMNS`): the last two columns are combined."""
        return [
            (*means, absent if absent == "0" else f"{absent} ({drawn} drawn)")
            for *means, absent, drawn in self.structure_rows()
        ]

    def to_markdown(self, title: str, facts: Sequence[str] = ()) -> str:
        """Return a page with all tables and an explanation.

        Args:
            title: Title of the page.
            facts: Lines that describe the measurement.
        """
        parts = [f"# {title}\n", *(f"- {fact}" for fact in facts), "", _EXPLANATION]
        parts += ["## By structure\n", _markdown(COLUMNS, self.structure_rows())]
        if self.evaluation.unprompted:
            parts += ["## Not evaluated: no reference has the structure\n"]
            rows = [
                (f"{u.dataset} / {u.label} / {u.structure}", " ".join(u.references))
                for u in self.evaluation.unprompted
            ]
            parts.append(_markdown(("structure", "references"), rows))
        if self.evaluation.failed:
            parts += ["## Failed\n"]
            parts.append(
                _markdown(
                    ("target", "label map", "reason"),
                    [(f.target, f.label, f.reason) for f in self.evaluation.failed],
                )
            )
        parts += ["## By case\n", _markdown(_CASE_COLUMNS, map(_case_row, self.evaluation.scores))]
        return "\n".join(parts)

    def to_csv(self) -> str:
        """Return CSV text with one row per score (prompt, target and structure)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = ("dataset", "label", "structure", "target")
        counts = ("expected_voxels", "predicted_voxels", "common_voxels")
        writer.writerow((*names, "references", "state", *MEASURES, *counts))
        for score in self.evaluation.scores:
            values = [_plain_text(getattr(score, measure)) for measure in MEASURES]
            writer.writerow(
                (
                    *(getattr(score, name) for name in names),
                    " ".join(score.references),
                    score.state,
                    *values,
                    *(getattr(score, name) for name in counts),
                )
            )
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Return means, intervals, counts and single scores, as plain values without NaN."""
        structures = []
        for number, one in enumerate(self.evaluation.structures):
            measured: dict[str, Any] = {
                measure: _with_interval(getattr(one, measure), self.each[measure][number])
                for measure in MEASURES
            }
            structures.append(
                {
                    "dataset": one.dataset,
                    "label": one.label,
                    "structure": one.structure,
                    **measured,
                    "num_cases": one.num_cases,
                    "num_missed": one.num_missed,
                    "num_absent": one.num_absent,
                    "num_drawn_though_absent": one.num_drawn_though_absent,
                }
            )
        return {
            "mean": {m: _with_interval(self.evaluation.mean(m), self.overall[m]) for m in MEASURES},
            "structures": structures,
            "not_in_references": [
                {
                    "dataset": one.dataset,
                    "label": one.label,
                    "structure": one.structure,
                    "references": list(one.references),
                }
                for one in self.evaluation.unprompted
            ],
            "failed": [
                {"target": one.target, "label": one.label, "reason": one.reason}
                for one in self.evaluation.failed
            ],
            "cases": [_case_json(score) for score in self.evaluation.scores],
        }


COLUMNS = ("structure", *TITLES.values(), "cases", "missed", "absent", "drawn though absent")
NARROW_COLUMNS = COLUMNS[:-1]
_CASE_COLUMNS = ("target", "structure", "references", *TITLES.values(), "state")


def _case_row(score: Score) -> tuple[str, ...]:
    values = [_number(measure, getattr(score, measure)) for measure in MEASURES]
    return (
        score.target,
        f"{score.label} / {score.structure}",
        " ".join(score.references),
        *values,
        score.state,
    )


def _case_json(score: Score) -> dict[str, Any]:
    return {
        "dataset": score.dataset,
        "label": score.label,
        "structure": score.structure,
        "target": score.target,
        "references": list(score.references),
        "state": score.state,
        **{measure: plain(getattr(score, measure)) for measure in MEASURES},
        "expected_voxels": score.expected_voxels,
        "predicted_voxels": score.predicted_voxels,
        "common_voxels": score.common_voxels,
    }


def _with_interval(mean: float, interval: Interval) -> dict[str, float | None]:
    return {"mean": plain(mean), "low": plain(interval.low), "high": plain(interval.high)}


def _mean_text(measure: Measure, mean: float, interval: Interval) -> str:
    if math.isnan(mean):
        return "-"
    inside = "-"
    if not math.isnan(interval.low):
        inside = f"{_number(measure, interval.low)}, {_number(measure, interval.high)}"
    return f"{_number(measure, mean)} [{inside}]"


def _number(measure: Measure, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if measure == "dice" else f"{value:.2f}"


def _plain_text(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"
