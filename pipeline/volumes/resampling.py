"""Resampling along the axes: images by averaged linear interpolation, labels by nearest neighbour.

*Reads*: (z, y, x) arrays on a grid. *Writes*: float32 images, or labels of the input's dtype, on a grid with
the same axes. Both grids have the same directions, so there is one pass along each axis. The result is the
same on every machine. No threads are used, since several workers run side by side.

Upsampling is linear interpolation. Downsampling by a ratio r averages the linear interpolation over a window
of sqrt(r^2 - 1) source voxels. This removes most of what would alias, is continuous at r = 1, and does not
shift a linear ramp.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.volumes.grid import Grid
from pipeline.volumes.reorientation import AxisMap, axis_maps

Scalar = TypeVar("Scalar", bound=np.generic)

_SLAB_VOXELS = 8_000_000
"""Voxels converted to float32 at a time, so that a large int16 scan is never held completely as float."""


def resample_image(image: NDArray[Any], source: Grid, target: Grid, *, floor: float) -> NDArray[np.float32]:
    """Resample an image to another grid; beyond the edge the nearest voxel is repeated.

    Args:
        image: (z, y, x), any number type, on `source`.
        source: The image's grid.
        target: A grid with the same axis directions.
        floor: Lower values are first raised to this (padding such as -3024 must not mix with tissue); -inf
            for no floor.

    Returns:
        float32 (z, y, x) on `target`.

    Raises:
        ValueError: The grids' axes differ.
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
    """Resample a label map to another grid by nearest neighbour.

    Args:
        labels: (z, y, x) on `source`.
        source: The labels' grid.
        target: A grid with the same axis directions.

    Returns:
        (z, y, x) on `target`, in the labels' dtype.

    Raises:
        ValueError: The grids' axes differ.
    """
    maps = axis_maps(source, target)
    if tuple(m.axis for m in maps) != (0, 1, 2):
        raise ValueError("the target's axes must be the source's, in the same order")
    z, y, x = (
        np.clip(m.nearest(n), 0, labels.shape[i] - 1)
        for i, (m, n) in enumerate(zip(maps, target.shape_zyx, strict=True))
    )
    return np.ascontiguousarray(labels[z][:, y][:, :, x])


def labels_on_grid(
    labels: NDArray[Scalar], source: Grid, target: Grid
) -> tuple[NDArray[Scalar], float | None]:
    """Resample a label map to any other grid by nearest neighbour, whatever the axes of the two.

    Args:
        labels: (z, y, x) on `source`; 0 is background.
        source: The labels' grid.
        target: The wanted grid.

    Returns:
        (z, y, x) on `target` in the labels' dtype, 0 where `source` does not reach; and the fraction of the
        labelled voxels whose centres lie outside of `target`, None without labelled voxels.
    """
    out: NDArray[Scalar] = np.zeros(target.shape_zyx, labels.dtype)
    j, i = (
        axis.ravel() for axis in np.meshgrid(*(np.arange(n) for n in target.shape_zyx[1:]), indexing="ij")
    )
    for k, plane in enumerate(out):
        index = _nearest(source.to_index(target.to_world(np.stack([i, j, np.full(i.size, k)], axis=-1))))
        inside = _within(index, source)
        x, y, z = index[inside].T
        plane.reshape(-1)[inside] = labels[z, y, x]
    num_labelled, num_outside = 0, 0
    for k, plane in enumerate(labels):
        j, i = np.nonzero(plane)
        index = _nearest(target.to_index(source.to_world(np.stack([i, j, np.full(i.size, k)], axis=-1))))
        num_labelled += i.size
        num_outside += i.size - int(_within(index, target).sum())
    return out, num_outside / num_labelled if num_labelled else None


def _nearest(index_xyz: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return int64 nearest indices; a tie goes up, whatever the rounding error (as in `AxisMap.nearest`)."""
    return np.floor(index_xyz + 0.5 + 1e-6).astype(np.int64)


def _within(index_xyz: NDArray[np.int64], grid: Grid) -> NDArray[np.bool_]:
    return np.asarray(((index_xyz >= 0) & (index_xyz < grid.shape_zyx[::-1])).all(axis=-1))


def _kernel(along: AxisMap, num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return source indices and their weights, both (num_taps, num_out).

    The weights of a target voxel sum to 1.
    """
    positions = along.positions(num_out)
    window = float(np.sqrt(max(0.0, along.step**2 - 1)))
    half_width = 1 + window / 2
    first = np.floor(positions - half_width).astype(np.int64) + 1
    taps = first + np.arange(int(np.ceil(2 * half_width)))[:, None]
    away = positions - taps
    if window < 1e-2:
        weights = np.maximum(0.0, 1 - np.abs(away))
    else:
        weights = (_ramp(away + window / 2) - _ramp(away - window / 2)) / window
    used = weights.max(axis=1) > 1e-9
    return np.clip(taps[used], 0, num_in - 1), weights[used].astype(np.float32)


def _ramp(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral of the triangle max(0, 1 - |t|) from minus infinity to t."""
    t = np.clip(t, -1, 1)
    return np.where(t < 0, (1 + t) ** 2 / 2, 1 - (1 - t) ** 2 / 2)


def _apply(
    array: NDArray[np.float32], kernel: tuple[NDArray[np.int64], NDArray[np.float32]], axis: int
) -> NDArray[np.float32]:
    """Return the weighted sum of source voxels along one axis."""
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
