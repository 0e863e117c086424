"""The sums over voxels that Dice and cross-entropy are made of, in one read of logits and masks.

Neither a float copy of the masks nor a volume of probabilities or errors is written; the backward kernel
computes the probabilities again. The plain form is in `training.engine.losses`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from training.network.kernels.forms import MaskSums

_TILE = 2048
"""Voxels of a tile, which a program holds in registers."""
_PART = 16 * _TILE
"""Voxels of a program."""


def sums_of_masks(logits: Tensor, masks: Tensor) -> MaskSums:
    """Return the sums of `training.network.kernels.mask_sums`."""
    B, K = logits.shape[:2]
    sums: Tensor = _MaskSums.apply(logits, masks)  # type: ignore[no-untyped-call]
    return MaskSums(*sums.view(B, K, 4).unbind(-1))


class _MaskSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        flat, truth = logits.contiguous(), masks.contiguous().view(torch.uint8)
        rows = logits.shape[0] * logits.shape[1]
        N = logits.numel() // rows
        parts = logits.new_empty(rows, triton.cdiv(N, _PART), 4, dtype=torch.float32)
        _sums[parts.shape[1], rows](flat, truth, parts, N, _PART, _TILE)
        ctx.save_for_backward(flat, truth)
        return parts.sum(dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        flat, truth = ctx.saved_tensors
        rows = len(gradient)
        N = flat.numel() // rows
        out = torch.empty_like(flat)
        _sums_gradient[triton.cdiv(N, _PART), rows](
            flat, truth, gradient.float().contiguous(), out, N, _PART, _TILE
        )
        return out, None


@triton.jit
def _sums(logits_at, masks_at, parts_at, N, PART: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the four sums of one part of a mask."""
    row = tl.program_id(1).to(tl.int64)
    inside = tl.zeros([TILE], tl.float32)
    predicted = tl.zeros([TILE], tl.float32)
    truth = tl.zeros([TILE], tl.float32)
    entropy = tl.zeros([TILE], tl.float32)
    for first in range(0, PART, TILE):
        voxels = tl.program_id(0) * PART + first + tl.arange(0, TILE)
        exist = voxels < N
        logit = tl.load(logits_at + row * N + voxels, mask=exist, other=0.0).to(tl.float32)
        mask = tl.load(masks_at + row * N + voxels, mask=exist, other=0).to(tl.float32)
        tail = tl.exp(-tl.abs(logit))
        probability = tl.where(logit >= 0.0, 1.0, tail) / (1.0 + tail)
        error = tl.maximum(logit, 0.0) - logit * mask + tl.log(1.0 + tail)
        inside += probability * mask
        predicted += tl.where(exist, probability, 0.0)
        truth += mask
        entropy += tl.where(exist, error, 0.0)
    place = parts_at + (row * tl.num_programs(0) + tl.program_id(0)) * 4
    tl.store(place, tl.sum(inside, axis=0))
    tl.store(place + 1, tl.sum(predicted, axis=0))
    tl.store(place + 2, tl.sum(truth, axis=0))
    tl.store(place + 3, tl.sum(entropy, axis=0))


@triton.jit
def _sums_gradient(  # type: ignore[no-untyped-def]
    logits_at, masks_at, gradient_at, out_at, N, PART: tl.constexpr, TILE: tl.constexpr
):
    """Write the gradient of the logits of one part of a mask."""
    row = tl.program_id(1).to(tl.int64)
    by_inside = tl.load(gradient_at + row * 4)
    by_predicted = tl.load(gradient_at + row * 4 + 1)
    by_entropy = tl.load(gradient_at + row * 4 + 3)
    for first in range(0, PART, TILE):
        voxels = tl.program_id(0) * PART + first + tl.arange(0, TILE)
        exist = voxels < N
        logit = tl.load(logits_at + row * N + voxels, mask=exist, other=0.0).to(tl.float32)
        mask = tl.load(masks_at + row * N + voxels, mask=exist, other=0).to(tl.float32)
        tail = tl.exp(-tl.abs(logit))
        probability = tl.where(logit >= 0.0, 1.0, tail) / (1.0 + tail)
        slope = tail / ((1.0 + tail) * (1.0 + tail))  # probability * (1 - probability)
        found = slope * (by_inside * mask + by_predicted) + by_entropy * (probability - mask)
        tl.store(out_at + row * N + voxels, found.to(out_at.dtype.element_ty), mask=exist)
