"""Instance norm and ReLU in two kernels forward and two backward, optionally after a sum of two tensors.

The plain form is `training.network.blocks.norm_relu`. Rows are (G, N, C): one row for each of the N voxels of
a sample (channels last), normalised over N. Of the norm only the input, mean and scale are kept; the output
belongs to the convolution after it.

    moments    every program takes some rows: mean and sum of squared distances from it, in float32
    normalise  every program puts these together (Chan et al. 1979), then writes ReLU((x - mean) * scale)
    slopes     the same, for the sums that the gradient needs
    gradient   the same, for the gradient of the input
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Elements of a tile, which a program holds in registers."""
_MAX_CHANNELS = 64
"""Most channels of a tile; programs along the channels share the rest."""
_PROGRAMS = 1024
"""Number of programs to aim at: some for each of the 100 to 130 multiprocessors of a large card."""
_MAX_PARTS = 128
"""Most parts that the rows of a sample are divided into."""


class Division(NamedTuple):
    """How the rows of a sample are divided among programs."""

    block_channels: int
    """Channels of a tile, a power of two."""
    block_rows: int
    """Rows of a tile, a power of two."""
    part_rows: int
    """Rows of a program, a multiple of `block_rows`."""
    num_parts: int
    """Programs along the rows."""

    @property
    def block_parts(self) -> int:
        """The next power of two from `num_parts` on."""
        return int(triton.next_power_of_2(self.num_parts))


def division(G: int, N: int, C: int) -> Division:
    """Return how (G, N, C) is divided."""
    block_channels = min(triton.next_power_of_2(C), _MAX_CHANNELS)
    block_rows = max(1, min(_TILE // block_channels, triton.next_power_of_2(N)))
    others = G * triton.cdiv(C, block_channels)
    wanted = min(max(1, _PROGRAMS // others), _MAX_PARTS, triton.cdiv(N, block_rows))
    part_rows = triton.cdiv(triton.cdiv(N, wanted), block_rows) * block_rows
    return Division(block_channels, block_rows, part_rows, triton.cdiv(N, part_rows))


def norm_relu(x: Tensor, eps: float) -> Tensor:
    """Return ReLU(instance norm) of volumes (B, C, Z, Y, X) in channels last, in their dtype."""
    return volumes_of(norm_relu_rows(rows_of(x), eps), x.shape)


def norm_relu_rows(rows: Tensor, eps: float) -> Tensor:
    """Return ReLU(instance norm over N) of contiguous rows (G, N, C), in their dtype."""
    out: Tensor = _NormRelu.apply(rows, eps)  # type: ignore[no-untyped-call]
    return out


def add_norm_relu(branch: Tensor, shortcut: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum of two volumes (B, C, Z, Y, X) in channels last, and ReLU(instance norm) of the sum."""
    total, out = _AddNormRelu.apply(rows_of(branch), rows_of(shortcut), eps)  # type: ignore[no-untyped-call]
    return volumes_of(total, branch.shape), volumes_of(out, branch.shape)


def rows_of(x: Tensor) -> Tensor:
    """Return volumes (B, C, Z, Y, X) as rows (B, N, C); a view if they are in channels last."""
    return x.permute(0, 2, 3, 4, 1).contiguous().flatten(1, 3)


def volumes_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return rows (B, N, C) as volumes of a shape (B, C, Z, Y, X) in channels last; a view."""
    B, C, Z, Y, X = shape
    return rows.view(B, Z, Y, X, C).permute(0, 4, 1, 2, 3)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        _, out, mean, scale = _forward(rows, None, eps)
        ctx.save_for_backward(rows, mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _backward(gradient, None, *ctx.saved_tensors), None


class _AddNormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, shortcut: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total, out, mean, scale = _forward(branch, shortcut, eps)
        ctx.save_for_backward(total, mean, scale)
        return total, out

    @staticmethod
    def backward(ctx: Any, gradient_total: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        found = _backward(gradient, gradient_total, *ctx.saved_tensors)
        return found, found, None


def _forward(x: Tensor, other: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x (+ other), ReLU(norm) of it, and mean and scale (G, C), float32."""
    G, N, C = x.shape
    how = division(G, N, C)
    grid = (how.num_parts, triton.cdiv(C, how.block_channels), G)
    total = x if other is None else torch.empty_like(x)
    parts = x.new_empty(2, G, how.num_parts, C, dtype=torch.float32)
    mean, scale = x.new_empty(2, G, C, dtype=torch.float32)
    out = torch.empty_like(x)
    sizes = (N, C, how.part_rows, how.block_rows, how.block_channels)
    _moments[grid](x, x if other is None else other, total, parts[0], parts[1], *sizes, other is not None)
    _normalise[grid](total, out, parts[0], parts[1], mean, scale, eps, *sizes, how.block_parts)
    return total, out, mean, scale


def _backward(gradient: Tensor, added: Tensor | None, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of x, plus `added` if there is one; contiguous rows (G, N, C)."""
    G, N, C = x.shape
    how = division(G, N, C)
    grid = (how.num_parts, triton.cdiv(C, how.block_channels), G)
    gradient = gradient.contiguous()
    parts = x.new_empty(2, G, how.num_parts, C, dtype=torch.float32)
    out = torch.empty_like(x)
    sizes = (N, C, how.part_rows, how.block_rows, how.block_channels)
    _slopes[grid](x, gradient, mean, scale, parts[0], parts[1], *sizes)
    also = gradient if added is None else added.contiguous()
    more = (how.block_parts, added is not None)
    _gradient[grid](x, gradient, also, mean, scale, parts[0], parts[1], out, *sizes, *more)
    return out


@triton.jit
def _tile(start, N, C, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of a tile's elements in a sample, which of them exist, and of which rows and channels."""
    rows = start + tl.arange(0, BLOCK_N)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exist = (rows < N)[:, None] & (channels < C)[None, :]
    return rows[:, None] * C + channels[None, :], exist, rows < N, channels


@triton.jit
def _moments(  # type: ignore[no-untyped-def]
    x_at, other_at, total_at, mean_at, square_at,
    N, C, PART: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, HAS_OTHER: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it, of the rows of one part; with `other`, of the sum."""
    sample = tl.program_id(2).to(tl.int64)
    base = sample * N * C
    count = 0.0
    mean = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, PART, BLOCK_N):
        offsets, exist, rows, _ = _tile(tl.program_id(0) * PART + first, N, C, BLOCK_N, BLOCK_C)
        x = tl.load(x_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        if HAS_OTHER:
            x += tl.load(other_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
            rounded = x.to(total_at.dtype.element_ty)
            tl.store(total_at + base + offsets, rounded, mask=exist)
            x = rounded.to(tl.float32)
        here = tl.sum(rows.to(tl.float32), axis=0)
        own = tl.sum(x, axis=0) / tl.maximum(here, 1.0)
        apart = tl.where(exist, x - own[None, :], 0.0)
        both = tl.maximum(count + here, 1.0)
        step = own - mean
        mean += step * (here / both)
        square += tl.sum(apart * apart, axis=0) + step * step * (count * here / both)
        count += here
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * C + channels
    tl.store(mean_at + place, mean, mask=channels < C)
    tl.store(square_at + place, square, mask=channels < C)


@triton.jit
def _normalise(  # type: ignore[no-untyped-def]
    x_at, out_at, means_at, squares_at, mean_at, scale_at, eps,
    N, C, PART: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """ReLU of the norm of one part's rows; the first part also writes mean and scale."""
    sample = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts = tl.arange(0, BLOCK_P)
    some = (parts < tl.num_programs(0))[:, None] & (channels < C)[None, :]
    places = (sample * tl.num_programs(0) + parts[:, None]) * C + channels[None, :]
    counts = tl.minimum(tl.maximum(N - parts * PART, 0), PART).to(tl.float32)[:, None]
    means = tl.load(means_at + places, mask=some, other=0.0)
    mean = tl.sum(means * counts, axis=0) / N
    apart = means - mean[None, :]
    squares = tl.load(squares_at + places, mask=some, other=0.0) + counts * apart * apart
    scale = 1.0 / tl.sqrt(tl.sum(tl.where(some, squares, 0.0), axis=0) / N + eps)
    if tl.program_id(0) == 0:
        tl.store(mean_at + sample * C + channels, mean, mask=channels < C)
        tl.store(scale_at + sample * C + channels, scale, mask=channels < C)
    base = sample * N * C
    for first in range(0, PART, BLOCK_N):
        offsets, exist, _, _ = _tile(tl.program_id(0) * PART + first, N, C, BLOCK_N, BLOCK_C)
        x = tl.load(x_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        normed = tl.maximum((x - mean[None, :]) * scale[None, :], 0.0)
        tl.store(out_at + base + offsets, normed.to(out_at.dtype.element_ty), mask=exist)


@triton.jit
def _slopes(  # type: ignore[no-untyped-def]
    x_at, gradient_at, mean_at, scale_at, sum_at, product_at,
    N, C, PART: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over one part's rows of the gradient after the ReLU, and of its product with the normed input."""
    sample = tl.program_id(2).to(tl.int64)
    base = sample * N * C
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.load(mean_at + sample * C + channels, mask=channels < C, other=0.0)
    scale = tl.load(scale_at + sample * C + channels, mask=channels < C, other=0.0)
    total = tl.zeros([BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, PART, BLOCK_N):
        offsets, exist, _, _ = _tile(tl.program_id(0) * PART + first, N, C, BLOCK_N, BLOCK_C)
        x = tl.load(x_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        normed = (x - mean[None, :]) * scale[None, :]
        gradient = tl.where(exist & (normed > 0.0), gradient, 0.0)
        total += tl.sum(gradient, axis=0)
        product += tl.sum(gradient * normed, axis=0)
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * C + channels
    tl.store(sum_at + place, total, mask=channels < C)
    tl.store(product_at + place, product, mask=channels < C)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    x_at, gradient_at, added_at, mean_at, scale_at, sums_at, products_at, out_at,
    N, C, PART: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):  # fmt: skip
    """Gradient of the input of one part's rows, plus `added`."""
    sample = tl.program_id(2).to(tl.int64)
    base = sample * N * C
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts = tl.arange(0, BLOCK_P)
    some = (parts < tl.num_programs(0))[:, None] & (channels < C)[None, :]
    places = (sample * tl.num_programs(0) + parts[:, None]) * C + channels[None, :]
    level = tl.sum(tl.load(sums_at + places, mask=some, other=0.0), axis=0) / N
    slope = tl.sum(tl.load(products_at + places, mask=some, other=0.0), axis=0) / N
    mean = tl.load(mean_at + sample * C + channels, mask=channels < C, other=0.0)
    scale = tl.load(scale_at + sample * C + channels, mask=channels < C, other=0.0)
    for first in range(0, PART, BLOCK_N):
        offsets, exist, _, _ = _tile(tl.program_id(0) * PART + first, N, C, BLOCK_N, BLOCK_C)
        x = tl.load(x_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        normed = (x - mean[None, :]) * scale[None, :]
        gradient = tl.where(normed > 0.0, gradient, 0.0)
        found = (gradient - level[None, :] - normed * slope[None, :]) * scale[None, :]
        if HAS_ADDED:
            found += tl.load(added_at + base + offsets, mask=exist, other=0.0).to(tl.float32)
        tl.store(out_at + base + offsets, found.to(out_at.dtype.element_ty), mask=exist)
