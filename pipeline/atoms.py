"""Atoms: the common refinement of the chosen regions, and the chosen regions as runs of atoms.

    chosen nodes --smooth outlines--> regions --refine--> atoms --near-duplicates out, slivers absorbed-->
    orders and runs

Two voxels belong to one atom when the same chosen regions contain them. So every chosen region is a union of
atoms, whichever tree and partition it came from, and there are no more atoms than needed. Each tree's chosen
regions, laid out depth first, order the atoms so that every region is a run.

Where boundaries cross, the refinement has slivers of a few voxels. If there are more atoms than allowed,
those that do least harm join a neighbour: harm is the part of their volume that the regions gain or lose by
it, so a sliver leaves a large region rather than a small one. Regions stay unions of atoms exactly.

Reads:  partitions, int32 (z, y, x); hierarchies over them; chosen (tree, node) pairs.
Writes: `Refinement`, then `AtomLayout`: atoms, uint16 (z, y, x), 0..A-1 in scan order; orders, uint16 (T, A);
        runs and boxes.
Bounds: A <= 65,534; if absorbing slivers is not enough, the lowest ranked regions are given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.hierarchies import Hierarchy
from pipeline.smoothing import Outlines, paint_smoothed, region_boxes

Chosen = Sequence[tuple[int, int]]
"""(tree, node) of each chosen region, best first."""

_ROUND = 3
"""At most one of so many atoms is absorbed before the harm that the next would do is measured again."""

_MAX_SLIVER_VOXELS = 512
"""Larger atoms are never absorbed; rather the lowest ranked regions are given up."""


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


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The chosen regions and the partition of the voxels that tells them apart."""

    chosen: tuple[tuple[int, int], ...]
    """(tree, node) of each region, best first."""
    atoms: NDArray[np.int32]
    """(z, y, x) 0..A-1 in scan order."""
    ranks: NDArray[np.uint16]
    """(A, T) for each tree that has chosen regions: 1 + rank of the innermost one around an atom, or 0."""
    nests: tuple[_Nest, ...]
    """(T,) the chosen regions of these trees, by rank."""
    atom_voxels: NDArray[np.int64]
    """(A,)"""
    atom_boxes: NDArray[np.int32]
    """(A, 6) z0, y0, x0, z1, y1, x1, half open."""


@dataclass(frozen=True, kw_only=True)
class _Nest:
    """The chosen nodes of one tree, depth first: a rank is a place in it."""

    tree: int
    nodes: NDArray[np.int64]
    place: NDArray[np.int64]
    """(n,) place of each in the list of all chosen regions."""
    parent: NDArray[np.int64]
    """(n,) rank of the smallest one around each, -1 where there is none."""
    last: NDArray[np.int64]
    """(n,) rank of the last one inside each."""

    @classmethod
    def of(cls, tree: int, hierarchy: Hierarchy, nodes: list[int], place: list[int]) -> _Nest:
        """The nest of these nodes."""
        start, stop = hierarchy.start[nodes], hierarchy.stop[nodes]
        order = np.lexsort((np.array(nodes), -stop, start))
        start, stop = start[order], stop[order]
        return cls(
            tree=tree,
            nodes=np.array(nodes, np.int64)[order],
            place=np.array(place, np.int64)[order],
            parent=_parents_of(stop, start),
            last=np.searchsorted(start, stop, side="left") - 1,
        )

    def restricted(self, wanted: NDArray[np.bool_]) -> tuple[_Nest, NDArray[np.uint16]]:
        """The nest of some of the nodes, and 1 + the rank in it of what is around each node of this one."""
        kept = wanted[self.place]
        around = np.zeros(len(kept) + 1, np.uint16)
        number = np.cumsum(kept)
        for rank in range(len(kept)):
            around[rank + 1] = number[rank] if kept[rank] else around[self.parent[rank] + 1]
        parent = around[self.parent[kept] + 1].astype(np.int64) - 1
        last = number[self.last[kept]] - 1
        place = (np.cumsum(wanted) - 1)[self.place[kept]]
        return _Nest(tree=self.tree, nodes=self.nodes[kept], place=place, parent=parent, last=last), around


def refine(
    partitions: Sequence[NDArray[np.int32]],
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    *,
    outlines: Outlines | None = None,
    num_threads: int = 1,
) -> Refinement:
    """The atoms that tell the chosen regions apart.

    Args:
        partitions: Label volumes that the hierarchies' leaves are regions of.
        hierarchies: The trees.
        chosen: At least one region, at most 65,534 of them.
        outlines: How regions are smoothed; None keeps all as their leaves are, as level sets always are.
        num_threads: Trees painted at once.
    """
    leaves = [_measure(labels, _num_leaves(hierarchies, p)) for p, labels in enumerate(partitions)]
    volumes = _volumes(hierarchies, leaves, chosen)
    soft = np.array([outlines is not None and not hierarchies[tree].level_sets for tree, _ in chosen])
    nests = _nests(hierarchies, chosen, soft & outlines.wide(volumes) if outlines else soft)

    def painted(nest: _Nest) -> NDArray[np.uint16]:
        tree = hierarchies[nest.tree]
        labels = partitions[tree.partition]
        innermost = np.zeros(tree.num_leaves, np.uint16)
        for rank, node in enumerate(nest.nodes):
            innermost[tree.start[node] : tree.stop[node]] = rank + 1
        innermost = innermost[tree.start[: tree.num_leaves]]
        if outlines is None or tree.level_sets:
            return innermost[labels]
        boxes = region_boxes(leaves[tree.partition][1], innermost, nest.parent)
        sigmas = outlines.sigmas(volumes[nest.place])
        return np.asarray(paint_smoothed(labels, innermost, nest.parent, nest.last, sigmas, boxes))

    atoms = np.zeros(partitions[0].shape, np.int32)
    ranks = np.zeros((1, 0), np.uint16)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = [pool.submit(painted, nest) for nest in nests[:num_threads]]
        for following in range(num_threads, num_threads + len(nests)):
            volume = ahead.pop(0).result()
            if following < len(nests):  # a volume each: no more of them ahead than threads
                ahead.append(pool.submit(painted, nests[following]))
            atoms, origin, rank = _intersect(atoms, volume)
            ranks = np.concatenate([ranks[origin], rank[:, None]], axis=1)
    voxels, boxes = _measure(atoms, len(ranks))
    return Refinement(
        chosen=tuple(chosen),
        atoms=atoms,
        ranks=ranks,
        nests=tuple(nests),
        atom_voxels=voxels,
        atom_boxes=boxes,
    )


def worth_keeping(
    refinement: Refinement,
    *,
    min_voxels: int,
    duplicate_iou: float,
    body: NDArray[np.bool_] | None = None,
    min_body_fraction: float = 0.0,
) -> NDArray[np.int64]:
    """Places of the regions within the limits that are no near-duplicates of better ones; exact.

    Args:
        refinement: The regions and their atoms.
        min_voxels: Smaller regions go: smoothing may have taken some of their voxels.
        duplicate_iou: A region goes when a better one has more than this IoU with it.
        body: (z, y, x) where the body is; None for everywhere.
        min_body_fraction: Regions with a smaller part in the body go.
    """
    orders, runs = _runs(refinement.ranks, refinement.nests, len(refinement.chosen))
    voxels = _sums(refinement.ranks, refinement.nests, refinement.atom_voxels, len(runs))
    boxes = _boxes(refinement.ranks, refinement.nests, refinement.atom_boxes, len(runs))
    within = voxels >= max(min_voxels, 1)
    if body is not None:
        in_body = np.bincount(refinement.atoms[body], minlength=len(refinement.ranks))
        within &= _sums(refinement.ranks, refinement.nests, in_body, len(runs)) >= min_body_fraction * voxels
    kept = _no_twins(orders, runs, refinement.atom_voxels, voxels, boxes, duplicate_iou, within)
    return np.flatnonzero(kept)


def arrange(
    refinement: Refinement, places: NDArray[np.int64], *, max_atoms: int, num_threads: int = 1
) -> AtomLayout:
    """Atoms, orders and runs of some of the regions; of fewer, from the best on, if they need too many atoms.

    Args:
        refinement: The regions.
        places: (N,) which of them, rising: best first.
        max_atoms: At most 65,534.
        num_threads: Threads that look at the neighbours of slivers; the result does not depend on it.
    """
    while True:
        atoms, ranks, nests = _restrict(refinement, places)
        while len(ranks) > max_atoms:
            remaining = _absorb(atoms, ranks, nests, len(places), len(ranks) - max_atoms, num_threads)
            if len(remaining) == len(ranks):
                break  # none of the atoms is a sliver any more
            ranks = ranks[remaining]
        if len(ranks) <= max_atoms:
            orders, runs = _runs(ranks, nests, len(places))
            kept = np.flatnonzero(runs[:, 2] > runs[:, 1])  # a region of slivers only may be gone
            if len(kept):  # else all were slivers: fewer need no absorbing
                break
        places = places[: max(1, int(len(places) * 0.9 * min(1.0, max_atoms / len(ranks))))]
    voxels, boxes = _measure(atoms, len(ranks))
    return AtomLayout(
        atoms=atoms.astype(np.uint16),
        orders=orders.astype(np.uint16),
        trees=tuple(nest.tree for nest in nests),
        kept=places[kept],
        runs=runs[kept],
        boxes=_boxes(ranks, nests, boxes, len(places))[kept].astype(np.int32),
        voxels=_sums(ranks, nests, voxels, len(places))[kept],
        atom_voxels=voxels,
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


def _nests(hierarchies: Sequence[Hierarchy], chosen: Chosen, wide: NDArray[np.bool_]) -> list[_Nest]:
    """The chosen nodes by tree, those with a wide blur apart."""
    wanted: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for place, (tree, node) in enumerate(chosen):
        wanted.setdefault((tree, bool(wide[place])), []).append((node, place))
    return [
        _Nest.of(key[0], hierarchies[key[0]], [n for n, _ in wanted[key]], [p for _, p in wanted[key]])
        for key in sorted(wanted)
    ]


def _restrict(
    refinement: Refinement, places: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.uint16], list[_Nest]]:
    """The refinement of some of the regions: atoms that only others told apart are one."""
    wanted = np.zeros(len(refinement.chosen), np.bool_)
    wanted[places] = True
    ranks, nests = [], []
    for column, nest in enumerate(refinement.nests):
        some, around = nest.restricted(wanted)
        if len(some.nodes):
            nests.append(some)
            ranks.append(around[refinement.ranks[:, column]])
    matrix = np.ascontiguousarray(np.stack(ranks, axis=1))
    rows = matrix.view(np.dtype((np.void, matrix.itemsize * matrix.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)  # atoms are numbered in scan order, so their first ones are too
    number = np.empty(len(first), np.int32)
    number[order] = np.arange(len(first), dtype=np.int32)
    return number[inverse][refinement.atoms], matrix[first[order]], nests


def _runs(
    ranks: NDArray[np.uint16], nests: Sequence[_Nest], num_regions: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(T, A) atoms in depth-first order of each nest; (N, 3) row, start, stop of each region, by place."""
    orders = np.empty((len(nests), len(ranks)), np.int32)
    runs = np.empty((num_regions, 3), np.int32)
    for row, nest in enumerate(nests):
        rank = ranks[:, row] - np.uint16(1)  # 65,535 for atoms in no chosen region: they come last
        order = np.argsort(rank, kind="stable")
        orders[row] = order
        runs[nest.place, 0] = row
        runs[nest.place, 1] = np.searchsorted(
            rank[order], np.arange(len(nest.nodes), dtype=np.uint16), side="left"
        )
        runs[nest.place, 2] = np.searchsorted(rank[order], nest.last.astype(np.uint16), side="right")
    return orders, runs


@numba.njit(cache=True, nogil=True)
def _parents_of(stop: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of the smallest interval around each, for intervals in depth-first order; -1 for none."""
    parent = np.full(len(stop), -1, np.int64)
    for rank in range(1, len(stop)):
        around = rank - 1
        while around >= 0 and stop[around] <= start[rank]:
            around = parent[around]
        parent[rank] = around
    return parent


@numba.njit(cache=True, nogil=True)
def _no_twins(
    orders: NDArray[np.int32], runs: NDArray[np.int32], atom_voxels: NDArray[np.int64],
    voxels: NDArray[np.int64], boxes: NDArray[np.int64], iou: float, within: NDArray[np.bool_],
) -> NDArray[np.bool_]:  # fmt: skip
    """(N,) whether a region is within the limits, and no kept one before it has a larger IoU with it."""
    kept = np.zeros(len(runs), np.bool_)
    inside = np.zeros(orders.shape[1], np.bool_)
    for b in range(len(runs)):
        if not within[b]:
            continue
        row, start, stop = runs[b]
        for k in range(start, stop):
            inside[orders[row, k]] = True
        kept[b] = True
        for a in range(b):
            if not kept[a] or min(voxels[a], voxels[b]) <= iou * max(voxels[a], voxels[b]):
                continue
            room = 1  # voxels that both boxes hold
            for d in range(3):
                room *= max(0, min(boxes[a, d + 3], boxes[b, d + 3]) - max(boxes[a, d], boxes[b, d]))
            if room <= iou * max(voxels[a], voxels[b]):
                continue
            both = 0
            for k in range(runs[a, 1], runs[a, 2]):
                atom = orders[runs[a, 0], k]
                if inside[atom]:
                    both += atom_voxels[atom]
            if both > iou * (voxels[a] + voxels[b] - both):
                kept[b] = False
                break
        for k in range(start, stop):
            inside[orders[row, k]] = False
    return kept


@numba.njit(cache=True, nogil=True)
def _intersect(
    atoms: NDArray[np.int32], volume: NDArray[np.uint16]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
    """Atoms split by the value at each voxel, numbered in scan order; the old atom and the value of each."""
    out = np.empty(atoms.shape, np.int32)
    flat, values, target = atoms.ravel(), volume.ravel(), out.reshape(-1)
    origin, value = np.empty(1 << 15, np.int32), np.empty(1 << 15, np.uint16)
    number = np.full(1 << 16, -1, np.int32)
    done, used = 0, 0
    while True:
        done, used = _number(flat, values, atoms.shape[2], target, number, origin, value, done, used)
        if done == len(flat):
            return out, origin[:used], value[:used]
        origin = np.concatenate((origin, np.empty(len(origin), np.int32)))
        value = np.concatenate((value, np.empty(len(value), np.uint16)))
        number = np.full(2 * len(number), -1, np.int32)
        for atom in range(used):
            number[_place(number, origin, value, origin[atom], value[atom])] = atom


@numba.njit(cache=True, nogil=True)
def _number(
    flat: NDArray[np.int32], values: NDArray[np.uint16], row: int, target: NDArray[np.int32],
    number: NDArray[np.int32], origin: NDArray[np.int32], value: NDArray[np.uint16], done: int, used: int,
) -> Any:  # fmt: skip
    """Number voxels from `done` on, until all are or the table is half full: (voxels done, numbers used)."""
    here = np.int32(0)
    for i in range(done, len(flat)):
        a, v = flat[i], values[i]
        if used == 0 or origin[here] != a or value[here] != v:  # neighbours mostly share theirs
            if i >= row and origin[target[i - row]] == a and value[target[i - row]] == v:
                here = target[i - row]
            else:
                place = _place(number, origin, value, a, v)
                if number[place] < 0:
                    if used == len(origin):
                        return i, used
                    number[place], origin[used], value[used] = used, a, v
                    used += 1
                here = number[place]
        target[i] = here
    return len(flat), used


@numba.njit(cache=True, nogil=True)
def _place(
    number: NDArray[np.int32], origin: NDArray[np.int32], value: NDArray[np.uint16], a: int, v: int
) -> Any:
    """Where a hash table of twice as many places as numbers has, or would have, the number of (a, v)."""
    mask = len(number) - 1
    mixed = np.uint64((np.int64(a) << 16) | np.int64(v)) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(mixed >> np.uint64(24)) & mask
    while number[place] >= 0 and (origin[number[place]] != a or value[number[place]] != v):
        place = (place + 1) & mask
    return place


def _absorb(
    atoms: NDArray[np.int32],
    ranks: NDArray[np.uint16],
    nests: Sequence[_Nest],
    num_regions: int,
    excess: int,
    num_threads: int,
) -> NDArray[np.int64]:
    """Let some slivers join neighbours, in place; which old number each atom has that is left.

    Where there are more than twice as many atoms too many as there are of one voxel, all of these go.
    """
    voxels = np.bincount(atoms.ravel(), minlength=len(ranks))
    volumes = np.maximum(_sums(ranks, nests, voxels, num_regions), 1)
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
    _join_neighbours(atoms, leaving, ranks, weights, around)
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
    atoms: NDArray[np.int32], leaving: NDArray[np.bool_], ranks: NDArray[np.uint16],
    weights: NDArray[np.float64], around: NDArray[np.int64],
) -> None:  # fmt: skip
    """Voxels of leaving atoms join the neighbour that changes least, from the outside in; in place."""
    num_z, num_y, num_x = atoms.shape
    flat = atoms.reshape(-1)
    pending = np.flatnonzero(leaving[flat])
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


def _boxes(
    ranks: NDArray[np.uint16], nests: Sequence[_Nest], atom_boxes: NDArray[np.int32], num_regions: int
) -> NDArray[np.int64]:
    """(N, 6) boxes of the regions, by place."""
    boxes = np.empty((num_regions, 6), np.int64)
    for row, nest in enumerate(nests):
        boxes[nest.place] = region_boxes(atom_boxes, np.ascontiguousarray(ranks[:, row]), nest.parent)
    return boxes


def _sums(
    ranks: NDArray[np.uint16], nests: Sequence[_Nest], values: NDArray[np.int64], num_regions: int
) -> NDArray[np.int64]:
    """(N,) sums of the atoms' values over the regions, by place."""
    sums = np.empty(num_regions, np.int64)
    for row, nest in enumerate(nests):
        sums[nest.place] = _rank_sums(np.ascontiguousarray(ranks[:, row]), values, nest.parent)
    return sums


@numba.njit(cache=True, nogil=True)
def _rank_sums(
    innermost: NDArray[np.uint16], values: NDArray[np.int64], parent: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n,) sums over the regions of a nest; `innermost` is 1 + the rank around each atom, or 0."""
    sums = np.zeros(len(parent) + 1, np.int64)
    for atom in range(len(innermost)):
        sums[innermost[atom]] += values[atom]
    for rank in range(len(parent) - 1, -1, -1):
        if parent[rank] >= 0:
            sums[parent[rank] + 1] += sums[rank + 1]
    return sums[1:]
