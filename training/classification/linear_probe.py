"""Logistic regression on pooled features; its regularisation is chosen without the test scans.

Reads:  pooled features (N, F) and classes of training and validation scans.
Writes: a `LinearHead`, and the regularisation. C is the one of CANDIDATES with the highest macro AUC on the
        validation scans. If there are none, it is the one with the highest mean AUC in a stratified
        cross-validation of the training scans; if a class has fewer than two scans, C is 1. The regression
        is then fitted to the training scans alone.
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
"""Candidates for C, the inverse strength of the regularisation."""

_FOLDS = 5
_MAX_ITERATIONS = 5000

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ChosenC:
    """The regularisation, and how it was chosen."""

    value: float
    """C, the inverse strength."""
    by: str
    """How it was chosen: "validation", "cross-validation", or "default"."""
    auc: float
    """Macro AUC with this C; NaN for "default"."""


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
    """Fit the regression and return it as a head, with the chosen regularisation.

    Args:
        train: (N, F) pooled features.
        targets: (N, K) 0 or 1.
        validation: (M, F); M may be 0.
        validation_targets: (M, K).
        multi_label: Whether a scan may have several classes; then each class has its own regression.
        weighted: Whether to weight classes so that rare ones count as much as frequent ones.
        seed: Seed of the folds of the cross-validation.
    """

    def auc_with(c: float, rows: NDArray[np.intp], others: Array, truth: Array) -> float:
        head = _fit(train[rows], targets[rows], c, multi_label=multi_label, weighted=weighted)
        return macro_auc(_logits(head, others), truth)

    all_rows = np.arange(len(train))
    if len(validation):
        aucs = [auc_with(c, all_rows, validation, validation_targets) for c in CANDIDATES]
        by = "validation"
    else:
        folds = _folds(targets, seed)
        aucs = [
            float(np.mean([auc_with(c, fit, train[out], targets[out]) for fit, out in folds] or [math.nan]))
            for c in CANDIDATES
        ]
        by = "cross-validation"
    known = [(value, -k) for k, value in enumerate(aucs) if math.isfinite(value)]
    if known:
        best, negative_index = max(known)  # among equal AUCs, the strongest regularisation
        chosen = ChosenC(value=CANDIDATES[-negative_index], by=by, auc=best)
    else:
        chosen = ChosenC(value=1.0, by="default", auc=math.nan)
    head = _fit(train, targets, chosen.value, multi_label=multi_label, weighted=weighted)
    return head, chosen


def _fit(train: Array, targets: Array, c: float, *, multi_label: bool, weighted: bool) -> LinearHead:
    """Return a fitted head: one regression per class for multi-label data, else one for all classes."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.where(std > 1e-6, std, 1.0).astype(np.float32)
    standardised = (train - mean) / std
    num_classes = targets.shape[1]
    weight, bias = np.zeros((num_classes, train.shape[1])), np.zeros(num_classes)
    if multi_label:
        for k in range(num_classes):
            if 0 < targets[:, k].sum() < len(targets):  # else a fold lacks the class, and its logits are 0
                model = _regression(standardised, targets[:, k].astype(int), c, weighted=weighted)
                weight[k], bias[k] = model.coef_[0], model.intercept_[0]
    else:
        model = _regression(standardised, targets.argmax(axis=1), c, weighted=weighted)
        if len(model.classes_) == 2:  # one logit for both classes: softmax(logit, 0) = sigmoid(logit)
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
    """Return folds stratified by combination of classes; an empty list if one occurs only once."""
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
