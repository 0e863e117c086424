"""Sums over the voxels of each region: their number, intensities and coordinates.

Reads:  labels, int32 (z, y, x), 0..R-1, every voxel labelled; volumes of integers (z, y, x).
Writes: a `RegionSums`; counts (R,) int64.
Bounds: sums are int64, the same whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend, DeviceArray, summed_over_slabs

WindowVolume: TypeAlias = DeviceArray | Callable[[tuple[int, int]], DeviceArray]
"""Integers (z, y, x), or a function that returns the planes (start, stop) of such a volume."""


@dataclass(frozen=True, kw_only=True)
class RegionSums:
    """Sums over the voxels of R regions."""

    voxels: NDArray[np.int64]
    """(R,) number of voxels."""
    levels: NDArray[np.int64]
    """(R, W) summed intensity levels, one column per window."""
    coordinates: NDArray[np.int64]
    """(R, 3) summed voxel indices z, y, x."""


def region_sums(
    labels: DeviceArray, num_regions: int, window_volumes: Sequence[WindowVolume], backend: Backend
) -> RegionSums:
    """Return voxels, intensity levels and voxel indices summed over each region.

    Args:
        labels: int32 (z, y, x) on the backend.
        num_regions: Number of regions R.
        window_volumes: W volumes of integers (z, y, x) on the backend, or functions that return planes
            of them.
        backend: Where it runs.
    """
    made = [volume if callable(volume) else _planes_of(volume) for volume in window_volumes]
    if backend.name != "cpu":
        whole = (0, labels.shape[0])
        return _region_sums(labels, num_regions, [planes(whole) for planes in made], backend)
    width = len(made)

    def add(total: NDArray[np.int64], start: int, stop: int) -> None:
        part = labels[start:stop]
        for k, planes in enumerate(made):
            _add_levels(part.reshape(-1), planes((start, stop)).reshape(-1), total[:, k])
        _add_coordinates(part, start, total[:, width:])

    totals = summed_over_slabs(
        lambda: np.zeros((num_regions, width + 4), np.int64), add, labels.shape, backend.num_threads
    )
    total = totals[0]
    for other in totals[1:]:
        total += other
    return RegionSums(
        voxels=total[:, -1].copy(),
        levels=np.ascontiguousarray(total[:, :width]),
        coordinates=np.ascontiguousarray(total[:, width:-1]),
    )


def count_inside(
    labels: DeviceArray, mask: DeviceArray, num_regions: int, backend: Backend = HOST
) -> NDArray[np.int64]:
    """Return (R,) voxels of each region inside a mask (z, y, x), all if it is None; both on the backend."""
    if backend.name == "gpu":
        if mask is not None:
            labels = backend.xp.where(mask, labels, num_regions)
        sizes, _ = tally(labels, num_regions + 1, backend)
        return np.asarray(backend.to_host(sizes))[:num_regions].astype(np.int64)
    counts = np.zeros(num_regions, np.int64)
    if mask is None:
        mask = np.broadcast_to(np.True_, labels.shape)
    _count_inside(labels.reshape(-1), mask.reshape(-1), counts)
    return counts


def tally(labels: DeviceArray, num_labels: int, backend: Backend) -> tuple[DeviceArray, DeviceArray]:
    """Return (R,) voxels of each label, and (R,) index of its first voxel.

    A label without a voxel has the number of all voxels as index.

    Args:
        labels: Integers (z, y, x), 0..num_labels-1, on the backend.
        num_labels: Number of labels R.
        backend: Where it runs: the GPU, or NumPy.

    Returns:
        Two int32 arrays on the backend.
    """
    xp = backend.xp
    flat = labels.ravel().astype(xp.int32, copy=False)
    sizes, first = xp.zeros(num_labels, dtype=xp.int32), xp.full(num_labels, flat.size, dtype=xp.int32)
    if backend.name == "gpu":
        backend.launch("tally", -(-flat.size // 32), flat, np.int64(flat.size), sizes, first)
    else:
        sizes[:] = xp.bincount(flat, minlength=num_labels)
        backend.scatter_min(first, flat, xp.arange(flat.size, dtype=xp.int32))
    return sizes, first


def _planes_of(volume: DeviceArray) -> Callable[[tuple[int, int]], DeviceArray]:
    return lambda planes: volume[planes[0] : planes[1]]


def _region_sums(
    labels: DeviceArray, num_regions: int, window_volumes: list[DeviceArray], backend: Backend
) -> RegionSums:
    xp = backend.xp
    flat = labels.ravel()

    def summed(values: DeviceArray) -> NDArray[np.int64]:
        # Sums stay far below 2^53, so double precision holds them exactly.
        total = xp.bincount(flat, weights=values.ravel().astype(xp.float64), minlength=num_regions)
        return np.asarray(backend.to_host(total)).astype(np.int64)

    voxels = np.asarray(backend.to_host(xp.bincount(flat, minlength=num_regions))).astype(np.int64)
    levels = [summed(volume) for volume in window_volumes]
    coordinates = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = labels.shape[axis]
        index = xp.arange(labels.shape[axis], dtype=xp.int32).reshape(shape)
        coordinates.append(summed(xp.broadcast_to(index, labels.shape)))
    return RegionSums(
        voxels=voxels,
        levels=np.stack(levels, axis=1) if levels else np.zeros((num_regions, 0), np.int64),
        coordinates=np.stack(coordinates, axis=1),
    )


def merge_sums(sums: RegionSums, new_region: NDArray[np.int32], num_regions: int) -> RegionSums:
    """Return the sums after regions are joined (see `merge_graph_consuming`)."""

    def joined(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(new_region, weights=values, minlength=num_regions).astype(np.int64)

    return RegionSums(
        voxels=joined(sums.voxels),
        levels=np.stack([joined(column) for column in sums.levels.T], axis=1),
        coordinates=np.stack([joined(column) for column in sums.coordinates.T], axis=1),
    )


@numba.njit(cache=True, nogil=True)
def _add_levels(labels: NDArray[np.int32], levels: NDArray[Any], total: NDArray[np.int64]) -> None:
    for i in range(len(labels)):
        total[labels[i]] += levels[i]


@numba.njit(cache=True, nogil=True)
def _add_coordinates(labels: NDArray[np.int32], plane: int, total: NDArray[np.int64]) -> None:
    """Add voxel indices z, y, x and the number of voxels to `total`, (R, 4)."""
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                place = total[labels[z, y, x]]
                place[0] += z + plane
                place[1] += y
                place[2] += x
                place[3] += 1


@numba.njit(cache=True, nogil=True)
def _count_inside(labels: NDArray[Any], mask: NDArray[np.bool_], counts: NDArray[np.int64]) -> None:
    for i in range(len(labels)):
        counts[labels[i]] += mask[i]
