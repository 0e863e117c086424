"""Masked autoencoding: blocks of voxels are masked out, the network restores them.

He et al., "Masked autoencoders are scalable vision learners", CVPR 2022 (arXiv 2111.06377), for networks of
convolutions as in Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", CVPR 2025
(arXiv 2410.23132), whose plain form for residual U-Nets this is: masked voxels are set to 0, the mean of
z-scores, and the loss is the squared error of the masked voxels. Of SparK (Tian et al., ICLR 2023, arXiv
2301.03580) it lacks the sparse convolutions and norms: masked voxels are zeros to the encoder, not absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench.self_supervised import Restoring, SelfSupervised
from training.engine import LossTerms

BLOCK_VOXELS = 8
"""Side of a block. The papers take that of the deepest stage's cell, 16, in crops of 160; windows here are 32
to 64 voxels long."""
MASKED_FRACTION = 0.7
"""Of the blocks; the papers found 0.6 to 0.9 alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Masked:
    """Images with blocks masked out."""

    image: Tensor
    """float32 (B, 1, Z, Y, X): z-scores before masking."""
    hidden: Tensor
    """bool (B, 1, Z, Y, X): where the network sees 0."""


def mask_blocks(image: Tensor, generators: list[np.random.Generator]) -> Masked:
    """Draw the masked blocks of each image: MASKED_FRACTION of them, at least one, never all."""
    hidden = [_blocks(tuple(image.shape[2:]), generator) for generator in generators]
    return Masked(image=image, hidden=torch.from_numpy(np.stack(hidden))[:, None].to(image.device))


def _blocks(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    counts = [-(-size // BLOCK_VOXELS) for size in shape]
    total = int(np.prod(counts))
    chosen = np.zeros(total, bool)
    chosen[generator.permutation(total)[: min(max(round(MASKED_FRACTION * total), 1), total - 1)]] = True
    blocks = chosen.reshape(counts)
    for axis in range(3):
        blocks = blocks.repeat(BLOCK_VOXELS, axis=axis)
    return blocks[: shape[0], : shape[1], : shape[2]].copy()


def restoration_error(net: nn.Module, views: Masked) -> LossTerms:
    """Mean squared error of the masked voxels."""
    restored = net(views.image.masked_fill(views.hidden, 0.0)).float()
    square = ((restored - views.image).square() * views.hidden).sum() / views.hidden.sum()
    return LossTerms(total=square, parts={"masked": square.detach()})


MASKED_AUTOENCODING = SelfSupervised(
    name="masked autoencoding", make=Restoring, change=mask_blocks, loss=restoration_error
)
