"""The loss of in-context segmentation: Dice and binary cross-entropy, a value a mask, averaged over all.

*Reads* logits and masks (B, K, Z, Y, X). *Writes* scalars, float32 whatever the precision of the network.
Every mask counts the same, whatever its size, so that the mean over samples of one batch split over ranks or
accumulation is the mean over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH_VOXELS = 1.0
"""Added above and below the line of the Dice: an empty mask that is drawn empty has a loss of 0."""

LEAST_SHARE, MOST_SHARE = 0.2, 0.8
"""Bounds of the weights of false positives and false negatives (the published recipe)."""


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A loss and what it is made of, each the mean over a batch's samples and masks; scalars, float32."""

    total: Tensor
    """What is minimised."""
    parts: dict[str, Tensor]
    """Named parts, detached, for the log."""


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice of every mask, errors weighted by which kind of them prevails.

    With soft counts TP, FP, FN: 1 - (TP + 1) / (TP + a FP + b FN + 1), where a = FP / (FP + FN) and
    b = FN / (FP + FN), both clamped to 0.2 .. 0.8 and taken for constants. With a = b = 0.5 it is the Dice.

    Args:
        logits: (B, K, Z, Y, X).
        masks: The same shape; 0 or 1, bool or float.

    Returns:
        (B, K), float32, within 0 .. 1.
    """
    inside = torch.sigmoid(logits.float())
    truth = masks.float()
    space = (2, 3, 4)
    true_positive = (inside * truth).sum(space)
    false_positive = inside.sum(space) - true_positive
    false_negative = truth.sum(space) - true_positive
    with torch.no_grad():
        share = false_positive / (false_positive + false_negative).clamp_min(1e-6)
        weight_positive = share.clamp(LEAST_SHARE, MOST_SHARE)
        weight_negative = (1 - share).clamp(LEAST_SHARE, MOST_SHARE)
    errors = weight_positive * false_positive + weight_negative * false_negative
    return 1 - (true_positive + SMOOTH_VOXELS) / (true_positive + errors + SMOOTH_VOXELS)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of every mask, the mean over its voxels: (B, K), float32, in nats."""
    return functional.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none").mean(
        (2, 3, 4)
    )


def segmentation_loss(logits: Tensor, masks: Tensor) -> LossTerms:
    """Dice and cross-entropy, summed, averaged over samples and masks.

    Args:
        logits: (B, K, Z, Y, X).
        masks: The same shape; 0 or 1, bool or float.
    """
    dice, entropy = dice_loss(logits, masks).mean(), cross_entropy(logits, masks).mean()
    return LossTerms(
        total=dice + entropy, parts={"dice_loss": dice.detach(), "cross_entropy": entropy.detach()}
    )
