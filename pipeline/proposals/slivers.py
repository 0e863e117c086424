"""Slivers: atoms of a few voxels where boundaries cross. They are absorbed if there are too many atoms.

    atoms --touching pairs--> pairs --smallest change first, in rounds--> fewer atoms, in place

A sliver joins the neighbour that changes the chosen regions least. The change is measured as a fraction of
the regions' volumes, so a sliver leaves a large region rather than a small one. Regions remain unions of
atoms.

Reads:  atoms, int32 (z, y, x); ranks, uint16 (A, T), and the nests (see `pipeline.proposals.nests`).
Writes: fewer atoms, int32 (z, y, x), 0..A'-1 in scan order.
Bounds: only atoms of at most 512 voxels are absorbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray, for_each
from pipeline.hierarchies import count_inside, relabel_in_place
from pipeline.proposals.nests import Nest, sums_of

_ROUND = 3
"""At most 1/3 of the atoms are absorbed in a round; then the changes are measured again."""

_CACHED_PAIRS = 1 << 20
"""Size of the cache that keeps most pairs from being listed twice; a power of two."""

_INFINITY_BITS = int(np.array(np.inf).view(np.uint64))

_MAX_SLIVER_VOXELS = 512
"""Larger atoms are never absorbed; the lowest ranked regions are dropped instead."""


def absorb_in_place(
    atoms: DeviceArray,
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    num_regions: int,
    max_atoms: int,
    backend: Backend,
) -> NDArray[np.int64]:
    """Merge slivers into neighbours until no more than `max_atoms` atoms are left, or no slivers.

    Args:
        atoms: int32 (z, y, x) 0..A-1 in scan order, on the backend. Afterwards it holds the atoms that are
            left, 0..A'-1 in scan order.
        ranks: uint16 (A, T), see `pipeline.proposals.nests`.
        nests: (T,) the nests.
        num_regions: Number of chosen regions in all nests.
        max_atoms: The most atoms that may be left.
        backend: Backend that holds the atoms.

    Returns:
        int64 (A',) for each new atom the old atom whose ranks it has.
    """
    count = len(ranks)
    voxels = count_inside(atoms, None, count, backend)
    weights, parents = _weights(ranks, nests, voxels, num_regions, backend.num_threads)
    make = _PairsOnGpu if backend.name == "gpu" else _Pairs
    pairs = make(atoms, voxels <= _MAX_SLIVER_VOXELS, ranks, weights, parents, backend)
    host = np.arange(count, dtype=np.int32)  # the atom that each one was merged into; at first itself
    left = count
    while left > max_atoms:
        slivers, neighbour = pairs.cheapest(voxels, min(left - max_atoms, left // _ROUND + 1))
        joined = _join(slivers, neighbour, host, voxels)
        if not joined:
            break
        left -= joined
        pairs.apply_merges(host)
    number, old = _numbers(host)
    relabel_in_place(atoms, number, backend)
    return old


class _Pairs:
    """Pairs of touching atoms, at least one of them small, and their costs per voxel.

    The cost of a pair is the weighted change of the regions for each voxel that moves from one atom to the
    other.
    """

    def __init__(
        self,
        atoms: NDArray[np.int32],
        small: NDArray[np.bool_],
        ranks: NDArray[np.uint16],
        weights: NDArray[np.float64],
        parents: NDArray[np.int64],
        backend: Backend,
    ) -> None:
        self.pairs = _touching(atoms, small)
        self.changes = np.full(len(self.pairs), -1.0)  # -1 where not computed yet
        self.regions = ranks, weights, parents
        self.num_threads = backend.num_threads

    def cheapest(self, voxels: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the slivers that change the regions least by joining a neighbour.

        Args:
            voxels: (A,) voxels of each atom.
            most: The most slivers that are returned.

        Returns:
            Slivers, lowest cost first; and int32 (A,) the best neighbour of each atom.
        """
        ends = np.linspace(0, len(self.pairs), self.num_threads + 1).astype(np.int64)
        for_each(
            lambda part: _fill(self.pairs[part], self.changes[part], *self.regions),
            [slice(*part) for part in pairwise(ends.tolist())],
            self.num_threads,
        )
        cost, neighbour = _least_costs(self.pairs, self.changes, voxels)
        slivers = np.flatnonzero(np.isfinite(cost))
        return slivers[np.argsort(cost[slivers], kind="stable")[:most]], neighbour

    def apply_merges(self, host: NDArray[np.int32]) -> None:
        """Replace atoms that were merged into another by that one.

        Args:
            host: (A,) the atom that each was merged into; itself if it was not.
        """
        used = _apply_merges(self.pairs, self.changes, host)
        self.pairs, self.changes = self.pairs[:used], self.changes[:used]


class _PairsOnGpu:
    """The same as `_Pairs`; `pairs` and `changes` are on the device."""

    def __init__(
        self,
        atoms: DeviceArray,
        small: NDArray[np.bool_],
        ranks: NDArray[np.uint16],
        weights: NDArray[np.float64],
        parents: NDArray[np.int64],
        backend: Backend,
    ) -> None:
        xp = backend.xp
        device_small, keys = backend.to_device(small), []
        for axis in range(3):
            a: list[slice] = [slice(None)] * 3
            b: list[slice] = [slice(None)] * 3
            a[axis], b[axis] = slice(None, -1), slice(1, None)
            one, other = atoms[tuple(a)], atoms[tuple(b)]
            wanted = (one != other) & (device_small[one] | device_small[other])
            one, other = one[wanted].astype(xp.int64), other[wanted].astype(xp.int64)
            keys.append((xp.minimum(one, other) << 32) | xp.maximum(one, other))
        unique = xp.unique(xp.concatenate(keys))
        self.pairs = xp.stack([unique >> 32, unique & 0xFFFFFFFF], axis=1).astype(xp.int32)
        self.changes = xp.full(len(unique), -1.0)
        self.regions = (
            backend.to_device(ranks),
            np.int32(ranks.shape[1]),
            backend.to_device(weights),
            backend.to_device(parents),
            np.int32(weights.shape[1]),
        )
        self.backend = backend

    def cheapest(self, voxels: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Do the same as `_Pairs.cheapest`."""
        backend, xp = self.backend, self.backend.xp
        count = len(self.pairs)
        pairs, changes = (self.pairs, np.int64(count)), self.changes
        backend.launch("pair_changes", count, *pairs, changes, *self.regions)
        least = xp.full(len(voxels), _INFINITY_BITS, dtype=xp.uint64)
        neighbour = xp.full(len(voxels), np.iinfo(np.int32).max, dtype=xp.int32)
        sizes = backend.to_device(voxels)
        small = sizes, np.int32(_MAX_SLIVER_VOXELS)
        backend.launch("least_changes", count, *pairs, changes, *small, least)
        backend.launch("least_neighbours", count, *pairs, changes, *small, least, neighbour)
        change = least.view(np.float64)
        slivers = xp.flatnonzero(xp.isfinite(change))
        order = xp.argsort(change[slivers] * sizes[slivers], kind="stable")[:most]
        return backend.to_host(slivers[order]), backend.to_host(neighbour)

    def apply_merges(self, host: NDArray[np.int32]) -> None:
        """Do the same as `_Pairs.apply_merges`."""
        xp = self.backend.xp
        followed = self.backend.to_device(host)[self.pairs]
        apart = followed[:, 0] != followed[:, 1]
        same = (followed == self.pairs).all(axis=1)
        self.pairs = followed[apart]
        self.changes = xp.where(same, self.changes, -1.0)[apart]


def _weights(
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    voxels: NDArray[np.int64],
    num_regions: int,
    num_threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the cost per voxel of changing a region, and 1 + rank of its parent.

    Returns:
        Two arrays (T, n + 1), by nest and 1 + rank; entry 0 stands for no region.
    """
    volumes = np.maximum(sums_of(ranks, nests, voxels, num_regions, num_threads), 1)
    length = max(len(nest.nodes) for nest in nests) + 1
    weights = np.zeros((len(nests), length))
    parents = np.zeros((len(nests), length), np.int64)
    for row, nest in enumerate(nests):
        better = 2 - nest.place / num_regions  # the best region has twice the weight of the last
        weights[row, 1 : len(nest.nodes) + 1] = better / volumes[nest.place]
        parents[row, 1 : len(nest.nodes) + 1] = nest.parent + 1
    return weights, parents


def _touching(atoms: NDArray[np.int32], small: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return int32 (E, 2) pairs of touching atoms, at least one of them small; some pairs occur twice."""
    pairs, seen = np.empty((len(small) * 6 + 64, 2), np.int32), np.full(_CACHED_PAIRS, -1, np.int64)
    row, used = 0, 0
    while True:
        row, used = _collect(atoms, small, pairs, seen, row, used)
        if row == atoms.shape[0] * atoms.shape[1]:
            return pairs[:used]
        if len(pairs) - used < 3 * atoms.shape[2]:
            pairs = np.concatenate((pairs, np.empty((len(pairs) // 2 + 3 * atoms.shape[2], 2), np.int32)))


@numba.njit(cache=True, nogil=True)
def _collect(
    atoms: NDArray[np.int32], small: NDArray[np.bool_], pairs: NDArray[np.int32], seen: NDArray[np.int64],
    row: int, used: int,
) -> tuple[int, int]:  # fmt: skip
    """List the pairs in the rows of voxels from `row` on, until all rows are done or `pairs` is full.

    `seen` is a hash table with one entry per hash; a pair that was overwritten there is listed again.

    Returns:
        Rows done, and pairs used.
    """
    num_z, num_y, num_x = atoms.shape
    mask = len(seen) - 1
    last = np.full(3, -1, np.int64)
    while row < num_z * num_y and len(pairs) - used >= 3 * num_x:
        z, y = row // num_y, row % num_y
        for x in range(num_x):
            a = atoms[z, y, x]
            for d in range(3):
                zz, yy, xx = z + (d == 0), y + (d == 1), x + (d == 2)
                if zz == num_z or yy == num_y or xx == num_x:
                    continue
                b = atoms[zz, yy, xx]
                if a == b or not (small[a] or small[b]):
                    continue
                key = (np.int64(min(a, b)) << 32) | np.int64(max(a, b))
                if key == last[d]:
                    continue
                last[d] = key
                slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & mask
                if seen[slot] != key:
                    seen[slot] = key
                    pairs[used, 0], pairs[used, 1] = min(a, b), max(a, b)
                    used += 1
        row += 1
    return row, used


@numba.njit(cache=True, nogil=True)
def _difference(
    a: int, b: int, ranks: NDArray[np.uint16], weights: NDArray[np.float64], parents: NDArray[np.int64]
) -> float:  # fmt: skip
    """Return the summed weights of the regions that contain one of two atoms, but not the other."""
    total = 0.0
    for row in range(ranks.shape[1]):
        i, j = np.int64(ranks[a, row]), np.int64(ranks[b, row])
        while i != j:  # a parent has a lower rank than its children
            if i > j:
                total += weights[row, i]
                i = parents[row, i]
            else:
                total += weights[row, j]
                j = parents[row, j]
    return total


@numba.njit(cache=True, nogil=True)
def _fill(
    pairs: NDArray[np.int32], changes: NDArray[np.float64], ranks: NDArray[np.uint16],
    weights: NDArray[np.float64], parents: NDArray[np.int64],
) -> None:  # fmt: skip
    """Compute the missing changes (-1) of pairs: the weighted change per voxel."""
    for p in range(len(pairs)):
        if changes[p] < 0:
            changes[p] = _difference(pairs[p, 0], pairs[p, 1], ranks, weights, parents)


@numba.njit(cache=True, nogil=True)
def _least_costs(
    pairs: NDArray[np.int32], changes: NDArray[np.float64], voxels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return (A,) the lowest cost of merging each atom into a neighbour, and (A,) that neighbour."""
    cost = np.full(len(voxels), np.inf)
    neighbour = np.full(len(voxels), -1, np.int32)
    for p in range(len(pairs)):
        a, b = pairs[p]
        change = changes[p]
        if voxels[a] <= _MAX_SLIVER_VOXELS and (change < cost[a] or (change == cost[a] and b < neighbour[a])):
            cost[a], neighbour[a] = change, b
        if voxels[b] <= _MAX_SLIVER_VOXELS and (change < cost[b] or (change == cost[b] and a < neighbour[b])):
            cost[b], neighbour[b] = change, a
    return cost * voxels, neighbour


@numba.njit(cache=True, nogil=True)
def _join(
    slivers: NDArray[np.int64],
    neighbour: NDArray[np.int32],
    host: NDArray[np.int32],
    voxels: NDArray[np.int64],
) -> int:
    """Merge each sliver in turn into its neighbour, unless that was merged itself or the sliver has grown.

    Args:
        slivers: Slivers, smallest change first.
        neighbour: (A,) best neighbour of each atom.
        host: (A,) the atom that each was merged into; updated.
        voxels: (A,) voxels of each atom; updated.

    Returns:
        How many slivers were merged.
    """
    grown = np.zeros(len(host), np.bool_)
    joined = 0
    for a in slivers:
        b = neighbour[a]
        if host[b] == b and not grown[a]:
            host[a], grown[b] = b, True
            voxels[b] += voxels[a]
            voxels[a] = 0
            joined += 1
    return joined


@numba.njit(cache=True, nogil=True)
def _apply_merges(pairs: NDArray[np.int32], changes: NDArray[np.float64], host: NDArray[np.int32]) -> int:
    """Do the same as `_Pairs.apply_merges`, in place; return how many pairs are left."""
    used = 0
    for p in range(len(pairs)):
        a, b = host[pairs[p, 0]], host[pairs[p, 1]]
        if a != b:
            same = a == pairs[p, 0] and b == pairs[p, 1]
            changes[used] = changes[p] if same else -1.0
            pairs[used, 0], pairs[used, 1] = a, b
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _numbers(host: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return (A,) the new number of each atom, in scan order; and (A',) the old number of each new atom."""
    new, number = np.full(len(host), -1, np.int32), np.empty(len(host), np.int32)
    old = np.empty(len(host), np.int64)
    used = 0
    for a in range(len(host)):  # atoms are in scan order, so the first member has the first voxel
        last = a
        while host[last] != last:
            last = host[last]
        if new[last] < 0:
            new[last] = used
            old[used] = last
            used += 1
        number[a] = new[last]
    return number, old[:used]
