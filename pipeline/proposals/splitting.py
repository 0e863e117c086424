"""Pieces: the voxels split by one painted volume after the other, until all that differ anywhere are apart.

    volumes, as they come --each slab by whoever is free--> pieces of slabs --equal ranks are one--> atoms

A volume takes as long to split by as to paint, and one has to wait for the other. So threads split slabs of
planes, each on its own, while others paint; what lies in several slabs is found together again at the end, by
its ranks. In which order the volumes come, and how many slabs there are, makes no difference.

Reads:  volumes, uint16 (z, y, x): 1 + the rank of the innermost region at each voxel, 0 for none.
Writes: atoms, int32 (z, y, x), 0..A-1 in scan order; ranks, uint16 (A, T).
Bounds: 2^31 atoms, 2^47 pairs of atom and value.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from threading import Lock
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, for_each
from pipeline.hierarchies import relabelled, tally

_MOST_SLABS = 8
"""More would have too many pieces of their own."""

_WAITING = 1
"""Volumes that may wait for a slab before whoever brings another one waits too."""

_AT_ONCE = 8
"""Columns of a table of all atoms that are written together: one by one, each would touch all its memory."""

_ROOM = 1 << 15
"""For new atoms of a volume, at first; a power of two."""


class Pieces:
    """The atoms of a scan while they are split."""

    def __init__(self, shape: tuple[int, ...], backend: Backend, *, at_once: int) -> None:
        """All one piece.

        Args:
            shape: Of the scan.
            backend: Its threads split.
            at_once: How many threads bring volumes: of one, each volume is split by before the next comes.
        """
        self.backend = backend
        self.at_once = at_once
        atoms = backend.xp.zeros(shape, dtype=np.int32)
        num_slabs = min(backend.volume_threads, _MOST_SLABS, shape[0])
        edges = [shape[0] * slab // num_slabs for slab in range(num_slabs + 1)]
        self.slabs = [_Slab(atoms[start:stop], (start, stop), backend) for start, stop in pairwise(edges)]
        self.atoms = atoms if num_slabs > 1 else None
        """Of all slabs, which the CPU splits in place."""

    def split(self, column: int, volume: Any) -> None:
        """Split by the value of a volume, uint16 (z, y, x), at each voxel; `column` is its number.

        Several threads may do so at once; those that bring more than can be split in time wait.
        """
        for slab in self.slabs:
            slab.waiting.append((column, volume))
        del volume
        if self.at_once == 1:
            for_each(lambda slab: slab.work(wait=True), self.slabs, self.backend.volume_threads)
            return
        for slab in self.slabs:
            slab.work(wait=False)
        for slab in self.slabs:
            if len(slab.waiting) > _WAITING:
                slab.work(wait=True)

    def numbered(self, num_volumes: int) -> tuple[Any, NDArray[np.uint16]]:
        """The atoms numbered in scan order; (A, T) the values that each has in the volumes."""
        for_each(lambda slab: slab.finish(), self.slabs, self.backend.volume_threads)
        first = np.cumsum([0, *(len(slab.order) for slab in self.slabs)])
        ranks = np.empty((first[-1], num_volumes), np.uint16)
        places = [slice(*ends) for ends in pairwise(first.tolist())]
        for_each(
            lambda slab: self.slabs[slab].fill(ranks[places[slab]]),
            range(len(self.slabs)),
            self.backend.volume_threads,
        )
        if self.atoms is None:
            return self.slabs[0].atoms, ranks
        # In scan order still: what a slab shares with one before has the number it has there.
        number, kept = different_rows(ranks)
        for slab, place in zip(self.slabs, places, strict=True):
            relabelled(slab.atoms, number[place], self.backend)
        move_up(ranks, kept)
        return self.atoms, ranks[: len(kept)]


class _Slab:
    """Some planes of it."""

    def __init__(self, atoms: Any, planes: tuple[int, int], backend: Backend) -> None:
        self.backend = backend
        self.atoms = atoms
        self.planes = planes
        self.sizes = np.array([atoms.size], np.int32)
        self.splits: list[tuple[int, Any, Any, Any]] = []
        """(column, numbers given, origin and value of each) of each volume, in the order of splitting."""
        self.order: NDArray[np.int64] = np.empty(0, np.int64)
        """Of the atoms in scan order, the number that each had; once finished."""
        self.waiting = deque[tuple[int, Any]]()
        self.turn = Lock()

    def work(self, *, wait: bool) -> None:
        """Split by all volumes that wait; unless told to wait, only if no other thread is at it."""
        if self.turn.acquire(blocking=wait):
            try:
                while self.waiting:
                    self.split(*self.waiting.popleft())
            finally:
                self.turn.release()

    def split(self, column: int, volume: Any) -> None:
        """Split by one volume of the whole scan."""
        volume = volume[slice(*self.planes)]
        if self.backend.name == "gpu":
            self.atoms, *split = _intersect_on_gpu(self.atoms, volume, self.backend)
        else:
            self.sizes, *split = _intersect_on_cpu(self.atoms, volume, self.sizes)
        self.splits.append((column, *split))

    def finish(self) -> None:
        """Split by what still waits, and number the atoms in scan order."""
        self.work(wait=True)
        self.atoms, self.order = _in_scan_order(self.atoms, self.bound, self.backend)

    @property
    def bound(self) -> int:
        """All numbers of atoms are below it."""
        return len(self.splits[-1][1]) if self.backend.name == "gpu" else len(self.sizes)

    def fill(self, ranks: NDArray[np.uint16]) -> None:
        """Write the values that the atoms have in the volumes, (A, T)."""
        backend, xp = self.backend, self.backend.xp
        atom = backend.to_device(self.order)  # the number of each after the split at hand
        same = xp.arange(self.bound, dtype=xp.int32)
        origins, values = same.copy(), xp.zeros(self.bound, dtype=xp.uint16)
        some, columns = xp.empty((_AT_ONCE, len(self.order)), dtype=xp.uint16), list[int]()
        for place, (column, given, origin, value) in enumerate(reversed(self.splits), start=1):
            origins[given], values[given] = origin, value
            some[len(columns)], atom = values[atom], origins[atom]
            origins[given], values[given] = same[given], 0
            columns.append(column)
            if len(columns) == _AT_ONCE or place == len(self.splits):
                _spread(backend.to_host(some), np.array(columns), ranks)
                columns.clear()


@numba.njit(cache=True, nogil=True)
def _spread(rows: NDArray[np.uint16], columns: NDArray[np.int64], out: NDArray[np.uint16]) -> None:
    """Write rows (K or more, A) to K columns of a table (A, T)."""
    for i in range(len(out)):
        for k in range(len(columns)):
            out[i, columns[k]] = rows[k, i]


@numba.njit(cache=True, nogil=True)
def move_up(rows: NDArray[np.uint16], kept: NDArray[np.int32]) -> None:
    """Move some rows, rising, to the beginning."""
    for i in range(len(kept)):
        if kept[i] != i:
            rows[i] = rows[kept[i]]


@numba.njit(cache=True, nogil=True)
def different_rows(rows: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(A,) the number of each row, equal ones the same, in order; and the first row of each number."""
    size = 16
    while size < 2 * len(rows):
        size *= 2
    table = np.full(size, -1, np.int32)
    number, first = np.empty(len(rows), np.int32), np.empty(len(rows), np.int32)
    used = 0
    for i in range(len(rows)):
        value = np.uint64(1469598103934665603)
        for k in range(rows.shape[1]):
            value = (value ^ np.uint64(rows[i, k])) * np.uint64(1099511628211)
        place = np.int64((value ^ (value >> np.uint64(32))) & np.uint64(size - 1))
        while table[place] >= 0:
            other, k = first[table[place]], 0
            while k < rows.shape[1] and rows[other, k] == rows[i, k]:
                k += 1
            if k == rows.shape[1]:
                break
            place = (place + 1) & (size - 1)
        if table[place] < 0:
            table[place], first[used] = used, i
            used += 1
        number[i] = table[place]
    return number, first[:used]


def _intersect_on_gpu(atoms: Any, volume: Any, backend: Backend) -> tuple[Any, Any, Any, Any]:
    """Split atoms, int32 (z, y, x), by the value of a volume, uint16 (z, y, x), at each voxel.

    Returns:
        The new atoms, numbered by old atom, then value; int32 (A,) the numbers, int32 and uint16 (A,) the old
        atom and the value of each.
    """
    xp = backend.xp
    keys = (atoms.ravel().astype(xp.int64) << 16) | volume.ravel()
    begins = xp.ones(keys.shape, dtype=xp.bool_)  # runs of equal keys: few of them have to be sorted
    begins[1:] = keys[1:] != keys[:-1]
    found, number = xp.unique(keys[begins], return_inverse=True)
    run = xp.cumsum(begins, dtype=xp.int32) - 1
    split = number.astype(xp.int32)[run].reshape(atoms.shape)
    numbers = xp.arange(len(found), dtype=xp.int32)
    return split, numbers, (found >> 16).astype(xp.int32), (found & 0xFFFF).astype(xp.uint16)


def _in_scan_order(atoms: Any, count: int, backend: Backend) -> tuple[Any, NDArray[np.int64]]:
    """Atoms numbered 0..A-1 by their first voxels, on the CPU in place, and the old number of each.

    Old numbers are below `count`; on the CPU some may have no voxel.
    """
    if backend.name != "gpu":
        return atoms, _number(atoms.reshape(-1), count)
    _, first = tally(atoms, count, backend)
    order = np.argsort(backend.to_host(first))
    number = np.empty(count, np.int32)
    number[order] = np.arange(count, dtype=np.int32)
    return backend.to_device(number)[atoms], order


@numba.njit(cache=True, nogil=True)
def _number(flat: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """As `_in_scan_order`, on the CPU: the old numbers."""
    number, order = np.full(count, -1, np.int32), np.empty(count, np.int64)
    used = 0
    for i in range(len(flat)):
        atom = flat[i]
        if number[atom] < 0:
            number[atom], order[used] = used, atom
            used += 1
        flat[i] = number[atom]
    return order[:used]


def _intersect_on_cpu(
    atoms: NDArray[np.int32], volume: NDArray[np.uint16], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
    """Split atoms by the value of a volume at each voxel, in place: an atom keeps its number where that is 0.

    Most of a volume is 0, so most voxels are passed over. Numbers that have lost all their voxels are used
    again by the next split.

    Args:
        atoms: int32 (z, y, x).
        volume: uint16 (z, y, x).
        sizes: (A,) voxels of each atom.

    Returns:
        (A',) sizes of the atoms that there are now; int32 (N,) the numbers given, int32 and uint16 (N,) the
        old atom and the value of each.
    """
    count, room = len(sizes), _ROOM
    free = np.flatnonzero(sizes == 0)[:room]
    free = np.concatenate((free, np.arange(count, count + room - len(free))))
    keys = np.full(count + room, -1)  # old atom << 16 | value, of each new atom
    sizes = np.concatenate((sizes, np.zeros(room, np.int32)))
    table = np.full(2 * room, -1, np.int32)
    voxels = atoms.reshape(-1), volume.reshape(-1), atoms.shape[1:]
    done, used = 0, 0
    while True:
        done, used = _split(voxels, sizes, (keys, free, table), done, used)
        if done == atoms.size:
            break
        keys = np.concatenate((keys, np.full(room, -1)))
        sizes = np.concatenate((sizes, np.zeros(room, np.int32)))
        first = max(count, int(free[-1]) + 1)
        free = np.concatenate((free, np.arange(first, first + room)))
        room *= 2
        table = _table_of(keys, free[:used], 2 * room)
    new = free[:used]
    count = max(count, int(new.max(initial=-1)) + 1)
    origin, value = (keys[new] >> 16).astype(np.int32), (keys[new] & 0xFFFF).astype(np.uint16)
    return sizes[:count], new.astype(np.int32), origin, value


@numba.njit(cache=True, nogil=True)
def _table_of(keys: NDArray[np.int64], numbers: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """A hash table of the numbers, by their keys."""
    table = np.full(size, -1, np.int32)
    for number in numbers:
        table[_place(table, keys, keys[number])] = number
    return table


@numba.njit(cache=True, nogil=True)
def _split(
    voxels: tuple[NDArray[np.int32], NDArray[np.uint16], Any], sizes: NDArray[np.int32],
    numbers: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]], done: int, used: int,
) -> Any:  # fmt: skip
    """Split voxels from `done` on, until all are or the room is used up: (voxels done, numbers used).

    `voxels` are the flat atoms (new ones before `done`, old ones from there on), the flat values and the size
    of a plane; `numbers` the key of each new atom, the numbers that are free for new ones, and a hash table
    of them.
    """
    (flat, values, plane), (keys, free, table) = voxels, numbers
    row = plane[1]
    behind = (row, plane[0] * row)  # the voxels before along y and z
    for first in range(done // row * row, len(flat), row):
        some = np.uint16(0)
        for i in range(first, first + row):
            some |= values[i]
        if some == 0:
            continue
        i = max(first, done)
        while i < first + row:
            atom, value = flat[i], values[i]
            start = i
            while i < first + row and flat[i] == atom and values[i] == value:
                i += 1
            if value == 0:
                continue
            key = (np.int64(atom) << 16) | np.int64(value)
            here = atom
            for step in behind:  # neighbours mostly share theirs
                if start >= step and keys[here] != key:
                    here = flat[start - step]
            if keys[here] != key:
                place = _place(table, keys, key)
                if table[place] < 0:
                    if used == len(free):
                        return start, used
                    table[place], keys[free[used]] = free[used], key
                    used += 1
                here = table[place]
            flat[start:i] = here
            sizes[atom] -= i - start
            sizes[here] += i - start
    return len(flat), used


@numba.njit(cache=True, nogil=True)
def _place(table: NDArray[np.int32], keys: NDArray[np.int64], key: Any) -> Any:
    """Where a hash table has, or would have, the number of a key."""
    mask = len(table) - 1
    place = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask
    while table[place] >= 0 and keys[table[place]] != key:
        place = (place + 1) & mask
    return place
