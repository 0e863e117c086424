"""The loss by its definition, and at its ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.engine.losses import LEAST_SHARE, MOST_SHARE, cross_entropy, dice_loss, segmentation_loss

SHAPE = (2, 3, 4, 5, 6)


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(SHAPE, generator=generator) < 0.3
    return torch.randn(SHAPE, generator=generator) * 2, masks


def defined_dice_loss(logits: np.ndarray, mask: np.ndarray) -> float:
    """By the definition, of one mask."""
    inside = 1 / (1 + np.exp(-logits))
    hit, extra, missed = (inside * mask).sum(), (inside * ~mask).sum(), ((1 - inside) * mask).sum()
    share = extra / (extra + missed)
    low, high = LEAST_SHARE, MOST_SHARE
    errors = np.clip(share, low, high) * extra + np.clip(1 - share, low, high) * missed
    return 1 - (hit + 1) / (hit + errors + 1)


def test_the_dice_loss_is_its_definition() -> None:
    logits, masks = draw()
    masks[0, 1] = False
    found = dice_loss(logits, masks)
    for sample in range(SHAPE[0]):
        for mask in range(SHAPE[1]):
            expected = defined_dice_loss(logits[sample, mask].double().numpy(), masks[sample, mask].numpy())
            assert found[sample, mask].item() == pytest.approx(expected, abs=1e-5)


def test_cross_entropy_is_torchs_of_each_mask_alone() -> None:
    logits, masks = draw()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[1, 2], masks[1, 2].float())
    assert torch.allclose(cross_entropy(logits, masks)[1, 2], expected)


def test_a_right_answer_costs_nothing_also_for_an_empty_mask() -> None:
    _, masks = draw()
    masks[0, 0] = False
    assert segmentation_loss(torch.where(masks, 40.0, -40.0), masks).total.item() == pytest.approx(
        0, abs=1e-6
    )


def test_missing_a_small_mask_costs_as_much_as_missing_a_large_one() -> None:
    masks = torch.zeros(1, 2, 20, 20, 20, dtype=torch.bool)
    masks[0, 0, :4, :4, :4], masks[0, 1, :15, :15, :15] = True, True
    small, large = dice_loss(torch.full(masks.shape, -20.0), masks)[0].tolist()
    assert large == pytest.approx(small, abs=0.1)
    assert small > 0.9


@pytest.mark.parametrize(("logit", "prevailing"), [(20.0, "positive"), (-20.0, "negative")])
def test_the_kind_of_error_that_prevails_weighs_most(logit: float, prevailing: str) -> None:
    masks = torch.zeros(1, 1, 10, 10, 10, dtype=torch.bool)
    masks[..., :5] = True
    loss = dice_loss(torch.full(masks.shape, logit), masks).item()
    hit, wrong = (500, 500) if prevailing == "positive" else (0, 500)
    assert loss == pytest.approx(1 - (hit + 1) / (hit + MOST_SHARE * wrong + 1), abs=1e-4)


def test_gradients_draw_towards_the_mask_where_the_answer_is_wrong() -> None:
    masks = torch.zeros(1, 1, 6, 6, 6, dtype=torch.bool)
    masks[..., 2:4] = True
    logits = torch.zeros(masks.shape, requires_grad=True)
    segmentation_loss(logits, masks).total.backward()
    assert logits.grad is not None
    assert (logits.grad[masks] < 0).all()
    assert (logits.grad[~masks] > 0).all()


def test_the_mean_over_a_batch_is_the_mean_over_its_parts() -> None:
    logits, masks = draw()
    whole = segmentation_loss(logits, masks).total
    parts = [segmentation_loss(logits[k : k + 1], masks[k : k + 1]).total for k in range(2)]
    assert torch.allclose(whole, sum(parts) / 2, atol=1e-6)


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits, masks = torch.full((1, 1, 32, 32, 32), 1.0), torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    half = segmentation_loss(logits.bfloat16(), masks)
    assert half.total.dtype == torch.float32
    assert half.total.item() == pytest.approx(segmentation_loss(logits, masks).total.item(), abs=1e-6)
