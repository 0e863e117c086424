"""Supervoxels: watershed basins of the boundary evidence, by steepest descent.

Each voxel points to its lowest face neighbour, itself included; the lower index wins a tie, so the order is
strict and there is no cycle. Following the pointers ends in a minimum: its voxels are a basin. Basins are
numbered in scan order of their first voxel. Nothing is left to chance: NumPy, Numba and CuPy give the same
labels.

Reads:  evidence, int32 or uint16 (z, y, x).
Writes: labels, int32 (z, y, x), 0..R-1 in scan order; every voxel has one.
Bounds: fewer than 2^31 voxels.
Source: the drop-of-water principle, Cousty et al., PAMI 31(8), 2009.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, over_slabs, slabs_of, summed_over_slabs, unite
from pipeline.hierarchies.region_totals import tally


def basins(evidence: Any, backend: Backend, ties: Any = None) -> tuple[Any, int]:
    """The basin of each voxel.

    Args:
        evidence: int32 or uint16 (z, y, x) on the backend.
        backend: Where it runs.
        ties: Evidence at another scale, likewise: where the first is equal the lower of this goes first,
            counted up to 1,023.

    Returns:
        (labels int32 (z, y, x) on the backend, number of basins).
    """
    xp = backend.xp

    def heights(start: int, stop: int) -> Any:
        if ties is None:
            return evidence[start:stop].astype(xp.int32)
        return (evidence[start:stop].astype(xp.int32) << 10) + xp.minimum(ties[start:stop], 1023)

    depth = evidence.shape[0]
    if backend.name == "cpu":
        labels = np.empty(evidence.shape, np.int32)

        def point(start: int, stop: int) -> None:
            first = max(0, start - 1)
            _point_numba(heights(first, min(depth, stop + 1)), start - first, labels[start:stop], start)

        over_slabs(point, evidence.shape, backend.num_threads)
        return labels, int(_follow_numba(labels.reshape(-1)))
    pointers = xp.empty(evidence.shape, dtype=xp.int32)
    plane = evidence.shape[1] * evidence.shape[2]
    for start, stop in slabs_of(evidence.shape, 1):
        first = max(0, start - 1)
        found = _lowest_neighbour(heights(first, min(depth, stop + 1)), first * plane, xp)
        pointers[start:stop] = found[start - first : stop - first]
    roots = _jump(pointers.ravel(), xp)
    return number_in_scan_order(roots.reshape(evidence.shape), backend)


def join_lowest_pass(labels: Any, num_regions: int, evidence: Any, backend: Backend) -> tuple[Any, int]:
    """Every basin joined with the neighbour that it would first overflow into: a third or so are left.

    Quick, since it needs no region graph: for scans whose noise makes more basins than are worth a graph.

    Args:
        labels: int32 (z, y, x) in scan order, on the backend. On the CPU it is overwritten.
        num_regions: How many basins there are.
        evidence: int32 (z, y, x); a pass is as high as the larger evidence of its two voxels. The lower
            neighbour wins a tie.
        backend: Where it runs.

    Returns:
        (labels int32 (z, y, x) in scan order on the backend, number of regions).
    """
    if backend.name == "cpu":
        totals = summed_over_slabs(
            lambda: np.full(num_regions, _NO_PASS, np.int64),
            lambda lowest, start, stop: _lowest_pass_numba(labels, evidence, start, stop, lowest),
            labels.shape,
            backend.num_threads,
        )
        lowest = totals[0]
        for total in totals[1:]:
            np.minimum(lowest, total, out=lowest)
        del totals
    else:
        lowest = backend.to_host(_lowest_pass(labels, num_regions, evidence, backend))
    new_region, count = _join_passes(lowest)
    del lowest
    return relabelled(labels, new_region, backend), int(count)


def relabelled(labels: Any, new_region: NDArray[np.int32], backend: Backend) -> Any:
    """`new_region[labels]`, int32 (z, y, x) on the backend; on the CPU in place."""
    if backend.name != "cpu":
        return backend.to_device(new_region)[labels]

    def renumber(start: int, stop: int) -> None:
        _relabel_numba(labels[start:stop].reshape(-1), new_region)

    over_slabs(renumber, labels.shape, backend.num_threads)
    return labels


def join(
    first: NDArray[np.int64], second: NDArray[np.int64], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Regions that pairs connect made one: the number of each, by lowest member, and how many there are."""
    new_region, count = _join(first.astype(np.int64), second.astype(np.int64), num_regions)
    return np.asarray(new_region), int(count)


def number_in_scan_order(labels: Any, backend: Backend) -> tuple[Any, int]:
    """Labels from 0 on renumbered 0..R-1 by the first voxel that has them, and how many there are.

    On the GPU or in NumPy; memory grows with the largest label.
    """
    xp = backend.xp
    bound = int(labels.max()) + 1
    _, first = tally(labels, bound, backend)
    values = xp.flatnonzero(first < labels.size)
    number = xp.empty(bound, dtype=xp.int32)
    number[values[xp.argsort(first[values])]] = xp.arange(len(values), dtype=xp.int32)
    return number[labels], len(values)


def _lowest_neighbour(evidence: Any, first: int, xp: Any) -> Any:
    """Flat index of the lowest of each voxel and its face neighbours; the lowest index among equals.

    The first voxel given has the index `first`.
    """
    index = xp.arange(first, first + evidence.size, dtype=xp.int64).reshape(evidence.shape)
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
    return best & 0xFFFFFFFF


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
    labels: NDArray[np.int32], evidence: NDArray[Any], start: int, stop: int, lowest: NDArray[np.int64]
) -> None:
    """As `_lowest_pass`, of the faces from some planes towards higher indices, put into `lowest`."""
    num_z, num_y, num_x = labels.shape
    for z in range(start, stop):
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


@numba.njit(cache=True, nogil=True)
def _join_passes(lowest: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """As `_join`, of each region with the neighbour in the lower bits of its lowest pass."""
    root = np.arange(len(lowest)).astype(np.int32)
    for r in range(len(lowest)):
        if lowest[r] >= _NO_PASS:
            continue
        unite(root, np.int64(r), lowest[r] & 0xFFFFFFFF)
    count = 0
    for r in range(len(root)):  # what a region leads to is lower: it has its new number by now
        if root[r] == r:
            root[r] = count
            count += 1
        else:
            root[r] = root[root[r]]
    return root, count


@numba.njit(cache=True, nogil=True)
def _relabel_numba(flat: NDArray[np.int32], new_region: NDArray[np.int32]) -> None:
    for i in range(len(flat)):
        flat[i] = new_region[flat[i]]


@numba.njit(cache=True, nogil=True)
def _join(
    first: NDArray[np.int64], second: NDArray[np.int64], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Union-find; a root is the lowest of its members, so it is numbered before them."""
    root = np.arange(num_regions)
    for p in range(len(first)):
        unite(root, first[p], second[p])
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
def _point_numba(heights: NDArray[np.int32], first: int, pointers: NDArray[np.int32], plane: int) -> None:
    """Each voxel's lowest face neighbour, by its index in the scan.

    Args:
        heights: (z, y, x) with the planes beside the slab, where the scan has them.
        first: First plane of the slab in it.
        pointers: (z, y, x) of the slab.
        plane: First plane of the slab in the scan.
    """
    num_z, num_y, num_x = heights.shape
    i = plane * num_y * num_x
    for z in range(first, first + pointers.shape[0]):
        for y in range(num_y):
            for x in range(num_x):
                low, where = heights[z, y, x], i
                # From the lowest index to the highest: among equals the first stays.
                if x > 0 and heights[z, y, x - 1] <= low:
                    low, where = heights[z, y, x - 1], i - 1
                if y > 0 and heights[z, y - 1, x] <= low:
                    low, where = heights[z, y - 1, x], i - num_x
                if z > 0 and heights[z - 1, y, x] <= low:
                    low, where = heights[z - 1, y, x], i - num_y * num_x
                if x < num_x - 1 and heights[z, y, x + 1] < low:
                    low, where = heights[z, y, x + 1], i + 1
                if y < num_y - 1 and heights[z, y + 1, x] < low:
                    low, where = heights[z, y + 1, x], i + num_x
                if z < num_z - 1 and heights[z + 1, y, x] < low:
                    low, where = heights[z + 1, y, x], i + num_y * num_x
                pointers[z - first, y, x] = where
                i += 1


@numba.njit(cache=True, nogil=True)
def _follow_numba(pointer: NDArray[np.int32]) -> int:
    """Pointers replaced by the number of the basin where they end; how many there are.

    ~number, which is negative, stands for a number while there are pointers left.
    """
    regions = 0
    for i in range(len(pointer)):
        end = i
        while pointer[end] >= 0 and pointer[end] != end:
            end = pointer[end]
        value = pointer[end]
        if value >= 0:
            value = np.int32(~regions)
            pointer[end] = value
            regions += 1
        j = i
        while pointer[j] >= 0:
            after = pointer[j]
            pointer[j] = value
            j = after
    for i in range(len(pointer)):
        pointer[i] = ~pointer[i]
    return regions
