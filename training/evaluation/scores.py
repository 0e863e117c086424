"""What an evaluation comes to: scores a case, means a structure, and how sure they are.

Reads:  voxel counts and surface distances of each prompt, target and structure.
Writes: means, and 95 % intervals by bootstrap over targets.
Bounds: a structure that a target lacks has no Dice there and counts nowhere; how many these are is stated,
        and how many of them were drawn all the same. One that the target has and that was missed has Dice 0
        and no surface distance; how many these are is stated too. Surface distances are means over what was
        found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["dice", "hd95_mm", "asd_mm"]
MEASURES: tuple[Measure, ...] = ("dice", "hd95_mm", "asd_mm")

_COVERED_PERCENT = 95.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one structure was found in one target."""

    dataset: str
    """Collection of the scans."""
    label: str
    """Label map."""
    structure: str
    """Name of the value, or "whole"."""
    target: str
    """Id of the target."""
    references: tuple[str, ...]
    """Ids of the references; ensembled, one entry a prompt, its ids joined by "+"."""
    expected_voxels: int
    """Voxels of the structure by the label."""
    predicted_voxels: int
    """Voxels that were drawn."""
    common_voxels: int
    """Voxels of both."""
    hd95_mm: float = math.nan
    """95th percentile of the Hausdorff distance; NaN where it was not measured or one mask is empty."""
    asd_mm: float = math.nan
    """Average symmetric surface distance; NaN where it was not measured or one mask is empty."""

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|) in [0, 1]; NaN where the target lacks the structure."""
        if not self.expected_voxels:
            return math.nan
        return 2 * self.common_voxels / (self.expected_voxels + self.predicted_voxels)

    @property
    def state(self) -> Literal["found", "missed", "absent", "drawn though absent"]:
        """Whether the target has the structure, and whether something was drawn."""
        if self.expected_voxels:
            return "found" if self.predicted_voxels else "missed"
        return "drawn though absent" if self.predicted_voxels else "absent"


@dataclass(frozen=True, kw_only=True)
class Unprompted:
    """A structure that all references of a prompt lack: it could not be asked for."""

    dataset: str
    label: str
    structure: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A target that could not be read."""

    target: str
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """One structure over all its cases."""

    dataset: str
    """Collection of the scans."""
    label: str
    """Label map."""
    structure: str
    """Name of the value, or "whole"."""
    dice: float
    """Mean over prompts and targets that have it; NaN where none has."""
    num_cases: int
    """How many these are."""
    num_absent: int
    """Cases whose target lacks it; not in the mean."""
    num_drawn_though_absent: int
    """Those of them where something was drawn."""
    num_missed: int
    """Cases whose target has it and where nothing was drawn: Dice 0, no surface distance."""
    hd95_mm: float
    """Mean over the cases where it was found; NaN where there is none or nothing was measured."""
    asd_mm: float
    """The same."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores, and what they come to."""

    scores: tuple[Score, ...]
    """By prompt, target and structure."""
    unprompted: tuple[Unprompted, ...] = ()
    """Structures that a prompt's references all lack; they have no scores there."""
    failed: tuple[Failed, ...] = ()
    """Targets that could not be read."""

    @property
    def num_unprompted(self) -> int:
        """Structures that a prompt's references all lack, counted over prompts."""
        return len(self.unprompted)

    @property
    def groups(self) -> dict[tuple[str, str, str], list[Score]]:
        """The scores of each structure (data set, label map, name), in the order in which they were met."""
        groups: dict[tuple[str, str, str], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.dataset, score.label, score.structure), []).append(score)
        return groups

    @property
    def structures(self) -> tuple[StructureSummary, ...]:
        """A summary of each structure, in the order in which they were met."""
        return tuple(_summary(*names, scores) for names, scores in self.groups.items())

    @property
    def mean_dice(self) -> float:
        """Mean over structures, each of the same weight; NaN where there is none."""
        return _mean(summary.dice for summary in self.structures)

    def mean(self, measure: Measure) -> float:
        """Mean of a measure over structures, each of the same weight; NaN where there is none."""
        return _mean(getattr(summary, measure) for summary in self.structures)

    def to_json(self) -> dict[str, Any]:
        """Return the means, the counts and each structure's mean, without the single scores."""
        return {
            "mean_dice": plain(self.mean_dice),
            "mean_hd95_mm": plain(self.mean("hd95_mm")),
            "mean_asd_mm": plain(self.mean("asd_mm")),
            "num_cases": len(self.scores),
            "num_unprompted": self.num_unprompted,
            "structures": [
                {
                    "dataset": summary.dataset,
                    "label": summary.label,
                    "structure": summary.structure,
                    **{measure: plain(getattr(summary, measure)) for measure in MEASURES},
                    "num_cases": summary.num_cases,
                    "num_missed": summary.num_missed,
                    "num_absent": summary.num_absent,
                    "num_drawn_though_absent": summary.num_drawn_though_absent,
                }
                for summary in self.structures
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a mean lies with 95 % confidence; NaN where it cannot be told."""

    low: float
    high: float


def bootstrap(
    evaluation: Evaluation, measure: Measure, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[Interval, list[Interval]]:
    """Return the 95 % intervals of the mean over structures, and of each structure's mean.

    Targets are drawn with replacement within their data set, all their cases with them: prompts put to one
    target are no independent cases (percentile bootstrap, Efron and Tibshirani 1993). A mean over fewer than
    two targets has no interval.

    Args:
        evaluation: All scores.
        measure: Which number.
        num_resamples: Draws.
        seed: Of the draws.
    """
    groups = list(evaluation.groups.values())
    targets = list(dict.fromkeys((score.dataset, score.target) for score in evaluation.scores))
    sums, counts = np.zeros((len(groups), len(targets))), np.zeros((len(groups), len(targets)))
    place = {target: column for column, target in enumerate(targets)}
    for row, scores in enumerate(groups):
        for score in scores:
            value = getattr(score, measure)
            if not math.isnan(value):
                sums[row, place[score.dataset, score.target]] += value
                counts[row, place[score.dataset, score.target]] += 1
    weights = _draws(targets, num_resamples, np.random.default_rng(seed))
    drawn = weights @ counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ sums.T) / drawn  # (num_resamples, structures)
    known = np.isfinite(means)
    with np.errstate(invalid="ignore", divide="ignore"):
        overall = np.where(known, means, 0).sum(axis=1) / known.sum(axis=1)
    num_targets = (counts > 0).sum(axis=1)
    each = [_interval(means[:, row], int(num_targets[row])) for row in range(len(groups))]
    return _interval(overall, int((counts > 0).any(axis=0).sum())), each


def _draws(
    targets: Sequence[tuple[str, str]], number: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """How often each target is drawn in each resample, (number, targets)."""
    weights = np.zeros((number, len(targets)))
    for dataset in dict.fromkeys(dataset for dataset, _ in targets):
        columns = [column for column, (own, _) in enumerate(targets) if own == dataset]
        chances = np.full(len(columns), 1 / len(columns))
        weights[:, columns] = generator.multinomial(len(columns), chances, size=number)
    return weights


def _interval(means: NDArray[np.float64], num_targets: int) -> Interval:
    known = means[np.isfinite(means)]
    if num_targets < 2 or not known.size:
        return Interval(low=math.nan, high=math.nan)
    rest = (100 - _COVERED_PERCENT) / 2
    low, high = np.percentile(known, (rest, 100 - rest))
    return Interval(low=float(low), high=float(high))


def _summary(dataset: str, label: str, structure: str, scores: Sequence[Score]) -> StructureSummary:
    absent = [score for score in scores if not score.expected_voxels]
    return StructureSummary(
        dataset=dataset,
        label=label,
        structure=structure,
        dice=_mean(score.dice for score in scores),
        num_cases=len(scores) - len(absent),
        num_absent=len(absent),
        num_drawn_though_absent=sum(score.predicted_voxels > 0 for score in absent),
        num_missed=sum(score.state == "missed" for score in scores),
        hd95_mm=_mean(score.hd95_mm for score in scores),
        asd_mm=_mean(score.asd_mm for score in scores),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else value
