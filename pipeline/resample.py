"""Re-gridding along the axes: images by a linear kernel that widens when it shrinks, labels by nearest.

*Reads*: (z, y, x) arrays on a grid. *Writes*: float32 images, or labels of the input's dtype, on a grid with
the same axes. Both grids share their directions, so everything is one pass along each axis: exact, the same
on every machine, and without threads that several workers would fight over.

The kernel is a triangle whose half-width is one source voxel when upsampling (plain linear interpolation) and
one target voxel when downsampling (so that nothing finer than the target's voxels is left to alias).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import AxisMap, axis_maps
from pipeline.volume import Grid

Scalar = TypeVar("Scalar", bound=np.generic)

_SLAB_VOXELS = 8_000_000
"""Voxels turned to float32 at a time, so that a large int16 scan is never held whole as float."""


def resample_image(image: NDArray[Any], source: Grid, target: Grid, *, floor: float) -> NDArray[np.float32]:
    """The image on the target grid, float32 (z, y, x); beyond the edge the nearest voxel goes on.

    Args:
        image: (z, y, x), any number type, on `source`.
        source: The image's grid.
        target: A grid with the same axis directions.
        floor: Values below are raised to it first (padding such as -3024 must not bleed into tissue);
            -inf leaves all.
    """
    maps = axis_maps(source, target)
    if tuple(m.axis for m in maps) != (0, 1, 2):
        raise ValueError("the target's axes must be the source's, in the same order")
    kernels = [_kernel(m, image.shape[i], target.shape_zyx[i]) for i, m in enumerate(maps)]
    slab = max(1, _SLAB_VOXELS // max(1, image.shape[1] * image.shape[2]))
    planes: NDArray[np.float32] = np.empty((image.shape[0], *target.shape_zyx[1:]), np.float32)
    for z in range(0, image.shape[0], slab):
        part = np.maximum(image[z : z + slab], np.float32(floor)).astype(np.float32, copy=False)
        planes[z : z + slab] = _apply(_apply(part, kernels[2], 2), kernels[1], 1)
    return _apply(planes, kernels[0], 0)


def resample_labels(labels: NDArray[Scalar], source: Grid, target: Grid) -> NDArray[Scalar]:
    """The label map on the target grid by nearest neighbour, (z, y, x) in the input's dtype."""
    maps = axis_maps(source, target)
    if tuple(m.axis for m in maps) != (0, 1, 2):
        raise ValueError("the target's axes must be the source's, in the same order")
    z, y, x = (
        np.clip(m.nearest(n), 0, labels.shape[i] - 1)
        for i, (m, n) in enumerate(zip(maps, target.shape_zyx, strict=True))
    )
    return np.ascontiguousarray(labels[z][:, y][:, :, x])


def _kernel(along: AxisMap, num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps of the widened triangle: (num_taps, num_out) source indices and their weights, which sum to 1."""
    positions = along.positions(num_out)
    half_width = max(1.0, abs(along.step))
    first = np.floor(positions - half_width).astype(np.int64) + 1
    num_taps = int(np.ceil(2 * half_width))
    taps = first + np.arange(num_taps)[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(taps - positions) / half_width)
    weights /= weights.sum(axis=0)
    used = weights.max(axis=1) > 1e-12
    return np.clip(taps[used], 0, num_in - 1), weights[used].astype(np.float32)


def _apply(
    array: NDArray[np.float32], kernel: tuple[NDArray[np.int64], NDArray[np.float32]], axis: int
) -> NDArray[np.float32]:
    """The weighted sum of taps along one axis."""
    taps, weights = kernel
    if len(taps) == 1 and np.array_equal(taps[0], np.arange(array.shape[axis])):
        return array
    shape = [1, 1, 1]
    shape[axis] = -1
    total: NDArray[np.float32] = np.take(array, taps[0], axis=axis)
    total *= weights[0].reshape(shape)
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        part = np.take(array, tap, axis=axis)
        part *= weight.reshape(shape)
        total += part
    return total
