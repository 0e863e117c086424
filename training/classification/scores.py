"""How well classes are told apart: AUC, balanced accuracy, and how sure these are.

Reads:  probabilities and truth (N, K).
Writes: `ClassScores`. An AUC is of one class against the rest: the chance that a scan of the class scores
        higher than one of the rest, ties one half (Hanley and McNeil 1982); the macro AUC is the mean over
        classes that have both. Balanced accuracy is the mean over classes of the part that is found: with
        one label a scan, the most probable class counts as found; with several, probabilities of at least
        0.5, and the part of the rest that is rightly left out counts as much.
Bounds: intervals are percentiles of bootstrap draws of the scans (Efron 1979): they tell how much depends on
        which scans were tested, not how much on which were trained on. Draws without two classes are left
        out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_DRAWS = 1000
INTERVAL_PERCENTILES = (2.5, 97.5)
_CHUNK = 100

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class against the rest."""

    name: str
    num_scans: int
    """Tested scans that have it."""
    auc: float
    """NaN where all or none have it."""
    auc_interval: Interval
    """95 %."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """All classes."""

    num_scans: int
    """Tested."""
    auc: float
    """Mean over classes."""
    auc_interval: Interval
    """95 %."""
    balanced_accuracy: float
    balanced_accuracy_interval: Interval
    """95 %."""
    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all figures; NaN, which JSON lacks, is null."""
        return {
            "num_scans": self.num_scans,
            "auc": _plain(self.auc),
            "auc_interval": [_plain(value) for value in self.auc_interval],
            "balanced_accuracy": _plain(self.balanced_accuracy),
            "balanced_accuracy_interval": [_plain(value) for value in self.balanced_accuracy_interval],
            "classes": [
                {
                    "class": score.name,
                    "num_scans": score.num_scans,
                    "auc": _plain(score.auc),
                    "auc_interval": [_plain(value) for value in score.auc_interval],
                }
                for score in self.classes
            ],
        }


def score_classes(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.floating[Any]],
    names: tuple[str, ...],
    *,
    multi_label: bool,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> ClassScores:
    """Return the figures of some scans.

    Args:
        probabilities: (N, K).
        targets: (N, K) 0 or 1.
        names: (K,) of the classes.
        multi_label: Whether a scan may have several classes.
        num_draws: Bootstrap draws.
        seed: Of the draws.
    """
    truth = np.asarray(targets) > 0.5
    everything = np.arange(len(truth))[None]
    aucs, accuracy = _figures(probabilities, truth, everything, multi_label)
    generator = np.random.default_rng(seed)
    drawn_aucs, drawn_accuracies = [], []
    for first in range(0, num_draws, _CHUNK):
        count = min(_CHUNK, num_draws - first)
        rows = generator.integers(len(truth), size=(count, len(truth)))
        some_aucs, some_accuracies = _figures(probabilities, truth, rows, multi_label)
        drawn_aucs.append(some_aucs)
        drawn_accuracies.append(some_accuracies)
    draws = np.concatenate(drawn_aucs)
    return ClassScores(
        num_scans=len(truth),
        auc=float(_mean(aucs)[0]),
        auc_interval=_interval(_mean(draws)),
        balanced_accuracy=float(accuracy[0]),
        balanced_accuracy_interval=_interval(np.concatenate(drawn_accuracies)),
        classes=tuple(
            ClassScore(
                name=name,
                num_scans=int(truth[:, k].sum()),
                auc=float(aucs[0, k]),
                auc_interval=_interval(draws[:, k]),
            )
            for k, name in enumerate(names)
        ),
    )


def macro_auc(probabilities: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> float:
    """Return the mean AUC over classes that have both; NaN where none has."""
    truth = np.asarray(targets) > 0.5
    rows = np.arange(len(truth))[None]
    return float(
        _mean(np.stack([_aucs(probabilities[:, k], truth[:, k], rows) for k in range(truth.shape[1])], 1))[0]
    )


def _figures(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], rows: NDArray[np.integer[Any]], multi_label: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC of each class (D, K) and balanced accuracy (D,) of D draws of rows (D, N)."""
    num_classes = truth.shape[1]
    aucs = np.stack([_aucs(probabilities[:, k], truth[:, k], rows) for k in range(num_classes)], axis=1)
    if multi_label:
        chosen = probabilities >= 0.5
    else:
        chosen = np.eye(num_classes, dtype=bool)[probabilities.argmax(axis=1)]
    found = [_recall(chosen[:, k], truth[:, k], rows) for k in range(num_classes)]
    if multi_label:
        left_out = [_recall(~chosen[:, k], ~truth[:, k], rows) for k in range(num_classes)]
        found = [_mean(np.stack(pair, axis=1)) for pair in zip(found, left_out, strict=True)]
    return aucs, _mean(np.stack(found, axis=1))


def _aucs(
    scores: NDArray[Any], positive: NDArray[np.bool_], rows: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """AUC of each draw, (D,): the sum of ranks of the positives (Mann-Whitney); NaN without both."""
    ranks = stats.rankdata(scores[rows], axis=1)
    drawn = positive[rows]
    num_positive = drawn.sum(axis=1).astype(np.float64)
    num_negative = drawn.shape[1] - num_positive
    above = (ranks * drawn).sum(axis=1) - num_positive * (num_positive + 1) / 2
    pairs = num_positive * num_negative
    result: NDArray[np.float64] = np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)
    return result


def _recall(
    chosen: NDArray[np.bool_], truth: NDArray[np.bool_], rows: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """The part of the true ones that was chosen, of each draw, (D,); NaN without any."""
    count = truth[rows].sum(axis=1)
    hits = (truth & chosen)[rows].sum(axis=1)
    result: NDArray[np.float64] = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
    return result


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row (D, K) over what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    result: NDArray[np.float64] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
    return result


def _interval(values: NDArray[np.float64]) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, INTERVAL_PERCENTILES)
    return float(low), float(high)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
