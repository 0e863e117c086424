"""Restoration as in Models Genesis: scans are distorted, the network restores them.

Zhou et al., "Models Genesis", Medical Image Analysis 67 (2021) 101840 (arXiv 2004.07882), with the
probabilities of its code: a non-linear map of intensities (0.9), local shuffling of voxels (0.5), and
painting-in or painting-out (0.9, of which 0.8 out). The loss is the squared error of all voxels.

Simpler than there: voxels are shuffled within the blocks of one grid of random size and place, half of the
blocks, in place of 10,000 overlapping blocks; intensities are scaled by the minimum and maximum of the view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.bench.self_supervised import Restoring, SelfSupervised
from training.engine import LossTerms

MAP_PROBABILITY, SHUFFLE_PROBABILITY, PAINT_PROBABILITY, OUTWARD_FRACTION = 0.9, 0.5, 0.9, 0.8
SHUFFLED_FRACTION = 0.5
"""Of the blocks of a shuffled view."""
LONGEST_BLOCK = 0.1
"""Largest side of a block, as a fraction of the view's."""
_CURVE_POINTS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Distorted:
    """Images and what the network is shown of them."""

    image: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    shown: Tensor
    """The same, distorted."""


def distort(image: Tensor, generators: list[np.random.Generator]) -> Distorted:
    """Draw and apply the distortions of each image."""
    arrays = image.detach().cpu().numpy()
    shown = [distorted(array[0], generator) for array, generator in zip(arrays, generators, strict=True)]
    return Distorted(image=image, shown=torch.from_numpy(np.stack(shown))[:, None].to(image.device))


def distorted(image: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return one image (z, y, x), distorted."""
    low, high = float(image.min()), float(image.max())
    values = (image - low) / max(high - low, 1e-6)
    if generator.random() < SHUFFLE_PROBABILITY:
        values = shuffled(values, generator)
    if generator.random() < MAP_PROBABILITY:
        values = mapped(values, generator)
    if generator.random() < PAINT_PROBABILITY:
        outward = generator.random() < OUTWARD_FRACTION
        values = painted(values, generator, outward=outward)
    return np.asarray(values * (high - low) + low, np.float32)


def mapped(values: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return intensities in 0..1 mapped by a random cubic Bezier curve; half of them rise throughout."""
    inner = generator.random((2, 2))
    points = np.array([[0.0, 0.0], *inner, [1.0, 1.0]])
    t = np.linspace(0, 1, _CURVE_POINTS)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    x, y = (weights @ points).T
    x = np.sort(x)
    if generator.random() < 0.5:
        y = np.sort(y)
    return np.asarray(np.interp(values, x, y), np.float32)


def shuffled(values: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return an image whose voxels change places within small blocks."""
    most = [max(2, round(LONGEST_BLOCK * size)) for size in values.shape]
    sides = [int(generator.integers(1, side + 1)) for side in most]
    move = [int(generator.integers(side)) for side in sides]
    moved = np.roll(values, move, axis=(0, 1, 2))
    counts = [size // side for size, side in zip(values.shape, sides, strict=True)]
    inner = tuple(slice(0, count * side) for count, side in zip(counts, sides, strict=True))
    (a, b, c), (p, q, r) = counts, sides
    blocks = moved[inner].reshape(a, p, b, q, c, r).transpose(0, 2, 4, 1, 3, 5).reshape(-1, p * q * r)
    order = generator.random(blocks.shape).argsort(axis=1)
    chosen = generator.random(len(blocks)) < SHUFFLED_FRACTION
    blocks = np.where(chosen[:, None], np.take_along_axis(blocks, order, axis=1), blocks)
    moved[inner] = blocks.reshape(a, b, c, p, q, r).transpose(0, 3, 1, 4, 2, 5).reshape(a * p, b * q, c * r)
    return np.roll(moved, [-step for step in move], axis=(0, 1, 2))


def painted(
    values: NDArray[np.float32], generator: np.random.Generator, *, outward: bool
) -> NDArray[np.float32]:
    """Return an image with noise in up to six boxes (painting-in), or everywhere outside them (-out)."""
    kept = np.zeros(values.shape, bool)
    for number in range(6):
        if number and generator.random() > 0.95:
            break
        if outward:
            sides = [
                size - int(generator.integers(3 * size // 7, 4 * size // 7 + 1)) for size in values.shape
            ]
        else:
            sides = [int(generator.integers(max(1, size // 6), size // 3 + 1)) for size in values.shape]
        starts = [
            int(generator.integers(0, size - side + 1))
            for size, side in zip(values.shape, sides, strict=True)
        ]
        kept[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))] = True
    if outward:
        return np.where(kept, values, generator.random(values.shape)).astype(np.float32)
    return np.where(kept, np.float32(generator.random()), values).astype(np.float32)


def restoration_error(net: nn.Module, views: Distorted) -> LossTerms:
    """Mean squared error of all voxels."""
    square = (net(views.shown).float() - views.image).square().mean()
    return LossTerms(total=square, parts={"square": square.detach()})


RESTORATION = SelfSupervised(
    name="restoration (Models Genesis)", make=Restoring, change=distort, loss=restoration_error
)
