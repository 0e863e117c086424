"""The parts Iris is made of: residual convolution blocks, attention and MLP, all pre-normed.

Attribute names (`conv1.conv`, `fn.mha`, `fc1`, ...) are the published state dict's. Norms compute in float32
or wider whatever autocast chose for the convolutions around them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 32
"""Width of one attention head."""
BLOCK_EPS = 1e-4
"""Of the instance norms in residual blocks and the layer norms before self-attention and MLPs (published)."""
NORM_EPS = 1e-5
"""Of every other norm."""


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is narrower: bfloat16 sums lose the small terms of gradients."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def norm_relu(x: Tensor, eps: float) -> Tensor:
    """Instance norm without affine, then ReLU, of (B, C, Z, Y, X); a channel of one voxel becomes 0.

    Statistics are float32 whatever the type of `x`.
    """
    # Not functional.instance_norm or batch_norm: they refuse the single deepest voxel of a 16^3 crop.
    cudnn = torch.backends.cudnn.enabled
    if x.dtype == torch.bfloat16 and in_channels_last(x):
        # instance_norm would copy to channels first and back. batch_norm of one sample is the same norm, its
        # plain sums good to 3e-5: enough for bfloat16, too little for the 1e-4 of float32 outputs.
        samples = [
            torch.batch_norm(s, None, None, None, None, True, 0.0, eps, cudnn) for s in torch.split(x, 1)
        ]
        return functional.relu(torch.cat(samples) if len(samples) > 1 else samples[0])
    # Compiled, instance_norm is fused with what is around it.
    if x.device.type == "cpu" and in_channels_last(x) and not torch.compiler.is_compiling():
        out: Tensor = _NormRelu.apply(x, eps)  # type: ignore[no-untyped-call]
        return out
    return functional.relu(torch.instance_norm(x, None, None, None, None, True, 0.0, eps, cudnn))


class _NormRelu(torch.autograd.Function):
    """Instance norm and ReLU of (B, C, Z, Y, X) in channels last, without a copy to channels first and back.

    Mean first, then the mean square of what is left: as exact as instance_norm. (batch_norm's plain sums in
    this layout are good to 3e-5 only.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        rows = x.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (B, N, C), a view
        normed = rows - rows.mean(dim=1, keepdim=True)
        scale = torch.rsqrt(normed.square().mean(dim=1, keepdim=True) + eps)
        normed.mul_(scale)
        ctx.save_for_backward(normed, scale)
        return _as_volumes(functional.relu(normed), x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        normed, scale = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 4, 1).reshape(normed.shape)
        rows = torch.ops.aten.threshold_backward(rows, normed, 0)
        slope = (rows * normed).mean(dim=1, keepdim=True)
        rows.sub_(rows.mean(dim=1, keepdim=True)).addcmul_(normed, slope, value=-1).mul_(scale)
        return _as_volumes(rows, gradient.shape), None


def _as_volumes(rows: Tensor, shape: torch.Size) -> Tensor:
    """View rows (B, N, C) as (B, C, Z, Y, X) in channels last."""
    B, C, Z, Y, X = shape
    return rows.view(B, Z, Y, X, C).permute(0, 4, 1, 2, 3)


def in_channels_last(x: Tensor) -> bool:
    """Whether the channels of (B, C, Z, Y, X) lie side by side in memory, and its voxels do not."""
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def in_best_layout(x: Tensor) -> Tensor:
    """Lay (B, C, Z, Y, X) out as the convolutions that follow like it best; they keep the layout."""
    # Measured on CPUs with and without bfloat16 (benchmarks/step.py): channels last halves the time of the
    # finest convolutions and their gradients, in both precisions.
    if x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


class PreNormConv(nn.Module):
    """Instance norm, ReLU, then a 3x3x3 convolution without bias."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_width, out_width, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, out, Z, Y, X)."""
        active = norm_relu(x, BLOCK_EPS)
        # oneDNN 3.12's bfloat16 weight gradient reads memory that nobody wrote when there are just two
        # planes: infinities from the first step on. Two planes are cheap in float32.
        broken = x.device.type == "cpu" and x.shape[2] == 2
        with torch.autocast("cpu", enabled=False) if broken else nullcontext():
            out: Tensor = self.conv(at_least_float32(active) if broken else active)
        return out


class ResidualBlock(nn.Module):
    """Two pre-normed convolutions; where the width changes, the shortcut is a third one of the raw input."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = PreNormConv(in_width, out_width)
        self.conv2 = PreNormConv(out_width, out_width)
        self.shortcut: nn.Module = (
            PreNormConv(in_width, out_width) if in_width != out_width else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, out, Z, Y, X)."""
        out: Tensor = self.conv2(self.conv1(x)) + self.shortcut(x)
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention in heads of 32; a width below 32 is one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, max(1, width // HEAD_WIDTH), batch_first=True)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, Q, C) to (B, N, C); returns (B, Q, C)."""
        out: Tensor = self.mha(queries, context, context, need_weights=False)[0]
        return out


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, in float32 or wider under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        """Norm (..., C)."""
        return super().forward(at_least_float32(input))


class SelfAttention(nn.Module):
    """Layer norm, then attention of the tokens to themselves, plus the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=BLOCK_EPS)
        self.fn = Attention(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, Q, C) to (B, Q, C)."""
        normed = self.norm(tokens)
        out: Tensor = tokens + self.fn(normed, normed)
        return out


class CrossAttention(nn.Module):
    """Layer norms of queries and context, then attention of the one to the other, plus the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=NORM_EPS)
        self.norm2 = LayerNorm(width, eps=NORM_EPS)
        self.fn = Attention(width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, Q, C) to (B, N, C); returns (B, Q, C)."""
        out: Tensor = queries + self.fn(self.norm1(queries), self.norm2(context))
        return out


class FeedForward(nn.Module):
    """Layer norm, then an MLP of expansion 4, plus its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=BLOCK_EPS)
        self.fn = Mlp(width, 4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, Q, C) to (B, Q, C)."""
        out: Tensor = tokens + self.fn(self.norm(tokens))
        return out
