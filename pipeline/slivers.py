"""Slivers: atoms of a few voxels where boundaries cross, absorbed where there are more atoms than allowed.

Those that do least harm join a neighbour: harm is the part of their volume that the regions gain or lose by
it, so a sliver leaves a large region rather than a small one. Regions stay unions of atoms exactly.

Reads:  atoms, int32 (z, y, x); ranks, uint16 (A, T), of the nests around each (see `pipeline.nests`).
Writes: the same atoms, fewer of them, in place, 0..A'-1 in scan order.
Bounds: only atoms of at most 512 voxels are absorbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.nests import Nest, sums_of

_ROUND = 3
"""At most one of so many atoms is absorbed before the harm that the next would do is measured again."""

_MAX_SLIVER_VOXELS = 512
"""Larger atoms are never absorbed; rather the lowest ranked regions are given up."""


def absorb(
    atoms: NDArray[np.int32],
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    num_regions: int,
    excess: int,
    num_threads: int,
) -> NDArray[np.int64]:
    """Let some slivers join neighbours, in place; which old number each atom has that is left.

    Where there are more than twice as many atoms too many as there are of one voxel, all of these go.
    """
    voxels = _count(atoms.reshape(-1), len(ranks))
    volumes = np.maximum(sums_of(ranks, nests, voxels, num_regions), 1)
    length = max(len(nest.nodes) for nest in nests) + 1
    weights = np.zeros((len(nests), length))
    around = np.zeros((len(nests), length), np.int64)
    for row, nest in enumerate(nests):
        better = 2 - nest.place / num_regions  # the best region counts twice as much as the last
        weights[row, 1 : len(nest.nodes) + 1] = better / volumes[nest.place]
        around[row, 1 : len(nest.nodes) + 1] = nest.parent + 1
    leaving = voxels == 1
    if not 0 < 2 * np.count_nonzero(leaving) <= excess:
        leaving = _least_harmful(
            atoms, voxels, ranks, weights, around, max(1, min(excess, len(ranks) // _ROUND)), num_threads
        )
    _join_neighbours(atoms, leaving, voxels, ranks, weights, around)
    return np.asarray(_renumber(atoms, len(ranks)))


def _least_harmful(
    atoms: NDArray[np.int32],
    voxels: NDArray[np.int64],
    ranks: NDArray[np.uint16],
    weights: NDArray[np.float64],
    around: NDArray[np.int64],
    num_wanted: int,
    num_threads: int,
) -> NDArray[np.bool_]:
    """(A,) the slivers that do least harm by joining a neighbour, at most so many."""
    small = voxels <= _MAX_SLIVER_VOXELS
    ends = np.linspace(0, len(atoms), num_threads + 1).astype(np.int64)
    with ThreadPoolExecutor(num_threads) as pool:
        parts = pool.map(
            lambda k: _least_harm(atoms, ends[k], ends[k + 1], small, ranks, weights, around),
            range(num_threads),
        )
        harm = np.minimum.reduce(list(parts)) * voxels
    slivers = np.flatnonzero(small & np.isfinite(harm))
    slivers = slivers[np.argsort(harm[slivers], kind="stable")[:num_wanted]]
    leaving = np.zeros(len(ranks), np.bool_)
    leaving[slivers] = True
    return leaving


@numba.njit(cache=True, nogil=True)
def _difference(
    a: int, b: int, ranks: NDArray[np.uint16], weights: NDArray[np.float64], around: NDArray[np.int64],
    enough: Any,
) -> Any:  # fmt: skip
    """Weights of the regions with one of two atoms, but not the other; counted no further than `enough`."""
    total = 0.0
    for row in range(ranks.shape[1]):
        i, j = np.int64(ranks[a, row]), np.int64(ranks[b, row])
        while i != j:  # what is around a region has a lower number
            if i > j:
                total += weights[row, i]
                i = around[row, i]
            else:
                total += weights[row, j]
                j = around[row, j]
        if total > enough:
            break
    return total


@numba.njit(cache=True, nogil=True)
def _least_harm(
    atoms: NDArray[np.int32], start: Any, stop: Any, small: NDArray[np.bool_], ranks: NDArray[np.uint16],
    weights: NDArray[np.float64], around: NDArray[np.int64],
) -> NDArray[np.float64]:  # fmt: skip
    """(A,) what a voxel of a small atom changes at least by joining a neighbour; infinite for the others.

    Looked at are the faces towards higher indices of the slices start..stop - 1.
    """
    num_z, num_y, num_x = atoms.shape
    harm = np.full(len(ranks), np.inf)
    last_a, last_b = np.full(3, -1, np.int32), np.full(3, -1, np.int32)
    for z in range(start, stop):
        for y in range(num_y):
            for x in range(num_x):
                a = atoms[z, y, x]
                for d in range(3):
                    zz, yy, xx = z + (d == 0), y + (d == 1), x + (d == 2)
                    if zz < num_z and yy < num_y and xx < num_x:
                        b = atoms[zz, yy, xx]
                        if a == last_a[d] and b == last_b[d]:
                            continue
                        last_a[d], last_b[d] = a, b
                        if a != b and (small[a] or small[b]):
                            enough = max(harm[a] if small[a] else 0.0, harm[b] if small[b] else 0.0)
                            change = _difference(a, b, ranks, weights, around, enough)
                            if small[a]:
                                harm[a] = min(harm[a], change)
                            if small[b]:
                                harm[b] = min(harm[b], change)
    return harm


@numba.njit(cache=True, nogil=True)
def _join_neighbours(
    atoms: NDArray[np.int32], leaving: NDArray[np.bool_], voxels: NDArray[np.int64],
    ranks: NDArray[np.uint16], weights: NDArray[np.float64], around: NDArray[np.int64],
) -> None:  # fmt: skip
    """Voxels of leaving atoms join the neighbour that changes least, from the outside in; in place."""
    num_z, num_y, num_x = atoms.shape
    flat = atoms.reshape(-1)
    pending = np.empty(_total(leaving, voxels), np.int64)
    place = 0
    for i in range(len(flat)):
        if leaving[flat[i]]:
            pending[place] = i
            place += 1
    target = np.empty(len(pending), np.int32)
    count = len(pending)
    while count > 0:
        for p in range(count):
            i = pending[p]
            z, y, x = i // (num_y * num_x), i // num_x % num_y, i % num_x
            best, least = np.int32(-1), np.inf
            for d in range(6):
                zz, yy, xx = z + (d == 5) - (d == 0), y + (d == 4) - (d == 1), x + (d == 3) - (d == 2)
                if 0 <= zz < num_z and 0 <= yy < num_y and 0 <= xx < num_x:
                    b = atoms[zz, yy, xx]
                    if b != best and not leaving[b]:
                        change = _difference(flat[i], b, ranks, weights, around, least)
                        if change < least or (change == least and b < best):
                            best, least = b, change
            target[p] = best
        left = 0
        for p in range(count):
            if target[p] >= 0:
                flat[pending[p]] = target[p]
            else:
                pending[left] = pending[p]
                left += 1
        if left == count:
            return
        count = left


@numba.njit(cache=True, nogil=True)
def _total(leaving: NDArray[np.bool_], voxels: NDArray[np.int64]) -> Any:
    """Voxels of the leaving atoms."""
    total = 0
    for atom in range(len(leaving)):
        if leaving[atom]:
            total += voxels[atom]
    return total


@numba.njit(cache=True, nogil=True)
def _count(flat: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """(A,) voxels of each atom."""
    voxels = np.zeros(count, np.int64)
    for i in range(len(flat)):
        voxels[flat[i]] += 1
    return voxels


@numba.njit(cache=True, nogil=True)
def _renumber(atoms: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Number the atoms that are left in scan order, in place; which old number each new one had."""
    new = np.full(count, -1, np.int32)
    old = np.empty(count, np.int64)
    used = 0
    flat = atoms.reshape(-1)
    for i in range(len(flat)):
        a = flat[i]
        if new[a] < 0:
            new[a] = used
            old[used] = a
            used += 1
        flat[i] = new[a]
    return old[:used]
