"""Supervoxels: watershed basins of the boundary evidence, by steepest descent.

Each voxel points to its lowest face neighbour, itself included; the lower index wins a tie, so the order is
strict and there is no cycle. Following the pointers ends in a minimum: its voxels are a basin. Basins are
numbered in scan order of their first voxel. Nothing is left to chance: NumPy, Numba and CuPy give the same
labels.

Reads:  evidence, int32 (z, y, x).
Writes: labels, int32 (z, y, x), 0..R-1 in scan order; every voxel has one.
Bounds: fewer than 2^31 voxels.
Source: the drop-of-water principle, Cousty et al., PAMI 31(8), 2009.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.backend import Backend


def basins(evidence: Any, backend: Backend) -> tuple[Any, int]:
    """The basin of each voxel.

    Args:
        evidence: int32 (z, y, x) on the backend.
        backend: Where it runs.

    Returns:
        (labels int32 (z, y, x) on the backend, number of basins).
    """
    if backend.name == "cpu":
        labels, count = _basins_numba(evidence)
        return labels, int(count)
    pointers = _lowest_neighbour(evidence, backend.xp)
    roots = _jump(pointers, backend.xp)
    return number_in_scan_order(roots.reshape(evidence.shape), backend)


def number_in_scan_order(labels: Any, backend: Backend) -> tuple[Any, int]:
    """Labels renumbered 0..R-1 by the first voxel that has them, and how many there are."""
    xp = backend.xp
    flat = labels.ravel()
    values, inverse = xp.unique(flat, return_inverse=True)
    first = xp.full(len(values), flat.size, dtype=xp.int64)
    backend.scatter_min(first, inverse, xp.arange(flat.size, dtype=xp.int64))
    rank = xp.empty(len(values), dtype=xp.int32)
    rank[xp.argsort(first)] = xp.arange(len(values), dtype=xp.int32)
    return rank[inverse].reshape(labels.shape), len(values)


def _lowest_neighbour(evidence: Any, xp: Any) -> Any:
    """Flat index of the lowest of each voxel and its face neighbours; the lowest index among equals."""
    shape = evidence.shape
    index = xp.arange(evidence.size, dtype=xp.int64).reshape(shape)
    # One 64-bit key orders by value, then by index.
    key = (evidence.astype(xp.int64) << 32) | index
    best = key.copy()
    for axis in range(3):
        here: list[slice] = [slice(None)] * 3
        there: list[slice] = [slice(None)] * 3
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(here), tuple(there)
        best[a] = xp.minimum(best[a], key[b])
        best[b] = xp.minimum(best[b], key[a])
    return (best & 0xFFFFFFFF).ravel()


def _jump(pointers: Any, xp: Any) -> Any:
    """Every pointer replaced by the end of its path (pointer jumping: log of the longest path in rounds)."""
    while True:
        further = pointers[pointers]
        if bool((further == pointers).all()):
            return pointers
        pointers = further


@numba.njit(cache=True, nogil=True)
def _basins_numba(evidence: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    num_z, num_y, num_x = evidence.shape
    flat = evidence.ravel()
    count = flat.size
    pointer = np.empty(count, np.int32)
    steps = (-num_y * num_x, -num_x, -1, 1, num_x, num_y * num_x)
    i = 0
    for z in range(num_z):
        for y in range(num_y):
            for x in range(num_x):
                inside = (z > 0, y > 0, x > 0, x < num_x - 1, y < num_y - 1, z < num_z - 1)
                low, where = flat[i], i
                for d in range(6):
                    if inside[d]:
                        j = i + steps[d]
                        if flat[j] < low or (flat[j] == low and j < where):
                            low, where = flat[j], j
                pointer[i] = where
                i += 1
    number = np.full(count, -1, np.int32)
    regions = 0
    for i in range(count):
        root = i
        while pointer[root] != root:
            root = pointer[root]
        j = i
        while pointer[j] != root:
            pointer[j], j = root, pointer[j]
        if number[root] < 0:
            number[root] = regions
            regions += 1
    for i in range(count):
        pointer[i] = number[pointer[i]]
    return pointer.reshape(evidence.shape), regions
