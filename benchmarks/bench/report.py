"""Tables and a plot of the cells that are done.

Dice of a cell: for each target the mean over prompts; of "mean of parts" the mean over the structures of the
target. An interval is that of 95 %: patients and seeds are drawn again with replacement, both at once, 2,000
times; with one seed patients alone. "Over scratch" is the difference to the same fine-tuning from scratch on
the same patients and seeds, with its interval. Drawn / expected: median of the ratio of voxels, all
structures together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.arms import ARMS
from benchmarks.bench.plan import CARRIED, CLASSIFY, FINETUNE, FIVE_SHOT, ONE_SHOT, PRETRAIN
from benchmarks.bench.sets import SetDescription
from benchmarks.bench.uses import RIVAL_TITLES
from benchmarks.curves import draw_curves
from benchmarks.rivals import WHOLE

RESAMPLES = 2000
TITLES = {**RIVAL_TITLES, **{name: arm.title for name, arm in ARMS.items()}}
Cells = Sequence[Mapping[str, Any]]
PARTS, UNSEEN = "mean of parts", "unseen shapes"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A value of each seed and patient; NaN where there is none."""

    values: NDArray[np.float64]
    """(seeds, patients)"""
    patients: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Over all values."""
        return float(np.nanmean(self.values)) if np.isfinite(self.values).any() else float("nan")

    def interval(self) -> tuple[float, float]:
        """95 % of the means of patients and seeds drawn again."""
        S, P = self.values.shape
        if not np.isfinite(self.values).any():
            return float("nan"), float("nan")
        generator = np.random.default_rng(0)
        seeds = generator.integers(S, size=(RESAMPLES, S))
        patients = generator.integers(P, size=(RESAMPLES, P))
        drawn = self.values[seeds[:, :, None], patients[:, None, :]]  # (RESAMPLES, S, P)
        count = np.isfinite(drawn).sum(axis=(1, 2))
        means = np.nansum(drawn, axis=(1, 2))[count > 0] / count[count > 0]
        low, high = np.percentile(means, (2.5, 97.5))
        return float(low), float(high)

    def minus(self, other: Table) -> Table | None:
        """The difference where both have a value; None where they share nothing."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        patients = [patient for patient in self.patients if patient in other.patients]
        if not seeds or not patients:
            return None
        mine, theirs = (
            table.values[
                np.ix_([table.seeds.index(s) for s in seeds], [table.patients.index(p) for p in patients])
            ]
            for table in (self, other)
        )
        return Table(values=mine - theirs, patients=tuple(patients), seeds=tuple(seeds))

    def text(self, *, sign: bool = False) -> str:
        """Mean and interval."""
        if not np.isfinite(self.mean):
            return ""
        low, high = self.interval()
        form = "+.2f" if sign else ".2f"
        return f"{self.mean:{form}} ({low:{form}} to {high:{form}})"


def table_of(cells: Cells, about: SetDescription, measure: Callable[[Mapping[str, Any]], float]) -> Table:
    """Seeds and patients of the cells of one arm and use, with a measure of each answer's scores."""
    found: dict[tuple[int, str], list[float]] = {}
    for cell in cells:
        for answer in cell["answers"]:
            value = measure(answer["scores"])
            if np.isfinite(value):
                found.setdefault((cell["seed"], about.patient_of(answer["target"])), []).append(value)
    seeds = tuple(sorted({seed for seed, _ in found}))
    patients = tuple(sorted({patient for _, patient in found}))
    values = np.full((len(seeds), len(patients)), np.nan)
    for (seed, patient), several in found.items():
        values[seeds.index(seed), patients.index(patient)] = np.mean(several)
    return Table(values=values, patients=patients, seeds=seeds)


def mean_dice(names: Sequence[str]) -> Callable[[Mapping[str, Any]], float]:
    """The mean Dice of those of the structures that a target has; NaN for none."""

    def measure(scores: Mapping[str, Any]) -> float:
        values = [scores[name]["dice"] for name in names if name in scores]
        return float(np.mean(values)) if values else float("nan")

    return measure


def columns_of(about: SetDescription, structures: Sequence[str]) -> dict[str, list[str]]:
    """Columns of Dice: the mean of the parts, of the unseen ones, and each structure if there are few."""
    parts = [name for name in structures if name != WHOLE]
    columns = {PARTS: [name for name in parts if name not in about.unseen] or parts}
    if about.unseen and any(name in about.unseen for name in parts):
        columns[UNSEEN] = [name for name in parts if name in about.unseen]
    if WHOLE in structures:
        columns[WHOLE] = [WHOLE]
    if 1 < len(parts) <= 4:
        columns |= {name: [name] for name in parts}
    return columns


def use_title(use: str) -> str:
    """What a use is called."""
    if use.startswith((FINETUNE, CARRIED)):
        _, count, steps = use.split("-")
        scans = "all labelled scans" if count == "all" else f"{count} labelled scan{'s' * (count != '1')}"
        more = " and labels carried over to the others" if use.startswith(CARRIED) else ""
        return f"fine-tuned on {scans}{more}, {steps} steps"
    return {ONE_SHOT: "one reference", FIVE_SHOT: "five references", CLASSIFY: "frozen classification"}[use]


def ordered(cells: Cells, key: str, order: Sequence[str]) -> list[str]:
    """Values of a key, in an order; others after it."""
    there = dict.fromkeys(cell[key] for cell in cells)
    return [name for name in order if name in there] + [name for name in there if name not in order]


def uses_of(cells: Cells) -> list[str]:
    """Uses of segmentation: in context first, then by labels and steps."""

    def rank(use: str) -> tuple[int, int, int]:
        if not use.startswith((FINETUNE, CARRIED)):
            return (0, 0, (ONE_SHOT, FIVE_SHOT).index(use))
        _, count, steps = use.split("-")
        return (1 + use.startswith(CARRIED), 10**6 if count == "all" else int(count), int(steps))

    return sorted({cell["use"] for cell in cells if "answers" in cell}, key=rank)


def set_table(cells: Cells, about: SetDescription) -> list[str]:
    """The table of one set: a row for each use and arm."""
    answered = [cell for cell in cells if cell.get("answers")]
    if not answered:
        return []
    structures = list(
        dict.fromkeys(name for cell in answered for a in cell["answers"] for name in a["scores"])
    )
    columns = columns_of(about, structures)
    head = [*columns, "over scratch", "drawn / expected", "seeds"]
    lines = ["|  | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    order = list(TITLES)
    for use in uses_of(answered):
        lines.append(f"| **{use_title(use)}** |" + " |" * len(head))
        own = [cell for cell in answered if cell["use"] == use]
        scratch = [cell for cell in own if cell["arm"] == "scratch"]
        for arm in ordered(own, "arm", order):
            some = [cell for cell in own if cell["arm"] == arm]
            tables = [table_of(some, about, mean_dice(names)) for names in columns.values()]
            ahead = ""
            if scratch and arm != "scratch":
                difference = tables[0].minus(table_of(scratch, about, mean_dice(columns[PARTS])))
                ahead = difference.text(sign=True) if difference else ""
            ratios = [drawn_ratio(answer["scores"]) for cell in some for answer in cell["answers"]]
            row = [*(table.text() for table in tables), ahead, f"{np.nanmedian(ratios):.2f}", str(len(some))]
            lines.append(f"| {TITLES[arm]} | " + " | ".join(row) + " |")
    return lines


def drawn_ratio(scores: Mapping[str, Any]) -> float:
    """Drawn / expected of everything together, or of the only structure."""
    name = WHOLE if WHOLE in scores else next(iter(scores), "")
    return float(scores[name]["ratio"]) if name else float("nan")


def overview(cells: Cells, sets: Mapping[str, SetDescription]) -> list[str]:
    """Mean of parts: a row for each arm, a column for each set, one table for each use."""
    lines: list[str] = []
    for use in uses_of(cells):
        own = [cell for cell in cells if cell["use"] == use and cell.get("answers")]
        names = [name for name in sets if any(cell["set"] == name for cell in own)]
        lines += [
            f"{use_title(use)[0].upper()}{use_title(use)[1:]}:",
            "",
            "|  | " + " | ".join(sets[name].title for name in names) + " |",
            "|---|" + "--:|" * len(names),
        ]
        for arm in ordered(own, "arm", list(TITLES)):
            row = []
            for name in names:
                some = [cell for cell in own if (cell["arm"], cell["set"]) == (arm, name)]
                row.append(_parts_table(some, sets[name]).text() if some else "")
            lines.append(f"| {TITLES[arm]} | " + " | ".join(row) + " |")
        lines.append("")
    return lines


def _parts_table(cells: Cells, about: SetDescription) -> Table:
    structures = list(dict.fromkeys(name for cell in cells for a in cell["answers"] for name in a["scores"]))
    return table_of(cells, about, mean_dice(columns_of(about, structures)[PARTS]))


def class_table(cells: Cells, sets: Mapping[str, SetDescription]) -> list[str]:
    """AUC of the frozen classification: mean over seeds, least and most."""
    own = [cell for cell in cells if cell["use"] == CLASSIFY]
    if not own:
        return []
    names = [name for name in sets if any(cell["set"] == name for cell in own)]
    lines = [
        "Frozen encoder, logistic regression: AUC on the targets, mean of the seeds (least to most).",
        "",
        "|  | " + " | ".join(sets[name].title for name in names) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for arm in ordered(own, "arm", list(TITLES)):
        row = []
        for name in names:
            values = [cell["classes"]["auc"] for cell in own if (cell["arm"], cell["set"]) == (arm, name)]
            text = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""
            row.append(text)
        lines.append(f"| {TITLES[arm]} | " + " | ".join(row) + " |")
    return [*lines, ""]


def pretraining_table(cells: Cells, sets: Mapping[str, SetDescription]) -> list[str]:
    """Loss before and after, and seconds, of every pretraining."""
    own = [cell for cell in cells if cell["use"] == PRETRAIN]
    if not own:
        return []
    lines = [
        "Pretraining: mean loss of the first and the last tenth of the steps (losses differ), and seconds.",
        "",
        "| set | arm | seeds | steps | loss | seconds |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name in sets:
        for arm in ordered([cell for cell in own if cell["set"] == name], "arm", list(TITLES)):
            some = [cell for cell in own if (cell["set"], cell["arm"]) == (name, arm)]
            first, last, seconds = (
                np.mean([cell[key] for cell in some]) for key in ("first_loss", "last_loss", "seconds")
            )
            lines.append(
                f"| {sets[name].title} | {TITLES[arm]} | {len(some)} | {some[0]['steps']} | "
                f"{first:.3f} to {last:.3f} | {seconds:,.0f} |"
            )
    return [*lines, ""]


def to_markdown(cells: Cells, sets: Mapping[str, SetDescription]) -> str:
    """All tables."""
    lines = ["# Test bench", "", "Dice, mean and 95 % interval over patients and seeds.", ""]
    lines += overview(cells, sets)
    for name, about in sets.items():
        table = set_table([cell for cell in cells if cell["set"] == name], about)
        if table:
            lines += [f"## {about.title[0].upper()}{about.title[1:]}", "", *table, ""]
    more = class_table(cells, sets) + pretraining_table(cells, sets)
    return "\n".join([*lines, *(["## Further", "", *more] if more else [])])


def draw(cells: Cells, sets: Mapping[str, SetDescription], pools: Mapping[str, int], path: Path) -> None:
    """Write the plot: Dice over labelled scans, a panel a set, at the number of steps with most labels."""
    panels: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for name, about in sets.items():
        own = [cell for cell in cells if cell["set"] == name and cell.get("answers")]
        tuned = [cell for cell in own if cell["use"].startswith(FINETUNE)]
        steps = _most_common_steps(tuned)
        arms: dict[str, list[list[tuple[float, float]]]] = {}
        for arm in ordered(tuned, "arm", list(TITLES)):
            curves = {}
            for cell in (c for c in tuned if c["arm"] == arm and c["use"].endswith(f"-{steps}")):
                count = cell["use"].split("-")[1]
                x = float(pools[name] if count == "all" else int(count))
                curves.setdefault(cell["seed"], []).append((x, _parts_table([cell], about).mean))
            arms[_plain(arm)] = [sorted(points) for points in curves.values()]
        most = max((x for curves in arms.values() for points in curves for x, _ in points), default=1.0)
        for arm in ordered(own, "arm", list(RIVAL_TITLES)):
            shown = [cell for cell in own if cell["arm"] == arm and cell["use"] == ONE_SHOT]
            if arm in RIVAL_TITLES and shown:
                level = _parts_table(shown, about).mean
                arms[f"{_plain(arm)}, one reference"] = [[(0.0, level), (most, level)]]
        if any(arms.values()):
            panels[f"{about.title}: mean Dice of parts after {steps} steps"] = arms
    draw_curves(path, panels, x_label="labelled scans", y_top=1.0, names_below=True)


def _most_common_steps(cells: Cells) -> str:
    """The number of steps with most numbers of labels, the larger of two."""
    counts: dict[str, set[str]] = {}
    for cell in cells:
        _, count, steps = cell["use"].split("-")
        counts.setdefault(steps, set()).add(count)
    return max(counts, key=lambda steps: (len(counts[steps]), int(steps)), default="0")


def _plain(arm: str) -> str:
    return TITLES[arm].replace("*", "").replace("`", "")
