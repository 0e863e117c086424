"""AUC and balanced accuracy: as scikit-learn has them, with intervals that hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from training.classification.scores import macro_auc, score_classes

NAMES = ("a", "b", "c")


def drawn(seed: int, count: int = 40, *, sureness: float = 1.0, ties: bool = False):
    """Probabilities (count, 3) and one class a scan."""
    generator = np.random.default_rng(seed)
    truth = np.eye(3)[generator.permutation(np.arange(count) % 3)]
    logits = generator.normal(size=(count, 3)) + sureness * truth
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (np.round(probabilities, 1) if ties else probabilities), truth


@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_auc_is_what_scikit_learn_says(seed: int, ties: bool):
    probabilities, truth = drawn(seed, ties=ties)
    scores = score_classes(probabilities, truth, NAMES, multi_label=False, num_draws=2)
    expected = [roc_auc_score(truth[:, k], probabilities[:, k]) for k in range(3)]
    assert [score.auc for score in scores.classes] == pytest.approx(expected)
    assert scores.auc == pytest.approx(np.mean(expected)) == macro_auc(probabilities, truth)


@given(seed=st.integers(0, 10_000))
def test_balanced_accuracy_is_what_scikit_learn_says(seed: int):
    probabilities, truth = drawn(seed)
    scores = score_classes(probabilities, truth, NAMES, multi_label=False, num_draws=2)
    expected = balanced_accuracy_score(truth.argmax(1), probabilities.argmax(1))
    assert scores.balanced_accuracy == pytest.approx(expected)
    several = score_classes(probabilities, truth, NAMES, multi_label=True, num_draws=2)
    each = [balanced_accuracy_score(truth[:, k], probabilities[:, k] >= 0.5) for k in range(3)]
    assert several.balanced_accuracy == pytest.approx(np.mean(each))


def test_a_class_that_no_tested_scan_has_counts_nowhere():
    probabilities, truth = drawn(0, 12)
    keep = truth[:, 2] == 0
    scores = score_classes(probabilities[keep], truth[keep], NAMES, multi_label=False, num_draws=50)
    assert math.isnan(scores.classes[2].auc)
    assert scores.auc == pytest.approx(np.mean([score.auc for score in scores.classes[:2]]))
    assert scores.to_json()["classes"][2]["auc"] is None
    assert scores.classes[2].num_scans == 0


def test_the_interval_holds_the_figure_and_narrows_with_more_scans():
    widths = []
    for count in (30, 300):
        scores = score_classes(*drawn(1, count), NAMES, multi_label=False, num_draws=300)
        low, high = scores.auc_interval
        assert low < scores.auc < high
        low_accuracy, high_accuracy = scores.balanced_accuracy_interval
        assert low_accuracy < scores.balanced_accuracy < high_accuracy
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_about_95_of_100_intervals_hold_the_truth():
    true = score_classes(*drawn(0, 60_000), NAMES, multi_label=False, num_draws=1).auc
    hits = 0
    for seed in range(100):
        low, high = score_classes(
            *drawn(seed + 1, 120), NAMES, multi_label=False, num_draws=200, seed=seed
        ).auc_interval
        hits += low <= true <= high
    assert 88 <= hits <= 99


def test_the_draws_follow_from_the_seed():
    first, again, other = (
        score_classes(*drawn(3), NAMES, multi_label=False, num_draws=100, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.auc_interval != other.auc_interval
