"""Plain networks with pretrained weights, for use in other tools: no reference and no mask is needed.

    PlainUNet      encoder, and the decoder without the attention to mask tokens; a new segmentation layer
    FinetunedUNet  the whole fine-tuned network, with the tokens of its structures inside

Names of tensors are those of Iris, so weights move between the three. Neither class reads or writes files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.network.blocks import BLOCK_EPS, norm_relu
from training.network.decoder import Decoder, MaskHead, Priors, Up
from training.network.encoder import Encoder, Features
from training.network.iris import PUBLISHED_CHANNELS, Iris, parse_channels
from training.network.task_encoding import NUM_QUERIES

StateDict = dict[str, Tensor]

STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
"""Downsampling (z, y, x) before each of the five stages, full resolution first."""
BACKGROUND_PROBABILITY = 0.5
"""Probability that a structure must exceed to win over the background; that of `mass segment`."""


class PlainDecoder(nn.Module):
    """The decoder of Iris without its attention to mask tokens, and a segmentation layer at each scale.

    Before each segmentation layer stands an instance norm and ReLU without parameters, which Iris does not
    have: features of pretrained residual blocks are large, and so would the first steps of training be.

    Args:
        channels: Number of channels of the five stages, full resolution first.
        num_classes: Number of output channels.
        deep_supervision: Whether `forward` returns logits at four scales; can be changed at any time.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, deep_supervision: bool) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.deep_supervision = deep_supervision
        self.up1 = Up(c4, c3)
        self.up2 = Up(c3, c2)
        self.up3 = Up(c2, c1)
        self.up4 = Up(c1, c0)
        # nnU-Net loads no pretrained weights into keys with ".seg_layers.": they belong to the classes.
        self.seg_layers = nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in (c3, c2, c1, c0))

    def forward(self, features: Features) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, Z, Y, X).

        With `deep_supervision`, a list of logits at full, half, quarter and eighth resolution, in this order.
        """
        x, *skips = features
        logits = []
        for up, skip, layer in zip(
            (self.up1, self.up2, self.up3, self.up4), skips, self.seg_layers, strict=True
        ):
            x = up(x, skip)
            if self.deep_supervision or layer is self.seg_layers[-1]:
                logits.append(layer(norm_relu(x, BLOCK_EPS)))
        return logits[::-1] if self.deep_supervision else logits[0]


class PlainUNet(nn.Module):
    """A residual U-Net: the encoder of Iris and its decoder without the in-context parts.

    The arguments are those that nnU-Net gives to the network class of a plans file.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        channels: Number of channels of the five stages, full resolution first.
        strides: Downsampling of the five stages; only `STRIDES` is possible. nnU-Net reads it in the plans.
        deep_supervision: Whether `forward` returns logits at four scales, see `PlainDecoder`.

    Raises:
        ConfigError: The channels or the strides are not those of this network.
    """

    def __init__(
        self,
        input_channels: int = 1,
        num_classes: int = 2,
        *,
        channels: Sequence[int] = PUBLISHED_CHANNELS,
        strides: Sequence[Sequence[int]] = STRIDES,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if tuple(tuple(step) for step in strides) != STRIDES:
            raise ConfigError(f"strides: this network downsamples by {STRIDES}, got {strides}")
        self.channels = parse_channels(tuple(channels))
        self.encoder = Encoder(self.channels, input_channels)
        self.decoder = PlainDecoder(self.channels, num_classes, deep_supervision)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of an image (B, input_channels, Z, Y, X), z-scores, axes multiples of 16."""
        logits: Tensor | list[Tensor] = self.decoder(self.encoder(image))
        return logits


class FinetunedUNet(nn.Module):
    """A fine-tuned network as one plain module: image in, one probability per structure out.

    Args:
        channels: Number of channels of the five stages, full resolution first.
        num_structures: Number K of structures.
        masks_at_once: Largest number of structures that are decoded together, as in training. Structures
            that are decoded together attend to each other, so the result depends on it.
    """

    def __init__(self, channels: Sequence[int], num_structures: int, masks_at_once: int) -> None:
        super().__init__()
        self.channels = parse_channels(tuple(channels))
        self.num_structures, self.masks_at_once = num_structures, masks_at_once
        for stage, width in enumerate(self.channels[:1:-1]):
            tokens = torch.zeros(num_structures + 1, NUM_QUERIES + 1, width)
            self.register_buffer(f"task_prior_{stage}", tokens)
        self.encoder = Encoder(self.channels)
        self.decoder = Decoder(self.channels)
        self.out = MaskHead(self.channels)

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, Z, Y, X) of an image (B, 1, Z, Y, X), z-scores, axes multiples of 16."""
        features = self.encoder(image)
        parts = []
        for start in range(0, self.num_structures, self.masks_at_once):
            stop = min(start + self.masks_at_once, self.num_structures)
            voxels, tokens = self.decoder(features, self._priors(start, stop, len(image)))
            parts.append(self.out(voxels, tokens)[:, : stop - start])
        return torch.cat(parts, dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities (B, 1 + K, Z, Y, X); channel 0 is the background, 0.5 everywhere.

        The index of the largest channel is the label of `mass segment`: 0, or 1 + index of the structure.
        """
        structures = torch.sigmoid(self.logits(image))
        background = torch.full_like(structures[:, :1], BACKGROUND_PROBABILITY)
        return torch.cat([background, structures], dim=1)

    def _priors(self, start: int, stop: int, num_images: int) -> Priors:
        """Return the tokens of some structures, and those of the whole image, which training has always."""
        stages = (self.get_buffer(f"task_prior_{stage}") for stage in range(3))
        first, second, third = (
            torch.cat([tokens[start:stop], tokens[-1:]]).expand(num_images, -1, -1, -1) for tokens in stages
        )
        return first, second, third


def plain_unet_state(net: Iris, input_channels: int = 1) -> StateDict:
    """Return the tensors of a `PlainUNet` that Iris has: all but the segmentation layers.

    Args:
        net: A pretrained or fine-tuned network.
        input_channels: Number of channels of the image. The weights of the first convolution are repeated
            for each channel and divided by their number, so that equal channels give the same features.
    """
    # Built on no device: only the names are wanted.
    with torch.device("meta"):
        wanted = PlainUNet(input_channels, 2, channels=net.channels).state_dict()
    have = net.state_dict()
    state = {
        name: have[name].detach().cpu().clone()
        for name in wanted
        if not name.startswith("decoder.seg_layers.")
    }
    first = "encoder.inc.conv1.weight"
    state[first] = (state[first] / input_channels).repeat(1, input_channels, 1, 1, 1)
    return state


def plain_unet(net: Iris, num_classes: int, *, input_channels: int = 1) -> PlainUNet:
    """Return a U-Net with the pretrained weights, on the CPU, in training mode.

    Its segmentation layers are new (drawn from torch's generator), so it has to be trained on labels.

    Args:
        net: A pretrained or fine-tuned network.
        num_classes: Number of output channels.
        input_channels: Number of channels of the image, see `plain_unet_state`.
    """
    unet = PlainUNet(input_channels, num_classes, channels=net.channels)
    unet.load_state_dict({**unet.state_dict(), **plain_unet_state(net, input_channels)})
    return unet


def finetuned_unet(net: Iris, masks_at_once: int) -> FinetunedUNet:
    """Return a fine-tuned network as one plain module, on the CPU, in evaluation mode.

    Args:
        net: A fine-tuned network: its task priors are the tokens of K structures and of the whole image.
        masks_at_once: Largest number of structures that were predicted together in training.
    """
    unet = FinetunedUNet(net.channels, net.num_tasks - 1, masks_at_once)
    have = net.state_dict()
    unet.load_state_dict({name: have[name].detach().cpu().clone() for name in unet.state_dict()})
    return unet.eval()
