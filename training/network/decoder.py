"""The decoder: attention between mask tokens and image at the three deepest stages, then upsampling.

At each of these stages, the image tokens after attention replace the feature that is upsampled. The first
token of each mask is kept; the mask head maps it to the weights of a linear classifier, which turns the
decoder's voxel features into the logits of the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.network.blocks import (
    NORM_EPS,
    CrossAttention,
    FeedForward,
    LayerNorm,
    Mlp,
    ResidualBlock,
    SelfAttention,
    at_least_float32,
    in_stage,
    two_blocks,
)
from training.network.encoder import Features, Widths
from training.network.kernels import use_kernels

Priors = tuple[Tensor, Tensor, Tensor]
"""Tokens of each mask at the three deepest stages, deepest first: (B, K, 11, C) each."""


class FusionBlock(nn.Module):
    """Attention of mask tokens to the image, of the image to mask tokens, and among mask tokens.

    An MLP follows each of the three.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prior_aggregate_block = CrossAttention(width)
        self.prior_ffn = FeedForward(width)
        self.feat_aggregate_block = CrossAttention(width)
        self.feat_ffn = FeedForward(width)
        self.prior_attn_block = SelfAttention(width)
        self.prior_ffn_2 = FeedForward(width)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map image tokens (B, N, C) and mask tokens (B, K*11, C) to updated ones of the same shapes."""
        tokens = self.prior_ffn(self.prior_aggregate_block(tokens, image))
        image = self.feat_ffn(self.feat_aggregate_block(image, tokens))
        tokens = self.prior_ffn_2(self.prior_attn_block(tokens))
        return image, tokens


class Fusion(nn.Module):
    """Two fusion blocks at one stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(FusionBlock(width) for _ in range(2))

    def forward(self, feature: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse a feature (B, C, z, y, x) with the tokens of K masks (B, K, 11, C).

        Returns:
            The fused feature (B, C, z, y, x) and the first token of each mask (B, K, C).
        """
        image = feature.flatten(2).transpose(1, 2)
        tokens = prior.flatten(1, 2)
        for block in self.attn_layers:
            image, tokens = block(image, tokens)
        return image.transpose(1, 2).reshape(feature.shape), tokens.view(prior.shape)[:, :, 0]


class Up(nn.Module):
    """Upsampling to the size of the skip connection, concatenation [skip, upsampled], two residual blocks."""

    def __init__(self, in_width: int, skip_width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            ResidualBlock(in_width + skip_width, skip_width), ResidualBlock(skip_width, skip_width)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, in, Z/2, Y/2, X/2) and (B, skip, Z, Y, X) to (B, skip, Z, Y, X)."""
        first, second = self.conv
        return in_stage(self, lambda x, skip: two_blocks(first, second, upsampled_beside(x, skip)), x, skip)


def upsampled_beside(x: Tensor, skip: Tensor) -> Tensor:
    """Return [skip, x upsampled to the skip's grid] along the channels, in the skip's dtype."""
    if use_kernels(skip) and skip.is_contiguous(memory_format=torch.channels_last_3d):
        from training.network.kernels.triton_upsampling import upsample_beside

        return upsample_beside(x, skip)
    upsampled = functional.interpolate(
        at_least_float32(x), size=skip.shape[2:], mode="trilinear", align_corners=True
    )
    return torch.cat([skip, upsampled.to(skip.dtype)], dim=1)


class Decoder(nn.Module):
    """The expanding path of the U-Net, with mask tokens fused in at the three deepest stages."""

    def __init__(self, channels: Widths) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.prior_fuse = nn.ModuleList(Fusion(width) for width in (c4, c3, c2))
        self.up1 = Up(c4, c3)
        self.up2 = Up(c3, c2)
        self.up3 = Up(c2, c1)
        self.up4 = Up(c1, c0)

    def forward(self, features: Features, priors: Priors) -> tuple[Tensor, Tensor]:
        """Return the features that the logits of the masks are computed from.

        Args:
            features: Of the target, see `Features`.
            priors: Tokens of each mask, see `Priors`.

        Returns:
            Voxel features (B, channels[0], Z, Y, X), and the kept tokens of each mask, deepest stage first:
            (B, K, channels[4] + channels[3] + channels[2]).
        """
        x, eighth, quarter, half, full = features
        kept = []
        for fuse, prior, up, skip in zip(
            self.prior_fuse, priors, (self.up1, self.up2, self.up3), (eighth, quarter, half), strict=True
        ):
            x, tokens = fuse(x, prior)
            kept.append(tokens)
            x = up(x, skip)
        return self.up4(x, full), torch.cat(kept, dim=2)


class MaskHead(nn.Module):
    """Maps the kept tokens of a mask to its logit at every voxel."""

    def __init__(self, channels: Widths) -> None:
        super().__init__()
        c0, _, c2, c3, c4 = channels
        width = c4 + c3 + c2
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.classifier_pred = nn.Sequential(Mlp(width, width, c0), Mlp(c0, c0, c0))

    def forward(self, voxels: Tensor, tokens: Tensor) -> Tensor:
        """Map voxel features (B, C, Z, Y, X) and tokens (B, K, W) to logits (B, K, Z, Y, X).

        They are float32, except in training with the kernels, whose loss reads the network's own precision.
        """
        weights = self.classifier_pred(self.norm(tokens))
        logits: Tensor = weights @ voxels.flatten(2)
        B, K = logits.shape[:2]
        for_kernels = use_kernels(logits) and torch.is_grad_enabled()
        return (logits if for_kernels else at_least_float32(logits)).view(B, K, *voxels.shape[2:])
