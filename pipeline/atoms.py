"""Atoms: the common refinement of the chosen regions, and the chosen regions as runs of atoms.

Two voxels belong to one atom when the same chosen regions contain them. So every chosen region is a union of
atoms, whichever tree and partition it came from, and there are no more atoms than needed. Each tree's chosen
regions, laid out depth first, order the atoms so that every region is a run.

Where ragged boundaries cross, the refinement has slivers of a few voxels. If there are more atoms than
allowed, the smallest slivers join the neighbour that they have most faces with: regions change by single
voxels at their boundary, and stay unions of atoms exactly.

Reads:  partitions, int32 (z, y, x); hierarchies over them; chosen (tree, node) pairs.
Writes: `AtomLayout`: atoms, uint16 (z, y, x), 0..A-1 in scan order; orders, uint16 (T, A); runs and boxes.
Bounds: A <= 65,534; if absorbing slivers is not enough, the lowest ranked regions are given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.hierarchies import Hierarchy

Chosen = Sequence[tuple[int, int]]
"""(tree, node) of each chosen region, best first."""

_SLIVER_VOXELS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Atoms of fewer voxels are absorbed, one step after the other, until there are few enough."""


@dataclass(frozen=True, kw_only=True)
class AtomLayout:
    """Chosen regions as runs of atoms."""

    atoms: NDArray[np.uint16]
    """(z, y, x) 0..A-1 in scan order."""
    orders: NDArray[np.uint16]
    """(T, A) one row a tree that has chosen regions."""
    trees: tuple[int, ...]
    """Which tree each row is."""
    kept: NDArray[np.int64]
    """(N,) which of the chosen regions are left, best first."""
    runs: NDArray[np.int32]
    """(N, 3) row, start, stop of each region."""
    boxes: NDArray[np.int32]
    """(N, 6) z0, y0, x0, z1, y1, x1, half open."""
    voxels: NDArray[np.int64]
    """(N,)"""
    atom_voxels: NDArray[np.int64]
    """(A,)"""

    def members(self) -> sparse.csr_array:
        """(N, A) which atoms each region has."""
        lengths = self.runs[:, 2] - self.runs[:, 1]
        columns = np.concatenate([self.orders[row, start:stop] for row, start, stop in self.runs])
        begin = np.concatenate([[0], np.cumsum(lengths)])
        shape = (len(self.runs), self.orders.shape[1])
        return sparse.csr_array((np.ones(len(columns), np.int64), columns, begin), shape=shape)


def lay_out(
    partitions: Sequence[NDArray[np.int32]],
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    *,
    max_atoms: int,
) -> AtomLayout:
    """Atoms, orders and runs of the chosen regions; of fewer, from the best on, if they need too many atoms.

    Args:
        partitions: Label volumes that the hierarchies' leaves are regions of.
        hierarchies: The trees.
        chosen: At least one region.
        max_atoms: At most 65,534.
    """
    count = len(chosen)
    while True:
        nests = _nests(hierarchies, chosen[:count])
        atoms, num_atoms = _refine(partitions, hierarchies, nests)
        witness = _first_voxels(atoms, num_atoms)
        for least in _SLIVER_VOXELS:
            if num_atoms <= max_atoms:
                break
            _absorb_slivers(atoms, np.bincount(atoms.ravel(), minlength=num_atoms), least)
            remaining = _renumber(atoms, num_atoms)
            num_atoms, witness = len(remaining), witness[remaining]
        if num_atoms <= max_atoms:
            layout = _arranged(partitions, hierarchies, chosen[:count], nests, atoms, witness)
            if len(layout.kept):  # else all were slivers: fewer need no absorbing
                return layout
        count = max(1, int(count * 0.9 * min(1.0, max_atoms / num_atoms)))


def near_duplicates(layout: AtomLayout, iou: float) -> NDArray[np.bool_]:
    """(N,) whether a better region has more than this IoU with it; exact."""
    members = layout.members()
    overlap = ((members * layout.atom_voxels[None, :].astype(np.int64)) @ members.T).tocoo()
    a, b = overlap.row, overlap.col
    later = a > b
    a, b, both = a[later], b[later], overlap.data[later]
    twin = both > iou * (layout.voxels[a] + layout.voxels[b] - both)
    dropped = np.zeros(len(layout.runs), np.bool_)
    order = np.argsort(a[twin], kind="stable")
    for worse, better in zip(a[twin][order], b[twin][order], strict=True):
        if not dropped[better]:
            dropped[worse] = True
    return dropped


@dataclass(frozen=True, kw_only=True)
class _Nest:
    """The chosen nodes of one tree, depth first."""

    nodes: NDArray[np.int64]
    last: NDArray[np.int64]
    """Rank of the last chosen node inside each."""
    innermost: NDArray[np.int64]
    """(R,) rank + 1 of the smallest chosen node around each leaf; 0 where there is none."""


def _nests(hierarchies: Sequence[Hierarchy], chosen: Chosen) -> dict[int, _Nest]:
    wanted: dict[int, list[int]] = {}
    for tree, node in chosen:
        wanted.setdefault(tree, []).append(node)
    nests = {}
    for tree in sorted(wanted):
        h = hierarchies[tree]
        nodes = np.array(wanted[tree], np.int64)
        nodes = nodes[np.lexsort((nodes, -h.stop[nodes], h.start[nodes]))]
        start, stop = h.start[nodes], h.stop[nodes]
        around = np.zeros(h.num_leaves, np.int64)
        for rank in range(len(nodes)):
            around[start[rank] : stop[rank]] = rank + 1
        nests[tree] = _Nest(
            nodes=nodes,
            last=np.searchsorted(start, stop, side="left") - 1,
            innermost=around[h.start[: h.num_leaves]],
        )
    return nests


def _refine(
    partitions: Sequence[NDArray[np.int32]], hierarchies: Sequence[Hierarchy], nests: dict[int, _Nest]
) -> tuple[NDArray[np.int32], int]:
    """The common refinement of all nests, numbered in scan order."""
    atoms = np.zeros(partitions[0].shape, np.int32)
    count = 1
    for p, labels in enumerate(partitions):
        signature: NDArray[np.int64] | None = None
        for tree, nest in nests.items():
            if hierarchies[tree].partition == p:
                mixed = nest.innermost
                if signature is not None:
                    mixed = signature * (int(nest.innermost.max()) + 1) + nest.innermost
                signature = np.unique(mixed, return_inverse=True)[1].astype(np.int64)
        if signature is not None:
            atoms, count = _intersect(atoms, labels, signature)
    return atoms, count


def _arranged(
    partitions: Sequence[NDArray[np.int32]],
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    nests: dict[int, _Nest],
    atoms: NDArray[np.int32],
    witness: NDArray[np.int64],
) -> AtomLayout:
    """Orders and runs; `witness` is a voxel of each atom whose regions are those of the atom."""
    num_atoms = len(witness)
    voxels, boxes = _measure(atoms, num_atoms)
    orders = np.empty((len(nests), num_atoms), np.uint16)
    run_of = {}
    for row, (tree, nest) in enumerate(nests.items()):
        leaf = partitions[hierarchies[tree].partition].ravel()[witness]
        rank = nest.innermost[leaf] - 1
        rank[rank < 0] = len(nest.nodes)  # atoms in no chosen region come last
        order = np.argsort(rank, kind="stable")
        orders[row] = order
        start = np.searchsorted(rank[order], np.arange(len(nest.nodes)), side="left")
        stop = np.searchsorted(rank[order], nest.last, side="right")
        for node, a, b in zip(nest.nodes.tolist(), start.tolist(), stop.tolist(), strict=True):
            run_of[tree, node] = (row, a, b)
    runs = np.array([run_of[tree, node] for tree, node in chosen], np.int32)
    kept = np.flatnonzero(runs[:, 2] > runs[:, 1])  # a region of slivers only may be gone
    totals, extents = _measure_runs(orders, runs[kept], voxels, boxes)
    return AtomLayout(
        atoms=atoms.astype(np.uint16),
        orders=orders,
        trees=tuple(nests),
        kept=kept,
        runs=runs[kept],
        boxes=extents,
        voxels=totals,
        atom_voxels=voxels,
    )


@numba.njit(cache=True, nogil=True)
def _intersect(
    atoms: NDArray[np.int32], labels: NDArray[np.int32], signature: NDArray[np.int64]
) -> tuple[NDArray[np.int32], int]:
    """Atoms split by the signature of the region of each voxel, numbered in scan order."""
    out = np.empty(atoms.shape, np.int32)
    flat, regions, target = atoms.ravel(), labels.ravel(), out.reshape(-1)
    width = np.int64(signature.max()) + 1
    mask = np.int64((1 << 16) - 1)
    keys = np.full(1 << 16, -1, np.int64)
    number = np.zeros(1 << 16, np.int32)
    used = 0
    last_key, last_number = np.int64(-1), np.int32(0)
    for i in range(len(flat)):
        key = flat[i] * width + signature[regions[i]]
        if key != last_key:  # neighbours mostly share theirs
            place = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask
            while keys[place] != -1 and keys[place] != key:
                place = (place + 1) & mask
            if keys[place] == -1:
                keys[place], number[place] = key, used
                used += 1
            last_key, last_number = key, number[place]
            if used * 2 > mask:
                old_keys, old_number = keys, number
                mask = (mask << 1) | 1
                keys = np.full(mask + 1, -1, np.int64)
                number = np.zeros(mask + 1, np.int32)
                for k in range(len(old_keys)):
                    if old_keys[k] != -1:
                        mixed = np.uint64(old_keys[k]) * np.uint64(0x9E3779B97F4A7C15)
                        place = np.int64(mixed >> np.uint64(24)) & mask
                        while keys[place] != -1:
                            place = (place + 1) & mask
                        keys[place], number[place] = old_keys[k], old_number[k]
        target[i] = last_number
    return out, used


@numba.njit(cache=True, nogil=True)
def _first_voxels(atoms: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """(A,) flat index of the first voxel of each atom."""
    first = np.full(count, -1, np.int64)
    flat = atoms.ravel()
    for i in range(len(flat)):
        if first[flat[i]] < 0:
            first[flat[i]] = i
    return first


@numba.njit(cache=True, nogil=True)
def _absorb_slivers(atoms: NDArray[np.int32], voxels: NDArray[np.int64], least: int) -> None:
    """Voxels of atoms below `least` voxels join the larger neighbour with most faces; in place."""
    num_z, num_y, num_x = atoms.shape
    near = np.empty(6, np.int32)
    flat = atoms.reshape(-1)
    count = 0
    for i in range(len(flat)):
        count += voxels[flat[i]] < least
    pending = np.empty(count, np.int64)
    count = 0
    for i in range(len(flat)):
        if voxels[flat[i]] < least:
            pending[count] = i
            count += 1
    target = np.empty(count, np.int32)
    while count > 0:
        for p in range(count):
            i = pending[p]
            z, y, x = i // (num_y * num_x), i // num_x % num_y, i % num_x
            found = 0
            for d in range(6):
                zz, yy, xx = z + (d == 5) - (d == 0), y + (d == 4) - (d == 1), x + (d == 3) - (d == 2)
                if 0 <= zz < num_z and 0 <= yy < num_y and 0 <= xx < num_x:
                    a = atoms[zz, yy, xx]
                    if voxels[a] >= least:
                        near[found] = a
                        found += 1
            best, votes = np.int32(-1), 0
            for k in range(found):
                same = 0
                for m in range(found):
                    same += near[m] == near[k]
                if same > votes or (same == votes and near[k] < best):
                    best, votes = near[k], same
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


@numba.njit(cache=True, nogil=True)
def _measure(atoms: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Voxels and box of each atom."""
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


@numba.njit(cache=True, nogil=True)
def _measure_runs(
    orders: NDArray[np.uint16], runs: NDArray[np.int32], voxels: NDArray[np.int64], boxes: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    count = len(runs)
    totals = np.zeros(count, np.int64)
    extents = np.empty((count, 6), np.int32)
    extents[:, :3] = np.iinfo(np.int32).max
    extents[:, 3:] = 0
    for n in range(count):
        row, start, stop = runs[n]
        for k in range(start, stop):
            a = orders[row, k]
            totals[n] += voxels[a]
            for d in range(3):
                extents[n, d] = min(extents[n, d], boxes[a, d])
                extents[n, d + 3] = max(extents[n, d + 3], boxes[a, d + 3])
    return totals, extents
