"""The common refinement: the partition of the voxels that tells the chosen regions apart.

    chosen nodes --smooth outlines--> regions, a volume a nest --intersect one by one--> refinement

Reads:  partitions, int32 or uint16 (z, y, x); hierarchies over them; chosen (tree, node) pairs.
Writes: `Refinement`: atoms, int32 (z, y, x), 0..A-1 in scan order, and which regions each lies in.
Bounds: fewer than 65,535 chosen regions and 2^31 atoms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.backend import HOST, Backend
from pipeline.hierarchies import Hierarchy
from pipeline.nests import Nest
from pipeline.regions import tally
from pipeline.slabs import for_each, over_slabs
from pipeline.smoothing import Outlines, paint_smoothed, region_boxes

Chosen = Sequence[tuple[int, int]]
"""(tree, node) of each chosen region, best first."""


_GONE = np.empty((0, 0, 0), np.int32)

_ROOM = 1 << 15
"""For new atoms of a volume, at first; a power of two."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The chosen regions and the partition of the voxels that tells them apart."""

    chosen: tuple[tuple[int, int], ...]
    """(tree, node) of each region, best first."""
    atoms: Any
    """int32 (z, y, x) 0..A-1 in scan order, on the backend."""
    ranks: NDArray[np.uint16]
    """(A, T) for each tree that has chosen regions: 1 + rank of the innermost one around an atom, or 0."""
    nests: tuple[Nest, ...]
    """(T,) the chosen regions of these trees, by rank."""
    atom_voxels: NDArray[np.int64]
    """(A,)"""
    atom_boxes: NDArray[np.int32]
    """(A, 6) z0, y0, x0, z1, y1, x1, half open."""


def refine(
    partitions: list[Any],
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    *,
    outlines: Sequence[Outlines] = (),
    style: NDArray[np.int8] | None = None,
    backend: Backend = HOST,
) -> Refinement:
    """The atoms that tell the chosen regions apart.

    Args:
        partitions: Label volumes on the backend that the hierarchies' leaves are regions of. Taken out of
            the list, each as soon as nothing needs it any more.
        hierarchies: The trees.
        chosen: At least one region, at most 65,534 of them.
        outlines: The ways in which regions are smoothed; without any, all stay as their leaves are, as level
            sets always do.
        style: (N,) which of the ways each chosen region takes; the first where it is not given.
        backend: Where it runs; on the CPU as many trees are painted at once as it has threads, a volume each.
    """
    leaves = [measure(labels, _num_leaves(hierarchies, p), backend) for p, labels in enumerate(partitions)]
    volumes = _volumes(hierarchies, leaves, chosen)
    style = np.zeros(len(chosen), np.int8) if style is None else style
    sigmas, width = _blurs(hierarchies, chosen, volumes, outlines, style)
    nests = _nests(hierarchies, chosen, style, width)

    def painted(nest: Nest) -> Any:
        tree = hierarchies[nest.tree]
        labels = partitions[tree.partition]
        innermost = np.zeros(tree.num_leaves, np.uint16)
        for rank, node in enumerate(nest.nodes):
            innermost[tree.start[node] : tree.stop[node]] = rank + 1
        innermost = innermost[tree.start[: tree.num_leaves]]
        blurs = sigmas[nest.place]
        if not blurs.any():
            return gathered(innermost, labels, backend)
        boxes = region_boxes(leaves[tree.partition][1], innermost, nest.parent)
        ways = outlines[nest.style]
        return paint_smoothed(labels, innermost, nest.parent, nest.last, blurs, boxes, ways, backend)

    pieces = _Pieces(partitions[0].shape, backend)
    waiting = Counter(hierarchies[nest.tree].partition for nest in nests)
    turn = Lock()  # painting goes on beside the splitting, which is done in turn

    def paint_and_split(column: int) -> None:
        nest = nests[column]
        partition = hierarchies[nest.tree].partition
        volume = painted(nest)
        with turn:
            waiting[partition] -= 1
            if not waiting[partition]:
                partitions[partition] = _GONE
            pieces.split(column, volume)

    for_each(paint_and_split, range(len(nests)), backend.volume_threads)
    atoms, ranks = pieces.numbered(len(nests))
    voxels, boxes = measure(atoms, len(ranks), backend)
    return Refinement(
        chosen=tuple(chosen),
        atoms=atoms,
        ranks=ranks,
        nests=tuple(nests),
        atom_voxels=voxels,
        atom_boxes=boxes,
    )


def _num_leaves(hierarchies: Sequence[Hierarchy], partition: int) -> int:
    return next((tree.num_leaves for tree in hierarchies if tree.partition == partition), 0)


def _volumes(
    hierarchies: Sequence[Hierarchy],
    leaves: Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]],
    chosen: Chosen,
) -> NDArray[np.int64]:
    """(N,) voxels of the chosen regions, before they are smoothed."""
    volumes = np.empty(len(chosen), np.int64)
    trees, nodes = np.array(chosen, np.int64).T
    for tree in np.unique(trees).tolist():
        hierarchy = hierarchies[tree]
        here = trees == tree
        volumes[here] = hierarchy.sums(leaves[hierarchy.partition][0][:, None])[nodes[here], 0]
    return volumes


def _blurs(
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    volumes: NDArray[np.int64],
    outlines: Sequence[Outlines],
    style: NDArray[np.int8],
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """(N,) the blur of each chosen region in voxels; (N,) which are painted apart (`Outlines.widths`)."""
    sigmas, width = np.zeros(len(chosen)), np.zeros(len(chosen), np.int8)
    soft = np.array([not hierarchies[tree].level_sets for tree, _ in chosen])
    for number, way in enumerate(outlines):
        here = soft & (style == number)
        sigmas[here], width[here] = way.sigmas(volumes[here]), way.widths(volumes[here])
    return sigmas, width


def _nests(
    hierarchies: Sequence[Hierarchy], chosen: Chosen, style: NDArray[np.int8], width: NDArray[np.int8]
) -> list[Nest]:
    """The chosen nodes by tree, and in each by how they are smoothed and how wide their blur is."""
    wanted: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for place, (tree, node) in enumerate(chosen):
        wanted.setdefault((tree, int(style[place]), int(width[place])), []).append((node, place))
    return [
        Nest.of(key[0], hierarchies[key[0]], *map(list, zip(*wanted[key], strict=True)), style=key[1])
        for key in sorted(wanted)
    ]


def gathered(table: NDArray[Any], labels: Any, backend: Backend = HOST) -> Any:
    """`table[labels]` on the backend, without the 64-bit indices that NumPy would make of labels first."""
    if backend.name == "gpu":
        return backend.to_device(table)[labels]
    out = np.empty(labels.shape, table.dtype)

    def gather(start: int, stop: int) -> None:
        _gather(table, labels[start:stop].reshape(-1), out[start:stop].reshape(-1))

    over_slabs(gather, labels.shape, backend.num_threads)
    return out


@numba.njit(cache=True, nogil=True)
def _gather(table: NDArray[Any], labels: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(len(labels)):
        out[i] = table[labels[i]]


class _Pieces:
    """The atoms while they are split by one volume after the other; in which order makes no difference."""

    def __init__(self, shape: tuple[int, ...], backend: Backend) -> None:
        self.backend = backend
        self.atoms = backend.xp.zeros(shape, dtype=np.int32)
        self.sizes = np.array([self.atoms.size], np.int32)
        self.splits: list[tuple[int, Any, Any, Any]] = []
        """(column, numbers given, origin and value of each) of each volume, in the order of splitting."""

    def split(self, column: int, volume: Any) -> None:
        """Split by the value of a volume, uint16 (z, y, x), at each voxel; `column` is its number."""
        if self.backend.name == "gpu":
            self.atoms, *split = _intersect_on_gpu(self.atoms, volume, self.backend)
        else:
            self.sizes, *split = _intersect_on_cpu(self.atoms, volume, self.sizes)
        self.splits.append((column, *split))

    def numbered(self, num_volumes: int) -> tuple[Any, NDArray[np.uint16]]:
        """The atoms numbered in scan order; (A, T) the values that each has in the volumes."""
        backend, xp = self.backend, self.backend.xp
        count = len(self.splits[-1][1]) if backend.name == "gpu" else len(self.sizes)
        atoms, order = _in_scan_order(self.atoms, count, backend)
        atom = backend.to_device(order)  # the number of each after the split at hand
        same = xp.arange(count, dtype=xp.int32)
        origins, values = same.copy(), xp.zeros(count, dtype=xp.uint16)
        ranks = xp.empty((num_volumes, len(order)), dtype=xp.uint16)
        for column, given, origin, value in reversed(self.splits):
            origins[given], values[given] = origin, value
            ranks[column], atom = values[atom], origins[atom]
            origins[given], values[given] = same[given], 0
        return atoms, np.ascontiguousarray(backend.to_host(ranks).T)


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
    return gathered(number, atoms, backend), order


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
        done, used = _split(*voxels, sizes, keys, free, table, done, used)
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
    flat: NDArray[np.int32], values: NDArray[np.uint16], plane: Any, sizes: NDArray[np.int32],
    keys: NDArray[np.int64], free: NDArray[np.int64], table: NDArray[np.int32], done: int, used: int,
) -> Any:  # fmt: skip
    """Split voxels from `done` on, until all are or the room is used up: (voxels done, numbers used).

    `flat` holds the new atoms before `done`, and the old ones from there on; `free` the numbers for new ones.
    """
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


def measure(atoms: Any, count: int, backend: Backend = HOST) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(A,) voxels and (A, 6) boxes z0, y0, x0, z1, y1, x1 of the atoms of a volume on the backend."""
    if backend.name != "gpu":
        voxels, boxes = _measure(atoms, count)
        return voxels, boxes
    xp = backend.xp
    sizes, corners = xp.zeros(count, dtype=xp.int32), xp.zeros((count, 6), dtype=xp.int32)
    corners[:, :3] = np.iinfo(np.int32).max
    depth, height, width = atoms.shape
    stretches = depth * height * -(-width // 32)
    shape = [np.int32(n) for n in atoms.shape]
    backend.launch("measure", stretches, atoms.astype(xp.int32, copy=False), *shape, sizes, corners)
    return backend.to_host(sizes).astype(np.int64), backend.to_host(corners)


@numba.njit(cache=True, nogil=True)
def _measure(atoms: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """As `measure`, on the CPU."""
    num_z, num_y, num_x = atoms.shape
    voxels = np.zeros(count, np.int64)
    boxes = np.empty((count, 6), np.int32)
    boxes[:, :3] = np.iinfo(np.int32).max
    boxes[:, 3:] = 0
    for z in range(num_z):
        for y in range(num_y):
            for x in range(num_x):
                a = atoms[z, y, x]
                voxels[a] += 1
                boxes[a, 0], boxes[a, 3] = min(boxes[a, 0], z), max(boxes[a, 3], z + 1)
                boxes[a, 1], boxes[a, 4] = min(boxes[a, 1], y), max(boxes[a, 4], y + 1)
                boxes[a, 2], boxes[a, 5] = min(boxes[a, 2], x), max(boxes[a, 5], x + 1)
    return voxels, boxes
