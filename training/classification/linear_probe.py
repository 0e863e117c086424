"""Logistic regression on pooled features, its regularisation chosen where the test scans are not looked at.

Reads:  pooled features (N, F) and classes of training and validation scans.
Writes: a `LinearHead`, and what was chosen. C is that of CANDIDATES with the highest macro AUC on the
        validation scans; without any, the highest mean in a stratified cross-validation of the training
        scans; with less than two scans of a class, 1. The regression is then fitted to the training scans
        alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from training.classification.heads import LinearHead
from training.classification.scores import macro_auc

CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of C, the inverse strength of the regularisation."""

_FOLDS = 5
_MAX_ITERATIONS = 5000

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ChosenC:
    """The regularisation, and how it was chosen."""

    value: float
    by: str
    """"validation", "cross-validation", or "default"."""
    auc: float
    """Macro AUC that it was chosen by; NaN by default."""


def fit_linear(
    train: Array,
    targets: Array,
    validation: Array,
    validation_targets: Array,
    *,
    multi_label: bool,
    weighted: bool,
    seed: int,
) -> tuple[LinearHead, ChosenC]:
    """Return the regression as a head.

    Args:
        train: (N, F) pooled features.
        targets: (N, K) 0 or 1.
        validation: (M, F); M may be 0.
        validation_targets: (M, K).
        multi_label: Whether a scan may have several classes: a regression a class, then.
        weighted: Whether rare classes weigh as much as frequent ones.
        seed: Of the folds.
    """

    def tried(c: float, rows: NDArray[np.intp], others: Array, truth: Array) -> float:
        head = _fit(train[rows], targets[rows], c, multi_label=multi_label, weighted=weighted)
        return macro_auc(_logits(head, others), truth)

    everything = np.arange(len(train))
    if len(validation):
        found = [tried(c, everything, validation, validation_targets) for c in CANDIDATES]
        by = "validation"
    else:
        folds = _folds(targets, seed)
        found = [
            float(np.mean([tried(c, fit, train[held], targets[held]) for fit, held in folds] or [math.nan]))
            for c in CANDIDATES
        ]
        by = "cross-validation"
    known = [(value, -k) for k, value in enumerate(found) if math.isfinite(value)]
    if known:
        best, place = max(known)  # of equals the strongest regularisation
        chosen = ChosenC(value=CANDIDATES[-place], by=by, auc=best)
    else:
        chosen = ChosenC(value=1.0, by="default", auc=math.nan)
    head = _fit(train, targets, chosen.value, multi_label=multi_label, weighted=weighted)
    return head, chosen


def _fit(train: Array, targets: Array, c: float, *, multi_label: bool, weighted: bool) -> LinearHead:
    """A regression for each class with several labels a scan, one for all else."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.where(std > 1e-6, std, 1.0).astype(np.float32)
    standardised = (train - mean) / std
    num_classes = targets.shape[1]
    weight, bias = np.zeros((num_classes, train.shape[1])), np.zeros(num_classes)
    if multi_label:
        for k in range(num_classes):
            if 0 < targets[:, k].sum() < len(targets):  # a fold may lack a class: its logits stay 0
                model = _regression(standardised, targets[:, k].astype(int), c, weighted=weighted)
                weight[k], bias[k] = model.coef_[0], model.intercept_[0]
    else:
        model = _regression(standardised, targets.argmax(axis=1), c, weighted=weighted)
        if len(model.classes_) == 2:  # one map for both: a softmax of it and 0 is the sigmoid of it
            weight[model.classes_[1]], bias[model.classes_[1]] = model.coef_[0], model.intercept_[0]
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    head = LinearHead(train.shape[1], num_classes)
    with torch.no_grad():
        head.get_buffer("feature_mean").copy_(torch.from_numpy(mean))
        head.get_buffer("feature_std").copy_(torch.from_numpy(std))
        head.out.weight.copy_(torch.from_numpy(weight))
        head.out.bias.copy_(torch.from_numpy(bias))
    return head.eval()


def _regression(
    features: Array, classes: NDArray[np.int64], c: float, *, weighted: bool
) -> LogisticRegression:
    model = LogisticRegression(
        C=c, class_weight="balanced" if weighted else None, max_iter=_MAX_ITERATIONS, random_state=0
    )
    return model.fit(features.astype(np.float64), classes)


def _folds(targets: Array, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Folds in which every combination of classes is spread evenly; none where one occurs but once."""
    groups = np.unique(targets, axis=0, return_inverse=True)[1].ravel()
    least = int(np.bincount(groups).min())
    if least < 2:
        return []
    folds = StratifiedKFold(min(_FOLDS, least), shuffle=True, random_state=seed)
    return list(folds.split(np.zeros((len(groups), 1)), groups))


@torch.no_grad()
def _logits(head: LinearHead, features: Array) -> Array:
    logits: Array = head(torch.from_numpy(features)).numpy()
    return logits
