"""Building blocks of Iris: residual convolution blocks, attention and MLP, all pre-norm.

Attribute names (`conv1.conv`, `fn.mha`, `fc1`, ...) are those of the published state dict. Norms are computed
in float32 or wider, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.network.kernels import in_graph, use_kernels

HEAD_WIDTH = 32
"""Width of one attention head."""
BLOCK_EPS = 1e-4
"""Epsilon of norms in residual blocks, and of layer norms before self-attention and MLPs (published)."""
RECOMPUTE = "recompute"
"""Attribute of a stage of encoder or decoder; if True, training computes its activations again."""
NORM_EPS = 1e-5
"""Epsilon of every other norm."""


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` as float32 if it is bfloat16 or float16: sums in bfloat16 lose small terms of gradients."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def norm_relu(x: Tensor, eps: float) -> Tensor:
    """Return ReLU(instance norm without affine) of (B, C, Z, Y, X); a channel of one voxel becomes 0.

    Mean and variance are computed in float32 for every dtype of `x`.
    """
    # functional.instance_norm and functional.batch_norm raise an error for one voxel per channel, which is
    # what the deepest stage has for a crop of 16^3.
    cudnn = torch.backends.cudnn.enabled
    if use_kernels(x) and x.is_contiguous(memory_format=torch.channels_last_3d):
        from training.network.kernels.triton_norms import norm_relu as in_kernels

        return in_kernels(x, eps)
    if x.device.type == "cuda" and torch.compiler.is_compiling():
        return _norm_relu_written_out(x, eps)
    if x.dtype == torch.bfloat16 and in_channels_last(x):
        # instance_norm would copy to channels first and back. batch_norm of one sample is the same norm. Its
        # plain sums are accurate to 3e-5: enough for bfloat16, not for the tolerance of 1e-4 on float32
        # outputs.
        samples = [
            torch.batch_norm(s, None, None, None, None, True, 0.0, eps, cudnn) for s in torch.split(x, 1)
        ]
        return functional.relu(torch.cat(samples) if len(samples) > 1 else samples[0])
    if x.device.type == "cpu" and in_channels_last(x) and not in_graph():
        out: Tensor = _NormRelu.apply(x, eps)  # type: ignore[no-untyped-call]
        return out
    if torch.compiler.is_exporting():
        return functional.relu(_norm_axis_by_axis(x, eps))
    return functional.relu(torch.instance_norm(x, None, None, None, None, True, 0.0, eps, cudnn))


def _norm_relu_written_out(x: Tensor, eps: float) -> Tensor:
    """Return ReLU(instance norm) in operations that torch.compile fuses, without a copy to channels first."""
    wide = at_least_float32(x)
    variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0, keepdim=True)
    return functional.relu((wide - mean) * torch.rsqrt(variance + eps)).to(x.dtype)


def _norm_axis_by_axis(x: Tensor, eps: float) -> Tensor:
    """Return the instance norm of (B, C, Z, Y, X), with means taken along one axis after the other.

    For exported graphs: ONNX Runtime 1.32 sums all voxels of a channel in one float32, in its own
    InstanceNormalization too. For 128 x 96 x 96 voxels its features then differ from PyTorch's by 4e-4; with
    means along single axes by 3e-5.
    """

    def mean(values: Tensor) -> Tensor:
        for axis in (4, 3, 2):
            values = values.mean(dim=axis, keepdim=True)
        return values

    centred = x - mean(x)
    return centred * torch.rsqrt(mean(centred.square()) + eps)


class _NormRelu(torch.autograd.Function):
    """Instance norm and ReLU of (B, C, Z, Y, X) in channels last, without a copy to channels first and back.

    The mean is subtracted first, then the mean square of the rest is taken, which is as exact as
    instance_norm. (The plain sums of batch_norm are accurate to only 3e-5 in this layout.)
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
    """Return rows (B, N, C), one per voxel, as a view (B, C, Z, Y, X) in channels last."""
    B, C, Z, Y, X = shape
    return rows.view(B, Z, Y, X, C).permute(0, 4, 1, 2, 3)


def in_channels_last(x: Tensor) -> bool:
    """Whether (B, C, Z, Y, X) is stored in channels-last layout and not also in channels-first layout."""
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def in_best_layout(x: Tensor) -> Tensor:
    """Return (B, C, Z, Y, X) in the fastest memory layout for the convolutions that follow (they keep it)."""
    # Measured on CPUs with and without bfloat16 (benchmarks/step.py): channels last halves the time of the
    # finest convolutions and their gradients, in both precisions. cuDNN's tensor-core convolutions are made
    # for channels last, and copied every bfloat16 input to it and back (14 % of a step on an H200). Its
    # float32 convolutions without TF32 are made for channels first.
    if x.device.type == "cpu" or (x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)):
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
        # With exactly two planes, the bfloat16 weight gradient of oneDNN 3.12 reads uninitialised memory and
        # is infinite from the first step on. Two planes cost little in float32.
        needs_float32 = torch.is_autocast_enabled("cpu") and x.device.type == "cpu" and x.shape[2] == 2
        with torch.autocast("cpu", enabled=False) if needs_float32 else nullcontext():
            out: Tensor = self.conv(at_least_float32(active) if needs_float32 else active)
        return out


class ResidualBlock(nn.Module):
    """Two pre-norm convolutions and a shortcut.

    The shortcut is the identity, or a third pre-norm convolution where the number of channels changes.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = PreNormConv(in_width, out_width)
        self.conv2 = PreNormConv(out_width, out_width)
        self.shortcut: nn.Module = (
            PreNormConv(in_width, out_width) if in_width != out_width else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, out, Z, Y, X)."""
        if shares_norms(self, x):
            branch, shortcut = self.branches(x)
            return branch + shortcut
        out: Tensor = self.conv2(self.conv1(x)) + self.shortcut(x)
        return out

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two terms of the output; both branches take the same normalised input."""
        active = norm_relu(x, BLOCK_EPS)
        return self.conv2(self.conv1.conv(active)), self._shortcut(x, active)

    def after_sum(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Return the output for branch + shortcut, which is summed in the kernel that takes its norm."""
        from training.network.kernels.triton_norms import add_norm_relu

        x, active = add_norm_relu(branch, shortcut, BLOCK_EPS)
        out: Tensor = self.conv2(self.conv1.conv(active)) + self._shortcut(x, active)
        return out

    def _shortcut(self, x: Tensor, active: Tensor) -> Tensor:
        if isinstance(self.shortcut, PreNormConv):
            out: Tensor = self.shortcut.conv(active)
            return out
        return x


def two_blocks(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """Return second(first(x)) of two residual blocks; with the kernels, in fewer passes over memory."""
    assert isinstance(first, ResidualBlock)
    assert isinstance(second, ResidualBlock)
    if shares_norms(first, x) and shares_norms(second, x):
        branch, shortcut = first.branches(x)
        if use_kernels(branch) and branch.dtype == shortcut.dtype:
            return second.after_sum(branch, shortcut)
        x = branch + shortcut
        return second(x)  # type: ignore[no-any-return]
    return second(first(x))  # type: ignore[no-any-return]


def in_stage(stage: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return run(*inputs); in training, if RECOMPUTE is set, without keeping its activations."""
    if getattr(stage, RECOMPUTE, False) and stage.training and torch.is_grad_enabled():
        out: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return run(*inputs)


def shares_norms(block: ResidualBlock, x: Tensor) -> bool:
    """Whether a block's branches share one norm: with the kernels, unless the block is compiled itself."""
    # The gradient is then rounded otherwise than the plain form's, whose bits the CPU keeps.
    return use_kernels(x) and block._compiled_call_impl is None


class Mlp(nn.Module):
    """Linear layer, exact (not tanh-approximated) GELU, linear layer."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention with 32 channels per head; a width below 32 has one head."""

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
        """Return the normalised (..., C)."""
        return super().forward(at_least_float32(input))


class SelfAttention(nn.Module):
    """Layer norm and self-attention, with a residual connection."""

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
    """Layer norms and attention of queries to a context, with a residual connection for the queries."""

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
    """Layer norm and an MLP of expansion 4, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=BLOCK_EPS)
        self.fn = Mlp(width, 4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, Q, C) to (B, Q, C)."""
        out: Tensor = tokens + self.fn(self.norm(tokens))
        return out
