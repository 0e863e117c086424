"""Common refinement of label volumes: the current atoms are split by one more volume at a time.

    volumes, as they arrive --each slab by a free thread--> atoms of slabs --merge equal rows of ranks-->
    atoms

Splitting and painting do not wait for each other: some threads paint volumes, while others split slabs of
planes independently of each other. Up to four volumes split together, with their four values read as one
number, since most of the time goes into the steps from run to run of voxels. At the end, atoms of several
slabs with equal ranks are merged. The result does not depend on the order of the volumes, on which of them
split together, or on the number of slabs.

Reads:  volumes, uint16 (z, y, x): 1 + rank of the innermost region at each voxel, 0 for none.
Writes: atoms, int32 (z, y, x), 0..A-1 in scan order; ranks, uint16 (A, T).
Bounds: 2^31 atoms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray, for_each
from pipeline.hierarchies import relabel_in_place, tally

_MOST_SLABS = 8
"""The most slabs; an atom is counted once in every slab that it touches, so more slabs take more memory."""

_TOGETHER = 4
"""Volumes that split a slab together: 16 bits of each make a number of 64."""

_TOGETHER_VOXELS = 64_000_000
"""Volumes of larger scans split one by one, since waiting volumes take memory."""

_COLUMNS_AT_ONCE = 8
"""Number of columns of the table of atoms that are written together: each column alone would touch all of its
memory."""

_CAPACITY = 1 << 15
"""Initial capacity for the new atoms of a volume; a power of two."""


class Pieces:
    """Atoms of a scan while they are split by one volume after the other."""

    def __init__(self, shape: tuple[int, ...], backend: Backend, *, at_once: int) -> None:
        """Start with the whole scan as one atom.

        Args:
            shape: Shape (z, y, x) of the scan.
            backend: Its threads split.
            at_once: Number of threads that bring volumes. If it is 1, each volume is used completely before
                the next comes.
        """
        self.backend = backend
        self.at_once = at_once
        size = int(np.prod(shape, dtype=np.int64))
        self.together = _TOGETHER if backend.name != "gpu" and size <= _TOGETHER_VOXELS else 1
        atoms = backend.xp.zeros(shape, dtype=np.int32)
        num_slabs = min(backend.volume_threads, _MOST_SLABS, shape[0])
        edges = [shape[0] * slab // num_slabs for slab in range(num_slabs + 1)]
        self.slabs = [_Slab(atoms[start:stop], (start, stop), backend) for start, stop in pairwise(edges)]
        self.atoms = atoms
        """int32 (z, y, x) of all slabs, which split it in place."""

    def split(self, column: int, volume: DeviceArray) -> None:
        """Split the atoms by the values of a volume.

        Several threads may call this at once. A thread waits if it brings volumes faster than they can be
        used.

        Args:
            column: Index of the volume.
            volume: uint16 (z, y, x) on the backend.
        """
        for slab in self.slabs:
            slab.waiting.append((column, volume))
        del volume
        least = self.together
        if self.at_once == 1:
            for_each(lambda slab: slab.work(least, wait=True), self.slabs, self.backend.volume_threads)
            return
        for slab in self.slabs:
            slab.work(least, wait=False)
        for slab in self.slabs:
            if len(slab.waiting) > least:
                slab.work(least, wait=True)

    def numbered(self, num_volumes: int) -> tuple[DeviceArray, NDArray[np.uint16]]:
        """Return the atoms, and their values in the volumes.

        Args:
            num_volumes: Number of volumes T.

        Returns:
            int32 (z, y, x) atoms 0..A-1 in scan order, on the backend; and uint16 (A, T) values.
        """
        for_each(lambda slab: slab.finish(), self.slabs, self.backend.volume_threads)
        first = np.cumsum([0, *(len(slab.order) for slab in self.slabs)])
        ranks = np.empty((first[-1], num_volumes), np.uint16)
        rows = [slice(*ends) for ends in pairwise(first.tolist())]
        for_each(
            lambda slab: self.slabs[slab].fill(ranks[rows[slab]]),
            range(len(self.slabs)),
            self.backend.volume_threads,
        )
        if len(self.slabs) == 1:
            return self.atoms, ranks
        # This keeps scan order: an atom that an earlier slab has too gets its number from there.
        number, kept = different_rows(ranks)
        for slab, part in zip(self.slabs, rows, strict=True):
            relabel_in_place(slab.atoms, number[part], self.backend)
        move_up_in_place(ranks, kept)
        return self.atoms, ranks[: len(kept)]


class _Slab:
    """Atoms of some planes of the scan."""

    def __init__(self, atoms: DeviceArray, planes: tuple[int, int], backend: Backend) -> None:
        self.backend = backend
        self.atoms = atoms
        self.planes = planes
        self.sizes = np.array([atoms.size], np.int32)
        self.splits: list[tuple[list[int], DeviceArray, DeviceArray, DeviceArray]] = []
        """For each split, in their order: the columns of its volumes; the numbers of the new atoms; for each
        of them the old atom, and the values (N, columns)."""
        self.order: NDArray[np.int64] = np.empty(0, np.int64)
        """Old number of each atom, in scan order; set by `finish`."""
        self.waiting = deque[tuple[int, DeviceArray]]()
        self.lock = Lock()

    def work(self, least: int = 1, *, wait: bool) -> None:
        """Split by the waiting volumes, several together.

        Args:
            least: Fewer volumes are left waiting.
            wait: Whether to wait while another thread splits this slab; if False, return at once.
        """
        if self.lock.acquire(blocking=wait):
            try:
                while len(self.waiting) >= max(least, 1):
                    self.split([self.waiting.popleft() for _ in range(min(len(self.waiting), _TOGETHER))])
            finally:
                self.lock.release()

    def split(self, brought: Sequence[tuple[int, DeviceArray]]) -> None:
        """Split by up to four volumes (z, y, x) of the whole scan, each with its column."""
        columns = [column for column, _ in brought]
        volumes = [volume[slice(*self.planes)] for _, volume in brought]
        if self.backend.name != "gpu":
            self.sizes, new, origins, values = _intersect_in_place_on_cpu(self.atoms, volumes, self.sizes)
            self.splits.append((columns, new, origins, values))
            return
        for column, volume in zip(columns, volumes, strict=True):
            new, origins, values = _intersect_in_place_on_gpu(self.atoms, volume, self.backend)
            self.splits.append(([column], new, origins, values[:, None]))

    def finish(self) -> None:
        """Split by the volumes that still wait, and number the atoms in scan order."""
        self.work(wait=True)
        self.order = _number_in_place(self.atoms, self.bound, self.backend)

    @property
    def bound(self) -> int:
        """One more than the largest number of an atom."""
        return len(self.splits[-1][1]) if self.backend.name == "gpu" else len(self.sizes)

    def fill(self, ranks: NDArray[np.uint16]) -> None:
        """Write the values of the atoms in all volumes into `ranks`, (A, T)."""
        backend, xp = self.backend, self.backend.xp
        atom = backend.to_device(self.order)  # number of each atom after the current split
        same = xp.arange(self.bound, dtype=xp.int32)
        origins, values = same.copy(), xp.zeros(self.bound, dtype=xp.uint16)
        some, columns = xp.empty((_COLUMNS_AT_ONCE, len(self.order)), dtype=xp.uint16), list[int]()

        def write() -> None:
            _write_columns(backend.to_host(some), np.array(columns), ranks)
            columns.clear()

        for made, given, origin, made_values in reversed(self.splits):
            origins[given] = origin
            for k, column in enumerate(made):
                values[given] = made_values[:, k]
                some[len(columns)] = values[atom]
                columns.append(column)
                if len(columns) == _COLUMNS_AT_ONCE:
                    write()
            atom = origins[atom]
            origins[given], values[given] = same[given], 0
        if columns:
            write()


@numba.njit(cache=True, nogil=True)
def _write_columns(rows: NDArray[np.uint16], columns: NDArray[np.int64], out: NDArray[np.uint16]) -> None:
    """Write rows (K or more, A) into K columns of a table (A, T)."""
    for i in range(len(out)):
        for k in range(len(columns)):
            out[i, columns[k]] = rows[k, i]


@numba.njit(cache=True, nogil=True)
def move_up_in_place(rows: NDArray[np.uint16], kept: NDArray[np.int32]) -> None:
    """Move the rows `kept`, ascending indices, to the beginning of `rows`."""
    for i in range(len(kept)):
        if kept[i] != i:
            rows[i] = rows[kept[i]]


@numba.njit(cache=True, nogil=True)
def different_rows(rows: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the different rows of a table in the order of their first occurrence.

    Args:
        rows: uint16 (A, T).

    Returns:
        int32 (A,) number of each row, 0..B-1; and int32 (B,) the first row with each number.
    """
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
        slot = np.int64((value ^ (value >> np.uint64(32))) & np.uint64(size - 1))
        while table[slot] >= 0:
            other, k = first[table[slot]], 0
            while k < rows.shape[1] and rows[other, k] == rows[i, k]:
                k += 1
            if k == rows.shape[1]:
                break
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0:
            table[slot], first[used] = used, i
            used += 1
        number[i] = table[slot]
    return number, first[:used]


def _intersect_in_place_on_gpu(
    atoms: DeviceArray, volume: DeviceArray, backend: Backend
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Split atoms by the values of a volume.

    Args:
        atoms: int32 (z, y, x) on the device.
        volume: uint16 (z, y, x) on the device.
        backend: The GPU.

    Returns:
        int32 (A,) numbers of the new atoms, by old atom, then value; int32 (A,) the old atom and uint16 (A,)
        the value of each.
    """
    xp = backend.xp
    keys = (atoms.ravel().astype(xp.int64) << 16) | volume.ravel()
    begins = xp.ones(keys.shape, dtype=xp.bool_)  # only one key of each run of equal keys is sorted
    begins[1:] = keys[1:] != keys[:-1]
    found, number = xp.unique(keys[begins], return_inverse=True)
    run = xp.cumsum(begins, dtype=xp.int32) - 1
    atoms[...] = number.astype(xp.int32)[run].reshape(atoms.shape)
    numbers = xp.arange(len(found), dtype=xp.int32)
    return numbers, (found >> 16).astype(xp.int32), (found & 0xFFFF).astype(xp.uint16)


def _number_in_place(atoms: DeviceArray, count: int, backend: Backend) -> NDArray[np.int64]:
    """Number atoms 0..A-1 by their first voxels.

    Args:
        atoms: int32 (z, y, x).
        count: Larger than every old number; on the CPU some numbers may have no voxel.
        backend: Backend that holds the atoms.

    Returns:
        int64 (A,) the old number of each atom.
    """
    if backend.name != "gpu":
        return np.asarray(_number(atoms.reshape(-1), count))
    _, first = tally(atoms, count, backend)
    order = np.argsort(backend.to_host(first))
    number = np.empty(count, np.int32)
    number[order] = np.arange(count, dtype=np.int32)
    relabel_in_place(atoms, number, backend)
    return order


@numba.njit(cache=True, nogil=True)
def _number(flat: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Do the same as `_number_in_place`, on the CPU."""
    number, order = np.full(count, -1, np.int32), np.empty(count, np.int64)
    used = 0
    for i in range(len(flat)):
        atom = flat[i]
        if number[atom] < 0:
            number[atom], order[used] = used, atom
            used += 1
        flat[i] = number[atom]
    return order[:used]


def _intersect_in_place_on_cpu(
    atoms: NDArray[np.int32], volumes: Sequence[NDArray[np.uint16]], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
    """Split atoms by the values of some volumes; voxels with value 0 in all of them keep their atom.

    Numbers that have lost all their voxels are used again by the next split.

    Args:
        atoms: int32 (z, y, x).
        volumes: 1 to 4 of them, uint16 (z, y, x).
        sizes: int32 (A,) voxels of each atom.

    Returns:
        int32 (A',) sizes of the atoms after the split; int32 (N,) numbers of the new atoms; int32 (N,) the
        old atom and uint16 (N, volumes) the values of each.
    """
    count, capacity = len(sizes), _CAPACITY
    free = np.flatnonzero(sizes == 0)[:capacity]
    free = np.concatenate((free, np.arange(count, count + capacity - len(free))))
    keys = np.full(count + capacity, -1, np.int32), np.zeros(count + capacity, np.uint64)
    sizes = np.concatenate((sizes, np.zeros(capacity, np.int32)))
    table = np.full(2 * capacity, -1, np.int32)
    flat = [volume.reshape(-1) for volume in volumes]
    four = tuple(flat[min(k, len(flat) - 1)] for k in range(_TOGETHER))  # the last one again: nothing new
    done, used = 0, 0
    while True:
        voxels = atoms.reshape(-1), four, atoms.shape[1:]
        done, used = _split(voxels, sizes, keys, free, table, done, used)
        if done == atoms.size:
            break
        keys = (
            np.concatenate((keys[0], np.full(capacity, -1, np.int32))),
            np.concatenate((keys[1], np.zeros(capacity, np.uint64))),
        )
        sizes = np.concatenate((sizes, np.zeros(capacity, np.int32)))
        first = max(count, int(free[-1]) + 1)
        free = np.concatenate((free, np.arange(first, first + capacity)))
        capacity *= 2
        table = _table_of(keys, free[:used], 2 * capacity)
    new = free[:used]
    count = max(count, int(new.max(initial=-1)) + 1)
    values = np.stack([keys[1][new] >> np.uint64(16 * k) for k in range(len(volumes))], axis=1)
    return sizes[:count], new.astype(np.int32), keys[0][new], values.astype(np.uint16)


_Keys: TypeAlias = tuple[NDArray[np.int32], NDArray[np.uint64]]
"""The key of each new atom: its old atom (-1 for none), and the values of four volumes as one number."""


@numba.njit(cache=True, nogil=True)
def _table_of(keys: _Keys, numbers: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Return a hash table (size,) of atom numbers by their keys; -1 where a slot is empty."""
    table = np.full(size, -1, np.int32)
    for number in numbers:
        table[_slot(table, keys, keys[0][number], keys[1][number])] = number
    return table


@numba.njit(cache=True, nogil=True)
def _split(
    voxels: Any, sizes: NDArray[np.int32], keys: _Keys, free: NDArray[np.int64], table: NDArray[np.int32],
    done: int, used: int,
) -> Any:  # fmt: skip
    """Split voxels from `done` on, until all are done or no number for new atoms is left.

    Args:
        voxels: Atoms of all voxels (new ones before `done`, old ones from there on; updated), values of four
            volumes, and (rows per plane, voxels per row).
        sizes: Voxels of each atom; updated.
        keys: Of each new atom; updated.
        free: Numbers that are free for new atoms.
        table: Hash table of the new atoms by key; updated.
        done: Voxels that are done.
        used: Free numbers that are used.

    Returns:
        Voxels done, numbers used.
    """
    flat, values, plane = voxels
    (olds, codes), row = keys, plane[1]
    behind = (row, plane[0] * row)  # index distance to the previous voxel along y and along z
    line = np.empty(row, np.uint64)
    for first in range(done // row * row, len(flat), row):
        if not _join_values(values, first, line):
            continue
        x = max(first, done) - first
        while x < row:
            atom, code, start = flat[first + x], line[x], first + x
            if code == 0:
                x += 1
                continue
            while x < row and line[x] == code and flat[first + x] == atom:
                x += 1
            here = atom
            for step in behind:  # the neighbour's atom mostly has the same key
                if start >= step and (olds[here] != atom or codes[here] != code):
                    here = flat[start - step]
            if olds[here] != atom or codes[here] != code:
                slot = _slot(table, keys, atom, code)
                if table[slot] < 0:
                    if used == len(free):
                        return start, used
                    table[slot] = free[used]
                    olds[free[used]], codes[free[used]] = atom, code
                    used += 1
                here = table[slot]
            flat[start : first + x] = here
            sizes[atom] -= first + x - start
            sizes[here] += first + x - start
    return len(flat), used


@numba.njit(cache=True, nogil=True)
def _join_values(values: Any, first: int, line: NDArray[np.uint64]) -> bool:
    """Write the values of four volumes in a row of voxels as one number each; return whether any is not 0."""
    row = len(line)
    one, two = values[0][first : first + row], values[1][first : first + row]
    three, four = values[2][first : first + row], values[3][first : first + row]
    some = np.uint64(0)
    for x in range(row):
        low = np.uint64(one[x]) | (np.uint64(two[x]) << np.uint64(16))
        high = np.uint64(three[x]) | (np.uint64(four[x]) << np.uint64(16))
        line[x] = low | (high << np.uint64(32))
        some |= line[x]
    return bool(some != np.uint64(0))


@numba.njit(cache=True, nogil=True)
def _slot(table: NDArray[np.int32], keys: _Keys, old: Any, code: Any) -> Any:
    """Return the slot of a hash table that holds the number of a key, or the empty slot for it."""
    mask = len(table) - 1
    mixed = code * np.uint64(0x9E3779B97F4A7C15) + np.uint64(old)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    slot = np.int64(mixed >> np.uint64(32)) & mask
    while table[slot] >= 0 and (keys[0][table[slot]] != old or keys[1][table[slot]] != code):
        slot = (slot + 1) & mask
    return slot
