"""Iris: a 3D residual U-Net that segments in a target image the region that a reference and its mask define.

Gao et al., "Show and Segment: Universal Medical Image Segmentation via In-Context Learning", CVPR 2025.
State-dict keys and shapes are those of the published checkpoint.

    target ----> encoder -----------------------> decoder --> voxel features ---+
                                                    ^   |                       |--> logits of each mask
    reference -> encoder -> task encoding ----------+   +--> tokens -> mask head
    masks -------------------^      priors: 11 tokens per mask at each of the three deepest stages
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from training.errors import ConfigError, CropError
from training.network import fast_task_encoding
from training.network.blocks import HEAD_WIDTH, RECOMPUTE, ResidualBlock
from training.network.decoder import Decoder, FusionBlock, MaskHead, Priors, Up
from training.network.encoder import Down, Encoder, Features, Stem, Widths
from training.network.preparation import TrainedOn
from training.network.task_encoding import MAX_CROP_VOXELS, NUM_QUERIES, TaskEncoding

CROP_MULTIPLE = 16
"""Every axis of a crop is a multiple of this, because the encoder halves it four times."""
STAGE_SCALES = (16, 8, 4)
"""Downsampling factor of each of the three deepest stages, deepest first."""
PUBLISHED_CHANNELS: Widths = (32, 64, 128, 256, 512)
PUBLISHED_NUM_TASKS = 73


class Iris(nn.Module):
    """The in-context segmentation network.

    Args:
        channels: Number of channels of the five stages, full resolution first. Each of the three deepest is a
            multiple of 32 (the width of an attention head) or below 32.
        num_tasks: Number of labelled tasks whose priors the checkpoint stores (buffers `task_prior_0..2`);
            this class does not read them.
        position_std: Initial standard deviation of the position volumes; 1 in the published code.
        task_encoding: "fast" computes once what all masks share; "direct" is the simple form that the fast
            one is tested against.
    """

    def __init__(
        self,
        channels: Widths = PUBLISHED_CHANNELS,
        num_tasks: int = PUBLISHED_NUM_TASKS,
        *,
        position_std: float = 1.0,
        task_encoding: Literal["fast", "direct"] = "fast",
    ) -> None:
        super().__init__()
        self.channels = parse_channels(channels)
        self.num_tasks = num_tasks
        self.task_encoding = task_encoding
        self.trained_on = TrainedOn()
        """How the scans that the weights were trained on were prepared; set by `load_checkpoint`."""
        deepest = self.channels[:1:-1]
        for stage, width in enumerate(deepest):
            self.register_buffer(f"task_prior_{stage}", torch.zeros(num_tasks, NUM_QUERIES + 1, width))
        self.encoder = Encoder(self.channels)
        self.decoder = Decoder(self.channels)
        self.task_embedding = nn.ModuleList(
            TaskEncoding(width, scale, position_std)
            for width, scale in zip(deepest, STAGE_SCALES, strict=True)
        )
        self.out = MaskHead(self.channels)

    def forward(self, target: Tensor, reference: Tensor, masks: Tensor) -> Tensor:
        """Return the logits, in the target, of the structures that the masks mark in the reference.

        Args:
            target: (B, 1, Z, Y, X), z-scores. Axes are multiples of 16.
            reference: (B, 1, Z, Y, X), z-scores. Axes are multiples of 16, at most 128.
            masks: (B, K, Z, Y, X) on the reference's grid, bool or 0 and 1.

        Returns:
            Logits (B, K, Z, Y, X) on the target's grid, float32; K independent sigmoid masks.

        Raises:
            CropError: The network cannot take these sizes, or they do not match each other.
        """
        priors = self.encode_tasks(self.encode(reference), masks)
        return self.decode(self.encode(target), priors)

    def encode(self, image: Tensor) -> Features:
        """Return the features of an image (B, 1, Z, Y, X), deepest first."""
        check_crop(image)
        features: Features = self.encoder(image)
        return features

    def encode_tasks(self, reference_features: Features, masks: Tensor) -> Priors:
        """Return the priors of masks (B, K, Z, Y, X) on a reference, deepest first: (B, K, 11, C) each.

        Priors of several references of one task may be averaged before `decode`.
        """
        check_masks(reference_features, masks)
        stages = [stage for stage in self.task_embedding if isinstance(stage, TaskEncoding)]
        deepest = reference_features[:3]
        match self.task_encoding:
            case "fast":
                return fast_task_encoding.encode_tasks(stages, deepest, masks)
            case "direct":
                first, second, third = (
                    stage(feature, masks) for stage, feature in zip(stages, deepest, strict=True)
                )
                return first, second, third

    def decode(self, target_features: Features, priors: Priors) -> Tensor:
        """Return the logits (B, K, Z, Y, X), float32, in the target of the K structures of the priors."""
        voxels, tokens = self.decoder(target_features, priors)
        logits: Tensor = self.out(voxels, tokens)
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """Return dense features (B, channels[0], Z, Y, X) of an image (B, 1, Z, Y, X) without a reference.

        The image serves as its own reference, with one mask of all ones.
        """
        features = self.encode(image)
        everything = torch.ones_like(image, dtype=torch.bool)
        voxels: Tensor = self.decoder(features, self.encode_tasks(features, everything))[0]
        return voxels


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """Return the blocks that most of a network consists of, none within another; these are compiled."""
    return [module for module in net.modules() if isinstance(module, ResidualBlock | FusionBlock)]


def recompute_stages(net: nn.Module) -> int:
    """Let each stage of encoder and decoder compute its activations again in training; return their number.

    Only the inputs of the stages are kept for the backward pass.
    """
    stages = [module for module in net.modules() if isinstance(module, Stem | Down | Up)]
    for stage in stages:
        setattr(stage, RECOMPUTE, True)
    return len(stages)


def parse_channels(channels: tuple[int, ...]) -> Widths:
    """Return the five numbers of channels as a tuple.

    Raises:
        ConfigError: Not five positive numbers, or a deep stage that cannot be split into attention heads.
    """
    if len(channels) != 5 or min(channels) < 1:
        raise ConfigError(f"channels: five positive widths expected, got {channels}")
    for width in channels[2:]:
        if width > HEAD_WIDTH and width % HEAD_WIDTH:
            raise ConfigError(
                f"channels: the three deepest must be multiples of {HEAD_WIDTH} or less, got {channels}"
            )
    c0, c1, c2, c3, c4 = channels
    return c0, c1, c2, c3, c4


def check_crop(image: Tensor) -> None:
    """Raise CropError for an image that is not (B, 1, Z, Y, X), or cannot be halved four times."""
    if image.ndim != 5 or image.shape[1] != 1:
        raise CropError(f"an image is (B, 1, Z, Y, X), got {tuple(image.shape)}")
    if any(side % CROP_MULTIPLE or not side for side in image.shape[2:]):
        raise CropError(
            f"each axis of a crop must be a multiple of {CROP_MULTIPLE}, got {tuple(image.shape[2:])}: pad it"
        )


def check_masks(features: Features, masks: Tensor) -> None:
    """Raise CropError for masks that are not on the reference's grid, or longer than the position volume."""
    grid, batch = tuple(features[-1].shape[2:]), len(features[-1])
    if masks.ndim != 5 or len(masks) != batch or tuple(masks.shape[2:]) != grid:
        raise CropError(f"masks must be ({batch}, K, *{grid}) like the reference, got {tuple(masks.shape)}")
    if max(grid) > MAX_CROP_VOXELS:
        raise CropError(f"a reference has at most {MAX_CROP_VOXELS} voxels an axis, got {grid}: use windows")
