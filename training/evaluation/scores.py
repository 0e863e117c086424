"""Results of an evaluation: the score of each case, means per structure, and confidence intervals.

Reads:  voxel counts and surface distances of each prompt, target and structure.
Writes: means, and 95 % intervals by bootstrap over targets.
Bounds: if a target lacks a structure, the case has no Dice and is in no mean; the number of such cases is
        reported, and in how many of them something was predicted. If the target has the structure and nothing
        was predicted (missed), the Dice is 0 and there is no surface distance; the number of these cases is
        reported, too. Surface distances are means over the cases where the structure was found.
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
    """The segmentation quality of one structure in one target."""

    dataset: str
    """Data set of the scans."""
    label: str
    """Name of the label map."""
    structure: str
    """Name of the label value, or "whole"."""
    target: str
    """Id of the target."""
    references: tuple[str, ...]
    """Ids of the references; with ensembling, one entry per prompt, with its ids joined by "+"."""
    expected_voxels: int
    """Voxels of the structure in the label map."""
    predicted_voxels: int
    """Predicted voxels."""
    common_voxels: int
    """Voxels in both."""
    hd95_mm: float = math.nan
    """95th percentile of the Hausdorff distance; NaN if it was not measured or one mask is empty."""
    asd_mm: float = math.nan
    """Average symmetric surface distance; NaN if it was not measured or one mask is empty."""

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|) in [0, 1]; NaN if the target lacks the structure."""
        if not self.expected_voxels:
            return math.nan
        return 2 * self.common_voxels / (self.expected_voxels + self.predicted_voxels)

    @property
    def state(self) -> Literal["found", "missed", "absent", "drawn though absent"]:
        """Whether the target has the structure, and whether something was predicted ("drawn")."""
        if self.expected_voxels:
            return "found" if self.predicted_voxels else "missed"
        return "drawn though absent" if self.predicted_voxels else "absent"


@dataclass(frozen=True, kw_only=True)
class Unprompted:
    """A structure that all references of a prompt lack, so that it could not be segmented with it."""

    dataset: str
    """Data set of the scans."""
    label: str
    """Name of the label map."""
    structure: str
    """Name of the label value, or "whole"."""
    references: tuple[str, ...]
    """Ids of the references of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A target that could not be read."""

    target: str
    """Id of the target."""
    label: str
    """Name of the label map."""
    reason: str
    """Message of the error."""


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """Means and counts of one structure over all its cases."""

    dataset: str
    """Data set of the scans."""
    label: str
    """Name of the label map."""
    structure: str
    """Name of the label value, or "whole"."""
    dice: float
    """Mean over the cases whose target has the structure; NaN if there are none."""
    num_cases: int
    """Number of cases whose target has the structure."""
    num_absent: int
    """Number of cases whose target lacks the structure; not in the mean."""
    num_drawn_though_absent: int
    """Number of cases among these in which something was predicted."""
    num_missed: int
    """Number of cases whose target has the structure and nothing was predicted: Dice 0, no distance."""
    hd95_mm: float
    """Mean over the cases in which the structure was found; NaN if there are none or it was not measured."""
    asd_mm: float
    """Mean over the same cases."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores of an evaluation, with their means."""

    scores: tuple[Score, ...]
    """One score per prompt, target and structure."""
    unprompted: tuple[Unprompted, ...] = ()
    """Structures that all references of a prompt lack; they have no scores with this prompt."""
    failed: tuple[Failed, ...] = ()
    """Targets that could not be read."""

    @property
    def num_unprompted(self) -> int:
        """Number of structures that all references of a prompt lack, summed over prompts."""
        return len(self.unprompted)

    @property
    def groups(self) -> dict[tuple[str, str, str], list[Score]]:
        """Scores by structure (data set, label map, name), in the order of their first score."""
        groups: dict[tuple[str, str, str], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.dataset, score.label, score.structure), []).append(score)
        return groups

    @property
    def structures(self) -> tuple[StructureSummary, ...]:
        """A summary of each structure, in the order of `groups`."""
        return tuple(_summary(*names, scores) for names, scores in self.groups.items())

    @property
    def mean_dice(self) -> float:
        """Mean Dice over structures with equal weights; NaN if there are none."""
        return _mean(summary.dice for summary in self.structures)

    def mean(self, measure: Measure) -> float:
        """Return the mean of a measure over structures with equal weights; NaN if there are none."""
        return _mean(getattr(summary, measure) for summary in self.structures)

    def to_json(self) -> dict[str, Any]:
        """Return overall means, counts and means per structure, as plain values without the single scores."""
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
    """95 % confidence interval of a mean; NaN if there are too few targets."""

    low: float
    """Lower bound."""
    high: float
    """Upper bound."""


def bootstrap(
    evaluation: Evaluation, measure: Measure, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[Interval, list[Interval]]:
    """Return the 95 % intervals of the mean over structures, and of each structure's mean.

    Targets are resampled with replacement within their data set, with all their cases, because scores of
    several prompts on one target are not independent (percentile bootstrap, Efron and Tibshirani 1993). A
    mean over fewer than two targets has no interval.

    Args:
        evaluation: All scores.
        measure: The measure to average.
        num_resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    groups = list(evaluation.groups.values())
    targets = list(dict.fromkeys((score.dataset, score.target) for score in evaluation.scores))
    sums, counts = np.zeros((len(groups), len(targets))), np.zeros((len(groups), len(targets)))
    column_of = {target: column for column, target in enumerate(targets)}
    for row, scores in enumerate(groups):
        for score in scores:
            value = getattr(score, measure)
            if not math.isnan(value):
                sums[row, column_of[score.dataset, score.target]] += value
                counts[row, column_of[score.dataset, score.target]] += 1
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
    """Return how often each target is drawn in each resample, (number, num_targets)."""
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
    """Return a number for JSON, which has no NaN: None for NaN."""
    return None if math.isnan(value) else value
