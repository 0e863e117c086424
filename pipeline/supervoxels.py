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


def join_lowest_pass(labels: Any, num_regions: int, evidence: Any, backend: Backend) -> tuple[Any, int]:
    """Every basin joined with the neighbour that it would first overflow into: a third or so are left.

    Quick, since it needs no region graph: for scans whose noise makes more basins than are worth a graph.

    Args:
        labels: int32 (z, y, x) in scan order, on the backend.
        num_regions: How many basins there are.
        evidence: int32 (z, y, x); a pass is as high as the larger evidence of its two voxels. The lower
            neighbour wins a tie.
        backend: Where it runs.

    Returns:
        (labels int32 (z, y, x) in scan order on the backend, number of regions).
    """
    if backend.name == "cpu":
        lowest = _lowest_pass_numba(labels, num_regions, evidence)
    else:
        lowest = backend.to_host(_lowest_pass(labels, num_regions, evidence, backend))
    there = lowest < _NO_PASS
    region = np.flatnonzero(there)
    new_region, count = join(region, lowest[there] & 0xFFFFFFFF, num_regions)
    return backend.to_device(new_region)[labels], count


def join(
    first: NDArray[np.int64], second: NDArray[np.int64], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Regions that pairs connect made one: the number of each, by lowest member, and how many there are."""
    new_region, count = _join(first.astype(np.int64), second.astype(np.int64), num_regions)
    return np.asarray(new_region), int(count)


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


_NO_PASS = np.int64(1) << 62


def _lowest_pass(labels: Any, num_regions: int, evidence: Any, backend: Backend) -> Any:
    """(R,) pass << 32 | neighbour of the lowest pass of each region."""
    xp = backend.xp
    lowest = xp.full(num_regions, _NO_PASS, dtype=xp.int64)
    for axis in range(3):
        a: list[slice] = [slice(None)] * 3
        b: list[slice] = [slice(None)] * 3
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        one, other = labels[tuple(a)], labels[tuple(b)]
        differ = one != other
        height = xp.maximum(evidence[tuple(a)][differ], evidence[tuple(b)][differ]).astype(xp.int64) << 32
        one, other = one[differ], other[differ]
        backend.scatter_min(lowest, one, height | other.astype(xp.int64))
        backend.scatter_min(lowest, other, height | one.astype(xp.int64))
    return lowest


@numba.njit(cache=True, nogil=True)
def _lowest_pass_numba(
    labels: NDArray[np.int32], num_regions: int, evidence: NDArray[np.int32]
) -> NDArray[np.int64]:
    num_z, num_y, num_x = labels.shape
    lowest = np.full(num_regions, np.int64(1) << 62, np.int64)
    for z in range(num_z):
        for y in range(num_y):
            for x in range(num_x):
                one = labels[z, y, x]
                for d in range(3):
                    zz, yy, xx = z + (d == 0), y + (d == 1), x + (d == 2)
                    if zz < num_z and yy < num_y and xx < num_x:
                        other = labels[zz, yy, xx]
                        if one != other:
                            height = np.int64(max(evidence[z, y, x], evidence[zz, yy, xx])) << 32
                            lowest[one] = min(lowest[one], height | other)
                            lowest[other] = min(lowest[other], height | one)
    return lowest


@numba.njit(cache=True, nogil=True)
def _join(
    first: NDArray[np.int64], second: NDArray[np.int64], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Union-find; a root is the lowest of its members, so it is numbered before them."""
    root = np.arange(num_regions)
    for p in range(len(first)):
        a, b = first[p], second[p]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        root[max(a, b)] = min(a, b)
    new_region = np.empty(num_regions, np.int32)
    count = 0
    for r in range(num_regions):
        if root[r] == r:
            new_region[r] = count
            count += 1
        else:
            new_region[r] = new_region[root[r]]
    return new_region, count


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
