"""Supervoxels: watershed basins of the boundary evidence, by steepest descent.

Each voxel points to the lowest among itself and its face neighbours. Equal voxels are ordered by index, so
there is no cycle. Every path of pointers ends in a minimum. Voxels whose paths end in the same minimum are
one basin. Basins are numbered in scan order of their first voxel. NumPy, Numba and CuPy give the same labels.

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

from pipeline.compute import Backend, DeviceArray, over_slabs, slabs_of, summed_over_slabs, unite
from pipeline.hierarchies.region_totals import tally


def basins(
    evidence: DeviceArray, backend: Backend, ties: DeviceArray | None = None
) -> tuple[DeviceArray, int]:
    """Return the watershed basin of each voxel.

    Args:
        evidence: int32 or uint16 (z, y, x) on the backend.
        backend: Backend that holds the evidence.
        ties: Evidence at another scale, of the same shape and type. It decides between neighbours with equal
            evidence; values above 1,023 count as 1,023.

    Returns:
        Labels int32 (z, y, x), 0..R-1 in scan order, on the backend; and the number of basins R.
    """
    xp = backend.xp

    def heights(start: int, stop: int) -> DeviceArray:
        if ties is None:
            return evidence[start:stop].astype(xp.int32)
        return (evidence[start:stop].astype(xp.int32) << 10) + xp.minimum(ties[start:stop], 1023)

    depth = evidence.shape[0]
    if backend.name == "cpu":
        labels = np.empty(evidence.shape, np.int32)

        def descend(start: int, stop: int) -> None:
            first = max(0, start - 1)
            _descend_numba(heights(first, min(depth, stop + 1)), start - first, labels[start:stop], start)

        over_slabs(descend, evidence.shape, backend.num_threads)
        return labels, int(_number_basins_numba(labels.reshape(-1)))
    pointers = xp.empty(evidence.shape, dtype=xp.int32)
    plane = evidence.shape[1] * evidence.shape[2]
    for start, stop in slabs_of(evidence.shape, 1):
        first = max(0, start - 1)
        found = _lowest_neighbour(heights(first, min(depth, stop + 1)), first * plane, xp)
        pointers[start:stop] = found[start - first : stop - first]
    roots = _path_ends(pointers.ravel(), xp)
    return number_in_scan_order(roots.reshape(evidence.shape), backend)


def join_lowest_pass_in_place(
    labels: DeviceArray, num_regions: int, evidence: DeviceArray, backend: Backend
) -> int:
    """Join every basin with the neighbour behind its lowest saddle; return how many regions are left.

    That is about a third of the basins.

    This needs no region graph, so it is fast: it is for noisy scans that have too many basins for a graph.

    Args:
        labels: int32 (z, y, x), 0..R-1 in scan order, on the backend. Afterwards it holds the numbers of the
            regions that are left, 0..R'-1 in scan order.
        num_regions: Number of basins R.
        evidence: int32 or uint16 (z, y, x). A saddle between two voxels is as high as the larger evidence of
            the two. Of equal saddles the one to the neighbour with the lowest number is taken.
        backend: Backend that holds the volumes.

    Returns:
        The number of regions R'.
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
    relabel_in_place(labels, new_region, backend)
    return int(count)


def relabel_in_place(labels: DeviceArray, new_region: NDArray[np.int32], backend: Backend) -> None:
    """Replace every label by `new_region[label]`.

    Args:
        labels: int32 (z, y, x), 0..R-1, on the backend.
        new_region: int32 (R,) new number of each region.
        backend: Backend that holds the labels.
    """
    if backend.name != "cpu":
        table = backend.to_device(new_region)
        for start, stop in slabs_of(labels.shape, 1):  # not all voxels twice at once
            labels[start:stop] = table[labels[start:stop]]
        return

    def renumber(start: int, stop: int) -> None:
        _relabel_numba(labels[start:stop].reshape(-1), new_region)

    over_slabs(renumber, labels.shape, backend.num_threads)


def join(
    first: NDArray[np.int64], second: NDArray[np.int64], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Return the connected components of a graph of regions.

    Args:
        first: Integers (E,) one region of each pair.
        second: Integers (E,) the other region.
        num_regions: Number of regions R.

    Returns:
        int32 (R,) component of each region, numbered by lowest member; and the number of components.
    """
    new_region, count = _join(first.astype(np.int64), second.astype(np.int64), num_regions)
    return np.asarray(new_region), int(count)


def number_in_scan_order(labels: DeviceArray, backend: Backend) -> tuple[DeviceArray, int]:
    """Renumber labels 0..R-1 in the order of their first voxels.

    Not for the Numba backend; the memory grows with the largest label.

    Args:
        labels: Integers (z, y, x), 0 or above, on the backend.
        backend: Backend that holds the labels.

    Returns:
        int32 (z, y, x) new labels on the backend, and their number R.
    """
    xp = backend.xp
    bound = int(labels.max()) + 1
    _, first = tally(labels, bound, backend)
    values = xp.flatnonzero(first < labels.size)
    number = xp.empty(bound, dtype=xp.int32)
    number[values[xp.argsort(first[values])]] = xp.arange(len(values), dtype=xp.int32)
    return number[labels], len(values)


def _lowest_neighbour(evidence: DeviceArray, first: int, xp: Any) -> DeviceArray:
    """Return the flat index of the lowest among each voxel and its face neighbours.

    Of equal voxels the one with the lowest index is taken.

    Args:
        evidence: Integers (z, y, x).
        first: Index that the first voxel has in the scan.
        xp: Array module.
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


def _path_ends(pointers: DeviceArray, xp: Any) -> DeviceArray:
    """Return the end of each voxel's path of pointers.

    Pointer jumping: the number of rounds is the logarithm of the longest path.
    """
    while True:
        further = pointers[pointers]
        if bool((further == pointers).all()):
            return pointers
        pointers = further


_NO_PASS = np.int64(1) << 62
"""Key of a region that touches no other."""


def _lowest_pass(
    labels: DeviceArray, num_regions: int, evidence: DeviceArray, backend: Backend
) -> DeviceArray:
    """Return int64 (R,) saddle height << 32 | neighbour, for the lowest saddle of each region."""
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
    """Do the same as `_lowest_pass` for the faces of some planes towards higher indices; updates `lowest`."""
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
    """Join each region with the neighbour in the lower bits of its key; return the same as `_join`."""
    root = np.arange(len(lowest)).astype(np.int32)
    for r in range(len(lowest)):
        if lowest[r] >= _NO_PASS:
            continue
        unite(root, np.int64(r), lowest[r] & 0xFFFFFFFF)
    count = 0
    for r in range(len(root)):  # the parent of a region is lower, so it has its new number already
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
    """Do the same as `join` by union-find; a root is the lowest of its members, so it is numbered first."""
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
def _descend_numba(heights: NDArray[np.int32], first: int, pointers: NDArray[np.int32], plane: int) -> None:
    """Write the index of each voxel's lowest face neighbour, or of the voxel itself, into `pointers`.

    Args:
        heights: (z, y, x) of the slab and of the planes next to it, as far as the scan has them.
        first: Index of the slab's first plane in `heights`.
        pointers: (z, y, x) of the slab; indices count voxels of the whole scan.
        plane: Index of the slab's first plane in the scan.
    """
    num_z, num_y, num_x = heights.shape
    i = plane * num_y * num_x
    for z in range(first, first + pointers.shape[0]):
        for y in range(num_y):
            for x in range(num_x):
                low, where = heights[z, y, x], i
                # From the lowest index to the highest, so that the first of equals is kept.
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
def _number_basins_numba(pointer: NDArray[np.int32]) -> int:
    """Replace pointers by the number of the basin where their path ends; return how many basins there are.

    While there are pointers left, a basin's number n is stored as ~n, which is negative.
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
