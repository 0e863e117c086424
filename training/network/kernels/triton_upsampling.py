"""Trilinear upsampling with aligned corners, written beside the skip connection: one kernel forward.

    out = concatenation of [skip, upsampled] along the channels, in channels last and in the skip's dtype

Weights and sums are float32; no float32 volume of the full resolution exists, forward or backward. Backward
is a sum over the fine voxels around each coarse one, along one axis after the other, without atomics.
The plain form is functional.interpolate in float32 and torch.cat (`training.network.decoder`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
"""Elements of a tile, which a program holds in registers."""
_MAX_CHANNELS = 64
"""Most channels of a tile."""


def upsample_beside(x: Tensor, skip: Tensor) -> Tensor:
    """Return [skip, x upsampled to its grid] (B, skip + in, Z, Y, X), in channels last.

    Args:
        x: (B, in, z, y, x).
        skip: (B, skip, Z, Y, X); its dtype is the result's.
    """
    out: Tensor = _UpsampleBeside.apply(x, skip)  # type: ignore[no-untyped-call]
    return out


class _UpsampleBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor) -> Tensor:
        B, C, z, y, x_ = x.shape
        before, (Z, Y, X) = skip.shape[1], skip.shape[2:]
        x = x.contiguous(memory_format=torch.channels_last_3d)
        out = torch.empty(
            (B, before + C, Z, Y, X),
            dtype=skip.dtype,
            device=skip.device,
            memory_format=torch.channels_last_3d,
        )
        out[:, :before].copy_(skip)
        block_c = min(triton.next_power_of_2(C), _MAX_CHANNELS)
        block_v = _TILE // block_c
        grid = (triton.cdiv(Z * Y * X, block_v), triton.cdiv(C, block_c), B)
        scales = (_scale(z, Z), _scale(y, Y), _scale(x_, X))
        _upsample[grid](x, out, *scales, z, y, x_, Z, Y, X, C, before, block_v, block_c)
        ctx.shapes, ctx.dtype = (x.shape, before), x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (B, C, z, y, x), before = ctx.shapes
        Z, Y, X = gradient.shape[2:]
        rows = gradient.permute(0, 2, 3, 4, 1).contiguous()
        along_z = _adjoint(rows[..., before:], B, (Z, z), Y * X, C, torch.float32)
        along_y = _adjoint(along_z, B * z, (Y, y), X, C, torch.float32)
        along_x = _adjoint(along_y, B * z * y, (X, x), 1, C, ctx.dtype)
        found = along_x.view(B, z, y, x, C).permute(0, 4, 1, 2, 3)
        return found, rows[..., :before].permute(0, 4, 1, 2, 3)


def _scale(coarse: int, fine: int) -> float:
    """Distance, in coarse voxels, of neighbouring fine ones."""
    return (coarse - 1) / (fine - 1) if fine > 1 else 0.0


def _adjoint(
    rows: Tensor, outer: int, sizes: tuple[int, int], inner: int, channels: int, dtype: torch.dtype
) -> Tensor:
    """Return the adjoint of linear interpolation along one axis: (outer, coarse, inner, C), contiguous.

    Args:
        rows: (outer, fine, inner, C) in memory, with the stride of its last axis but one between voxels.
        outer: Number of places before the axis.
        sizes: Fine and coarse length of the axis.
        inner: Number of places between the axis and the channels.
        channels: C.
        dtype: Of the result.
    """
    fine, coarse = sizes
    scale = _scale(coarse, fine)
    taps = fine if scale == 0 else min(fine, math.ceil(2 / scale) + 2)
    out = torch.empty(outer, coarse, inner, channels, dtype=dtype, device=rows.device)
    block_c = min(triton.next_power_of_2(channels), _MAX_CHANNELS)
    block_v = max(1, min(_TILE // block_c, triton.next_power_of_2(inner)))
    blocks = triton.cdiv(inner, block_v)
    grid = (outer * coarse * blocks, triton.cdiv(channels, block_c))
    distance = rows.stride(-2)
    _sum_of_fine[grid](
        rows, out, scale, fine, coarse, inner, channels, distance, blocks, taps, block_v, block_c
    )
    return out


@triton.jit
def _corner(fine, scale, size):  # type: ignore[no-untyped-def]
    """Coarse voxels before and after a fine one, and the weight of the second."""
    at = fine.to(tl.float32) * scale
    before = tl.minimum(at.to(tl.int32), size - 1)
    return before, tl.minimum(before + 1, size - 1), at - before.to(tl.float32)


@triton.jit
def _row(x_at, base, z, y, before, after, weight, Y, X, C, channels, exist):  # type: ignore[no-untyped-def]
    """Interpolated values along x of one row of coarse voxels."""
    row = base + (z * Y + y) * X
    one = tl.load(x_at + (row + before)[:, None] * C + channels[None, :], mask=exist, other=0.0)
    two = tl.load(x_at + (row + after)[:, None] * C + channels[None, :], mask=exist, other=0.0)
    w = weight[:, None]
    return one.to(tl.float32) * (1.0 - w) + two.to(tl.float32) * w


@triton.jit
def _upsample(  # type: ignore[no-untyped-def]
    x_at, out_at, scale_z, scale_y, scale_x, z, y, x, Z, Y, X, C, BEFORE,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the upsampled channels of some voxels, after the channels of the skip connection."""
    sample = tl.program_id(2).to(tl.int64)
    voxels = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exist = (voxels < Z * Y * X)[:, None] & (channels < C)[None, :]
    inside = tl.minimum(voxels, Z * Y * X - 1)
    z0, z1, wz = _corner(inside // (Y * X), scale_z, z)
    y0, y1, wy = _corner(inside // X % Y, scale_y, y)
    x0, x1, wx = _corner(inside % X, scale_x, x)
    base = sample * z * y * x
    low = _row(x_at, base, z0, y0, x0, x1, wx, y, x, C, channels, exist) * (1.0 - wy)[:, None]
    low += _row(x_at, base, z0, y1, x0, x1, wx, y, x, C, channels, exist) * wy[:, None]
    high = _row(x_at, base, z1, y0, x0, x1, wx, y, x, C, channels, exist) * (1.0 - wy)[:, None]
    high += _row(x_at, base, z1, y1, x0, x1, wx, y, x, C, channels, exist) * wy[:, None]
    found = low * (1.0 - wz)[:, None] + high * wz[:, None]
    place = (sample * Z * Y * X + voxels)[:, None] * (BEFORE + C) + BEFORE + channels[None, :]
    tl.store(out_at + place, found.to(out_at.dtype.element_ty), mask=exist)


@triton.jit
def _sum_of_fine(  # type: ignore[no-untyped-def]
    rows_at, out_at, scale, FINE, COARSE, INNER, C, DISTANCE, BLOCKS, TAPS,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum of the fine voxels around a coarse one along one axis, weighted by 1 - distance."""
    block = tl.program_id(0) % BLOCKS
    coarse = tl.program_id(0) // BLOCKS % COARSE
    outer = (tl.program_id(0) // BLOCKS // COARSE).to(tl.int64)
    places = block * BLOCK_V + tl.arange(0, BLOCK_V)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exist = (places < INNER)[:, None] & (channels < C)[None, :]
    first = ((coarse - 1) / tl.maximum(scale, 1e-6)).to(tl.int32)
    first = tl.minimum(tl.maximum(first, 0), FINE - 1)
    total = tl.zeros([BLOCK_V, BLOCK_C], tl.float32)
    for tap in range(TAPS):
        distance = tl.abs((first + tap).to(tl.float32) * scale - coarse.to(tl.float32))
        weight = tl.where(first + tap < FINE, tl.maximum(1.0 - distance, 0.0), 0.0)
        fine = tl.minimum(first + tap, FINE - 1)
        place = ((outer * FINE + fine) * INNER + places)[:, None] * DISTANCE + channels[None, :]
        value = tl.load(rows_at + place, mask=exist, other=0.0).to(tl.float32)
        total += weight * value
    place = ((outer * COARSE + coarse) * INNER + places)[:, None] * C + channels[None, :]
    tl.store(out_at + place, total.to(out_at.dtype.element_ty), mask=exist)
