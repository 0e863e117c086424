"""The encoder: the contracting path of a residual 3D U-Net; five stages, each at half the resolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.network.blocks import ResidualBlock, in_best_layout, in_stage, two_blocks

Widths = tuple[int, int, int, int, int]
"""Channels of the five stages, full resolution first."""
Features = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Features of one image, deepest first: (B, C, Z/16, Y/16, X/16), ..., (B, C, Z, Y, X)."""


class Stem(nn.Module):
    """A convolution of the image and one residual block, at full resolution."""

    def __init__(self, width: int, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.conv2 = ResidualBlock(width, width)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, C, Z, Y, X)."""
        return in_stage(self, lambda x: self.conv2(in_best_layout(self.conv1(x))), image)


class Down(nn.Module):
    """Max-pooling by 2 and two residual blocks; the first one increases the number of channels."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.MaxPool3d(2), ResidualBlock(in_width, out_width), ResidualBlock(out_width, out_width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, Z, Y, X) to (B, out, Z/2, Y/2, X/2)."""
        pool, first, second = self.conv
        return in_stage(self, lambda x: two_blocks(first, second, pool(x)), x)


class Encoder(nn.Module):
    """Computes features of an image at five scales.

    Args:
        channels: Number of channels of the five stages, full resolution first.
        in_channels: Number of channels of the image; 1 in every pretrained network.
    """

    def __init__(self, channels: Sequence[int], in_channels: int = 1) -> None:
        super().__init__()
        self.inc = Stem(channels[0], in_channels)
        self.down1 = Down(channels[0], channels[1])
        self.down2 = Down(channels[1], channels[2])
        self.down3 = Down(channels[2], channels[3])
        self.down4 = Down(channels[3], channels[4])

    def forward(self, image: Tensor) -> Features:
        """Return the features of (B, in_channels, Z, Y, X), deepest first."""
        full = self.inc(image)
        half = self.down1(full)
        quarter = self.down2(half)
        eighth = self.down3(quarter)
        return self.down4(eighth), eighth, quarter, half, full
