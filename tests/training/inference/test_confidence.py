"""The Dice that probabilities expect: that of sharp ones, of flat ones, of none."""

from __future__ import annotations

import numpy as np
import pytest

from training.inference.confidence import expected_dice, network_confidence


def test_it_is_the_dice_that_truths_drawn_from_the_probabilities_have_in_the_mean() -> None:
    generator = np.random.default_rng(0)
    probability = np.clip(generator.normal(0.5, 0.35, (12, 12, 12)), 0, 1).astype(np.float32)
    drawn = probability >= 0.5
    dice = []
    for _ in range(200):
        truth = generator.random(probability.shape) < probability
        dice.append(2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()))
    assert expected_dice(probability, drawn) == pytest.approx(float(np.mean(dice)), abs=0.005)


def test_a_sharp_answer_is_sure_a_doubtful_one_less_and_none_not_at_all() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[2:5, 1:4, 2:6] = True
    sharp = mask.astype(np.float32)
    assert network_confidence(sharp, 0.5) == pytest.approx(1.0)
    doubtful = np.where(mask, np.float32(0.6), np.float32(0.2))
    assert network_confidence(doubtful, 0.5) < 0.5
    assert network_confidence(doubtful, 0.5) == pytest.approx(expected_dice(doubtful, mask) ** 2)
    assert network_confidence(doubtful * np.float32(0.5), 0.5) == 0.0
