"""The loss of in-context segmentation: Dice and binary cross-entropy of each mask, averaged over all masks.

*Reads* logits and masks (B, K, Z, Y, X). *Writes* scalars, float32 in every precision of the network. All
masks have the same weight. Therefore, if a batch is split over ranks or accumulation steps, the mean over the
parts equals the mean over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.network import use_kernels

SMOOTH_VOXELS = 1.0
"""Added to numerator and denominator of the Dice: an empty mask that is predicted as empty has loss 0."""

LEAST_SHARE, MOST_SHARE = 0.2, 0.8
"""Bounds of the weights of false positives and false negatives (the published recipe)."""


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A loss and its parts, each the mean over a batch's samples and masks; scalars, float32."""

    total: Tensor
    """The loss to minimise."""
    parts: dict[str, Tensor]
    """Parts of the loss by name, detached, for the log."""


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return one minus the Dice of every mask, with a larger weight for the more frequent kind of error.

    With soft counts TP, FP, FN: 1 - (TP + 1) / (TP + a FP + b FN + 1), where a = FP / (FP + FN) and
    b = FN / (FP + FN), both clamped to 0.2 .. 0.8 and treated as constants. For a = b = 0.5 it is the Dice.

    Args:
        logits: (B, K, Z, Y, X).
        masks: The same shape; 0 or 1, bool or float.

    Returns:
        (B, K), float32, within 0 .. 1.
    """
    inside = torch.sigmoid(logits.float())
    truth = masks.float()
    space = (2, 3, 4)
    return dice_of_sums((inside * truth).sum(space), inside.sum(space), truth.sum(space))


def dice_of_sums(true_positive: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the loss of `dice_loss` for sums (B, K) of the probability in the mask, of all, of the mask."""
    false_positive = predicted - true_positive
    false_negative = truth - true_positive
    with torch.no_grad():
        share = false_positive / (false_positive + false_negative).clamp_min(1e-6)
        weight_positive = share.clamp(LEAST_SHARE, MOST_SHARE)
        weight_negative = (1 - share).clamp(LEAST_SHARE, MOST_SHARE)
    errors = weight_positive * false_positive + weight_negative * false_negative
    return 1 - (true_positive + SMOOTH_VOXELS) / (true_positive + errors + SMOOTH_VOXELS)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the binary cross-entropy of every mask, averaged over voxels: (B, K), float32, in nats.

    Args:
        logits: (B, K, Z, Y, X).
        masks: The same shape; 0 or 1, bool or float.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none").mean(
        (2, 3, 4)
    )


def segmentation_loss(logits: Tensor, masks: Tensor) -> LossTerms:
    """Return the sum of Dice loss and cross-entropy, averaged over samples and masks.

    Args:
        logits: (B, K, Z, Y, X).
        masks: The same shape; 0 or 1, bool or float.
    """
    if use_kernels(logits) and masks.dtype == torch.bool:
        from training.network import mask_sums

        sums = mask_sums(logits, masks)
        dice = dice_of_sums(sums.true_positive, sums.predicted, sums.truth).mean()
        entropy = sums.entropy.mean() / logits[0, 0].numel()
    else:
        dice, entropy = dice_loss(logits, masks).mean(), cross_entropy(logits, masks).mean()
    return LossTerms(
        total=dice + entropy, parts={"dice_loss": dice.detach(), "cross_entropy": entropy.detach()}
    )
