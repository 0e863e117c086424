"""Direct task encoding at one stage: from a reference feature and its masks to 11 tokens per mask.

The fast form (`fast_task_encoding.py`) is tested against this one and uses the same parameters. The direct
form repeats the work on the image for every mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.network.blocks import (
    NORM_EPS,
    CrossAttention,
    FeedForward,
    LayerNorm,
    SelfAttention,
    at_least_float32,
    norm_relu,
)

NUM_QUERIES = 10
"""Learned task queries per stage; with the foreground token they are the 11 tokens of a mask."""
MAX_CROP_VOXELS = 128
"""Voxels of the learned position volume along each axis."""


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """Map (B, s^3, z, y, x) to (B, 1, s*z, s*y, s*x); channel (a*s + b)*s + c goes to offset (a, b, c)."""
    B, _, z, y, x_ = x.shape
    blocks = x.reshape(B, scale, scale, scale, z, y, x_)
    return blocks.permute(0, 4, 1, 5, 2, 6, 3).reshape(B, 1, z * scale, y * scale, x_ * scale)


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """Undo `pixel_shuffle`: (B, 1, s*z, s*y, s*x) to (B, s^3, z, y, x)."""
    B, _, Z, Y, X = x.shape
    blocks = x.view(B, Z // scale, scale, Y // scale, scale, X // scale, scale)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(B, scale**3, Z // scale, Y // scale, X // scale)


class NormReluConv(nn.Sequential):
    """Instance norm, ReLU and a convolution at index 2, as the published state dict numbers them."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(nn.InstanceNorm3d(conv.in_channels, eps=NORM_EPS), nn.ReLU(), conv)

    @property
    def conv(self) -> nn.Conv3d:
        """The convolution."""
        conv = self[2]
        assert isinstance(conv, nn.Conv3d)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, out, Z, Y, X)."""
        out: Tensor = self.conv(norm_relu(x, NORM_EPS))
        return out


def normal_numbers(*shape: int, std: float = 1.0) -> Tensor:
    """Return normal random numbers, float32; on the meta device only their shape.

    `torch.randn` on the meta device would import PyTorch's compiler, which takes a second.
    """
    numbers = torch.empty(shape)
    return numbers if numbers.is_meta else numbers.normal_(0.0, std)


class PositionVolume(nn.Module):
    """A learned value for every voxel of a crop, counted from the crop's first corner."""

    def __init__(self, std: float) -> None:
        super().__init__()
        side = MAX_CROP_VOXELS
        self.embedding = nn.Parameter(normal_numbers(1, 1, side, side, side, std=std))

    def forward(self, grid: torch.Size) -> Tensor:
        """Return the values (1, 1, Z, Y, X) of a crop of this size."""
        Z, Y, X = grid
        return self.embedding[:, :, :Z, :Y, :X]


class TaskQueryBlock(nn.Module):
    """Self-attention of the queries, attention to the feature, self-attention; an MLP follows each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_attn_block_1 = SelfAttention(width)
        self.query_ffn_1 = FeedForward(width)
        self.query_aggregate_block = CrossAttention(width)
        self.query_aggregate_ffn = FeedForward(width)
        self.query_attn_block_2 = SelfAttention(width)
        self.query_ffn_2 = FeedForward(width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Map queries (B, 11, C) and feature tokens (B, N, C) to updated queries (B, 11, C)."""
        queries = self.query_ffn_1(self.query_attn_block_1(queries))
        queries = self.query_aggregate_ffn(self.query_aggregate_block(queries, context))
        out: Tensor = self.query_ffn_2(self.query_attn_block_2(queries))
        return out


class TaskEncoding(nn.Module):
    """Parameters of task encoding at one stage; `forward` is the direct form.

    Args:
        width: Channels C of the stage's feature.
        scale: Downsampling factor of the feature's grid relative to the mask's: 16, 8 or 4.
        position_std: Initial standard deviation of the position volume.
    """

    def __init__(self, width: int, scale: int, position_std: float) -> None:
        super().__init__()
        self.scale = scale
        self.task_query = nn.Parameter(normal_numbers(NUM_QUERIES, width))
        self.attn_layers = nn.ModuleList(TaskQueryBlock(width) for _ in range(2))
        self.norm_foreground = LayerNorm(width, eps=NORM_EPS)
        self.norm_query = LayerNorm(width, eps=NORM_EPS)
        self.norm_combined = LayerNorm(width, eps=NORM_EPS)
        self.norm_post = LayerNorm(width, eps=NORM_EPS)
        self.expand = NormReluConv(nn.Conv3d(width, scale**3, kernel_size=1))
        self.merge = NormReluConv(nn.Conv3d(2, 1, kernel_size=3, padding=1))
        self.squeeze = NormReluConv(nn.Conv3d(scale**3, width, kernel_size=1))
        self.pos_embed = PositionVolume(position_std)

    def query_blocks(self) -> Iterator[TaskQueryBlock]:
        """Yield the two query blocks, with their type."""
        for block in self.attn_layers:
            assert isinstance(block, TaskQueryBlock)
            yield block

    def combine(self, foreground: Tensor) -> Tensor:
        """Return the initial queries (B, 11, C): the learned ones, then the foreground token (B, C)."""
        learned = self.norm_query(self.task_query).expand(len(foreground), -1, -1)
        both = torch.cat([learned, self.norm_foreground(foreground)[:, None]], dim=1)
        out: Tensor = self.norm_combined(both)
        return out

    def forward(self, feature: Tensor, masks: Tensor) -> Tensor:
        """Return the prior (B, K, 11, C) of a feature (B, C, z, y, x) and its masks (B, K, Z, Y, X)."""
        B, K = masks.shape[:2]
        queries = self.combine(self._foreground(feature, masks).flatten(0, 1))
        context = self._conditioned(feature, masks).flatten(2).transpose(1, 2)
        for block in self.query_blocks():
            queries = block(queries, context)
        prior: Tensor = self.norm_post(queries).view(B, K, *queries.shape[1:])
        return prior

    def _foreground(self, feature: Tensor, masks: Tensor) -> Tensor:
        """Return the mean (B, K, C) of the upsampled feature inside each mask (B, K, Z, Y, X)."""
        upsampled = functional.interpolate(
            at_least_float32(feature), size=masks.shape[2:], mode="trilinear", align_corners=True
        )
        masks = masks.to(upsampled.dtype)
        total = torch.einsum("bczyx,bkzyx->bkc", upsampled, masks)
        return total / masks.sum(dim=(2, 3, 4)).clamp(min=1)[:, :, None]

    def _conditioned(self, feature: Tensor, masks: Tensor) -> Tensor:
        """Return the feature conditioned on each mask (B, K, Z, Y, X), as (B*K, C, z, y, x)."""
        feature = feature.repeat_interleave(masks.shape[1], dim=0)
        fine = pixel_shuffle(self.expand(feature), self.scale)
        both = torch.cat([fine, masks.flatten(0, 1)[:, None].to(fine.dtype)], dim=1)
        merged = self.merge(both) + self.pos_embed(masks.shape[2:])
        out: Tensor = self.squeeze(pixel_unshuffle(merged, self.scale)) + feature
        return out
