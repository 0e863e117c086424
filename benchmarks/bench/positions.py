"""Contrastive position prediction as in VoCo: where in the scan is this crop?

Wu, Zhuang and Chen, "VoCo: a simple-yet-effective volume contrastive learning framework for 3D medical image
analysis", CVPR 2024 (arXiv 2402.17300). A view is divided into base crops; of a random crop the network
predicts by how much it overlaps each base crop: the similarity of their projected features is to be the
overlapped part of the crop. Base crops that do not overlap are pushed apart.

Simpler than there: 2 base crops along an axis (1 where it has no more than 16 voxels) in place of 4 by 4; the
same network encodes crops and base crops (no momentum teacher), and no gradient flows through the base crops
into the prediction. Features are the means of the three deepest stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bench.self_supervised import SelfSupervised
from training.engine import LossTerms
from training.network.encoder import Encoder

RANDOM_CROPS = 4
"""Of each view."""
WIDTH = 64
"""Of the projected features."""
_STRIDE = 16
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """Crops of B views."""

    bases: Tensor
    """float32 (B, N, Z, Y, X)"""
    crops: Tensor
    """float32 (B, M, Z, Y, X)"""
    overlaps: Tensor
    """float32 (B, M, N): part of each crop that lies in each base crop; sums to 1."""


class Projected(nn.Module):
    """Encoder and a projection of its pooled features to unit vectors."""

    def __init__(self, encoder: Encoder, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.Linear(sum(channels[2:]), WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Map (N, 1, Z, Y, X) to unit vectors (N, WIDTH)."""
        pooled = torch.cat([stage.float().mean(dim=(2, 3, 4)) for stage in self.encoder(crops)[:3]], dim=1)
        return functional.normalize(self.project(pooled).float(), dim=1)


def crop_views(image: Tensor, generators: list[np.random.Generator]) -> Crops:
    """Divide each view (B, 1, Z, Y, X) into base crops, and draw crops of their size anywhere."""
    shape = tuple(image.shape[2:])
    parts = [1 if size <= _STRIDE else 2 for size in shape]
    sides = [size // part for size, part in zip(shape, parts, strict=True)]
    starts = [np.multiply(index, sides) for index in product(*(range(part) for part in parts))]
    bases, crops, overlaps = [], [], []
    for view, generator in zip(image[:, 0], generators, strict=True):
        drawn = [
            np.array(
                [generator.integers(0, size - side + 1) for size, side in zip(shape, sides, strict=True)]
            )
            for _ in range(RANDOM_CROPS)
        ]
        bases.append(torch.stack([_cut(view, start, sides) for start in starts]))
        crops.append(torch.stack([_cut(view, start, sides) for start in drawn]))
        overlaps.append([[_overlap(one, other, sides) for other in starts] for one in drawn])
    table = torch.tensor(np.array(overlaps), dtype=torch.float32, device=image.device)
    return Crops(bases=_fitted(torch.stack(bases)), crops=_fitted(torch.stack(crops)), overlaps=table)


def _cut(view: Tensor, start: np.ndarray, sides: list[int]) -> Tensor:
    z, y, x = (slice(int(low), int(low) + side) for low, side in zip(start, sides, strict=True))
    return view[z, y, x]


def _overlap(one: np.ndarray, other: np.ndarray, sides: list[int]) -> float:
    shared = np.maximum(np.array(sides) - np.abs(one - other), 0)
    return float(np.prod(shared / np.array(sides)))


def _fitted(crops: Tensor) -> Tensor:
    """Resample crops to multiples of 16 voxels, and to 32 along one axis: the norm of one cell is 0."""
    sides = [max(_STRIDE, -(-size // _STRIDE) * _STRIDE) for size in crops.shape[2:]]
    if max(sides) == _STRIDE:
        sides[-1] = 2 * _STRIDE
    if tuple(sides) == tuple(crops.shape[2:]):
        return crops
    return functional.interpolate(crops, size=sides, mode="trilinear", align_corners=False)


def position_loss(net: nn.Module, views: Crops) -> LossTerms:
    """The paper's loss: predicted overlaps against true ones, and base crops kept apart."""
    B, N, M = len(views.bases), views.bases.shape[1], views.crops.shape[1]
    together = torch.cat([views.bases.flatten(0, 1), views.crops.flatten(0, 1)])[:, None]
    features = net(together)
    bases, crops = features[: B * N].view(B, N, -1), features[B * N :].view(B, M, -1)
    predicted = (crops @ bases.detach().transpose(1, 2)).clamp(0, 1)
    truth = views.overlaps
    near = -(truth * torch.log(1 - (truth - predicted).abs() + _EPSILON)).sum() / (truth.sum() + _EPSILON)
    absent = (truth == 0).float()
    far = (absent * predicted.square()).sum() / (absent.sum() + _EPSILON)
    alike = (bases @ bases.transpose(1, 2)).clamp_min(0)
    others = 1 - torch.eye(N, device=alike.device)
    apart = (alike.square() * others).sum() / (B * max(N * (N - 1), 1))
    total = near + far + apart
    parts = {"near": near.detach(), "far": far.detach(), "apart": apart.detach()}
    return LossTerms(total=total, parts=parts)


POSITIONS = SelfSupervised(
    name="position prediction (VoCo)", make=Projected, change=crop_views, loss=position_loss
)
