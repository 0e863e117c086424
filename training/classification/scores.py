"""Scores of a classification: AUC and balanced accuracy with 95 % intervals.

Reads:  probabilities and truth (N, K).
Writes: `ClassScores`. The AUC of a class is one-vs-rest: the probability that a scan of the class scores
        higher than a scan of the rest, ties count one half (Hanley and McNeil 1982). The macro AUC is the
        mean over classes that have both kinds of scans. Balanced accuracy is the mean recall over classes;
        the predicted class is the most probable one. For multi-label data, classes with a probability of at
        least 0.5 are predicted, and each class counts with the mean of sensitivity and specificity.
Bounds: intervals are percentiles of a bootstrap over the test scans (Efron 1979). They measure the variation
        from the choice of test scans, not from that of training scans. Resamples in which a class has no
        AUC are left out.
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
    """The AUC of one class against the rest."""

    name: str
    """Name of the class."""
    num_scans: int
    """Number of test scans of the class."""
    auc: float
    """NaN if all or no test scans are of the class."""
    auc_interval: Interval
    """95 % interval (low, high)."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """The scores over all classes, and of each class."""

    num_scans: int
    """Number of test scans."""
    auc: float
    """Macro AUC: mean over classes."""
    auc_interval: Interval
    """95 % interval (low, high)."""
    balanced_accuracy: float
    """Balanced accuracy, 0..1."""
    balanced_accuracy_interval: Interval
    """95 % interval (low, high)."""
    classes: tuple[ClassScore, ...]
    """Score of each class."""

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain values; NaN becomes None, since JSON has no NaN."""
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
    """Return the scores of test scans, with bootstrap intervals.

    Args:
        probabilities: (N, K).
        targets: (N, K) 0 or 1.
        names: (K,) names of the classes.
        multi_label: Whether a scan may have several classes.
        num_draws: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    truth = np.asarray(targets) > 0.5
    all_rows = np.arange(len(truth))[None]
    aucs, accuracy = _figures(probabilities, truth, all_rows, multi_label)
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
    """Return the mean AUC over classes with positive and negative scans; NaN if there are none.

    Args:
        probabilities: (N, K).
        targets: (N, K) 0 or 1.
    """
    truth = np.asarray(targets) > 0.5
    rows = np.arange(len(truth))[None]
    return float(
        _mean(np.stack([_aucs(probabilities[:, k], truth[:, k], rows) for k in range(truth.shape[1])], 1))[0]
    )


def _figures(
    probabilities: NDArray[Any], truth: NDArray[np.bool_], rows: NDArray[np.integer[Any]], multi_label: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the AUC of each class (D, K) and the balanced accuracy (D,) for D resamples of rows (D, N)."""
    num_classes = truth.shape[1]
    aucs = np.stack([_aucs(probabilities[:, k], truth[:, k], rows) for k in range(num_classes)], axis=1)
    if multi_label:
        chosen = probabilities >= 0.5
    else:
        chosen = np.eye(num_classes, dtype=bool)[probabilities.argmax(axis=1)]
    recalls = [_recall(chosen[:, k], truth[:, k], rows) for k in range(num_classes)]
    if multi_label:
        specificities = [_recall(~chosen[:, k], ~truth[:, k], rows) for k in range(num_classes)]
        recalls = [_mean(np.stack(pair, axis=1)) for pair in zip(recalls, specificities, strict=True)]
    return aucs, _mean(np.stack(recalls, axis=1))


def _aucs(
    scores: NDArray[Any], positive: NDArray[np.bool_], rows: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the AUC of each resample, (D,), from the rank sum of the positives (Mann-Whitney).

    NaN where a resample has no positive or no negative scan.
    """
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
    """Return the recall in each resample, (D,): the fraction of true scans that were chosen, or NaN."""
    count = truth[rows].sum(axis=1)
    hits = (truth & chosen)[rows].sum(axis=1)
    result: NDArray[np.float64] = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
    return result


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row of (D, K) over its finite values, (D,); NaN if it has none."""
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
