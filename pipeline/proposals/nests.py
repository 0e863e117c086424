"""Nests: the chosen regions of one tree in depth-first order, and sums, boxes and intervals of these regions.

The regions of a nest are nested or disjoint. The rank of a region is its index in the nest.

Reads:  a `Hierarchy` and some of its nodes; ranks, uint16 (A, T): 1 + rank, in each nest, of the innermost
        region that contains the atom; 0 for none.
Writes: `Nest`; atom intervals, boxes and sums of its regions.
Bounds: fewer than 65,535 regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import for_each
from pipeline.hierarchies import Hierarchy
from pipeline.proposals.outlines import region_boxes


@dataclass(frozen=True, kw_only=True)
class Nest:
    """The n chosen nodes of one tree in depth-first order; a rank is an index into it."""

    tree: int
    """Index of the tree."""
    nodes: NDArray[np.int64]
    """(n,) node of the tree, for each rank."""
    place: NDArray[np.int64]
    """(n,) index of each region in the list of all chosen regions."""
    parent: NDArray[np.int64]
    """(n,) rank of the smallest chosen region that contains each region, -1 for none."""
    last: NDArray[np.int64]
    """(n,) rank of the last region inside each region; its own rank if there is none."""
    style: int = 0
    """Index of the outline settings that its regions are smoothed with."""

    @classmethod
    def of(
        cls, tree: int, hierarchy: Hierarchy, nodes: list[int], place: list[int], *, style: int = 0
    ) -> Nest:
        """Return the nest of some nodes.

        Args:
            tree: Index of the tree.
            hierarchy: The tree.
            nodes: The n chosen nodes, in any order.
            place: Index of each in the list of all chosen regions.
            style: Index of the outline settings.
        """
        start, stop = hierarchy.start[nodes], hierarchy.stop[nodes]
        order = np.lexsort((np.array(nodes), -stop, start))
        start, stop = start[order], stop[order]
        return cls(
            tree=tree,
            nodes=np.array(nodes, np.int64)[order],
            place=np.array(place, np.int64)[order],
            parent=_parents_of(stop, start),
            last=np.searchsorted(start, stop, side="left") - 1,
            style=style,
        )

    def restricted(self, wanted: NDArray[np.bool_]) -> tuple[Nest, NDArray[np.uint16]]:
        """Return the nest of some of the regions, and a table from old to new ranks.

        Args:
            wanted: bool (N,) whether each of all chosen regions is kept.

        Returns:
            The nest; and uint16 (n + 1,) table: entry 1 + old rank is 1 + new rank of the region itself or,
            if it is dropped, of its nearest kept ancestor; 0 for none.
        """
        kept = wanted[self.place]
        new_rank = np.zeros(len(kept) + 1, np.uint16)
        number = np.cumsum(kept)
        for rank in range(len(kept)):
            new_rank[rank + 1] = number[rank] if kept[rank] else new_rank[self.parent[rank] + 1]
        parent = new_rank[self.parent[kept] + 1].astype(np.int64) - 1
        last = number[self.last[kept]] - 1
        place = (np.cumsum(wanted) - 1)[self.place[kept]]
        nodes = self.nodes[kept]
        return replace(self, nodes=nodes, place=place, parent=parent, last=last), new_rank


def runs_of(
    ranks: NDArray[np.uint16], nests: Sequence[Nest], num_regions: int, num_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the atoms in depth-first order of each nest, and the interval of each region.

    Args:
        ranks: uint16 (A, T), see the module.
        nests: (T,) the nests.
        num_regions: Number N of chosen regions in all nests.
        num_threads: Nests that are worked on at once.

    Returns:
        int32 (T, A) permutations of the atoms; and int32 (N, 3) nest, start, stop of each chosen region.
    """
    orders = np.empty((len(nests), len(ranks)), np.int32)
    runs = np.empty((num_regions, 3), np.int32)

    def fill(row: int) -> None:
        nest = nests[row]
        start = _starts(ranks[:, row], len(nest.nodes))
        runs[nest.place, 0] = row
        runs[nest.place, 1] = start[:-2]
        runs[nest.place, 2] = start[nest.last + 1]
        _sort_by_rank(ranks[:, row], start, orders[row])

    for_each(fill, range(len(nests)), num_threads)
    return orders, runs


def members_of(
    ranks: NDArray[np.uint16], nests: Sequence[Nest], num_regions: int, num_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the atoms of all regions in one list, and the interval of each region in it.

    These are the orders of `runs_of` without the atoms that lie in no region of a nest; most do not.

    Args:
        ranks: uint16 (A, T), see the module.
        nests: (T,) the nests.
        num_regions: Number N of chosen regions in all nests.
        num_threads: Nests that are worked on at once.

    Returns:
        int32 (L,) atoms; and int64 (N, 2) start and stop of each chosen region.
    """
    starts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(nests)

    def count(row: int) -> None:
        starts[row] = _starts(ranks[:, row], len(nests[row].nodes))

    for_each(count, range(len(nests)), num_threads)
    ends = np.cumsum([start[-2] for start in starts])
    members, spans = np.empty(ends[-1], np.int32), np.empty((num_regions, 2), np.int64)

    def fill(row: int) -> None:
        nest, first = nests[row], ends[row] - starts[row][-2]
        spans[nest.place, 0] = first + starts[row][:-2]
        spans[nest.place, 1] = first + starts[row][nest.last + 1]
        _sort_by_rank(ranks[:, row], starts[row], members[first : ends[row]])

    for_each(fill, range(len(nests)), num_threads)
    return members, spans


def boxes_of(
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    atom_boxes: NDArray[np.int32],
    num_regions: int,
    num_threads: int = 1,
) -> NDArray[np.int64]:
    """Return the bounding boxes of the chosen regions.

    Args:
        ranks: uint16 (A, T), see the module.
        nests: (T,) the nests.
        atom_boxes: int32 (A, 6) z0, y0, x0, z1, y1, x1 of each atom, half open, in voxels.
        num_regions: Number N of chosen regions in all nests.
        num_threads: Nests that are worked on at once.

    Returns:
        int64 (N, 6) z0, y0, x0, z1, y1, x1, half open, in voxels.
    """
    boxes = np.empty((num_regions, 6), np.int64)

    def fill(row: int) -> None:
        innermost = np.ascontiguousarray(ranks[:, row])
        boxes[nests[row].place] = region_boxes(atom_boxes, innermost, nests[row].parent)

    for_each(fill, range(len(nests)), num_threads)
    return boxes


def sums_of(
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    values: NDArray[np.int64],
    num_regions: int,
    num_threads: int = 1,
) -> NDArray[np.int64]:
    """Return sums of values of atoms over the chosen regions.

    Args:
        ranks: uint16 (A, T), see the module.
        nests: (T,) the nests.
        values: int64 (A,) a value for each atom, such as its voxels.
        num_regions: Number N of chosen regions in all nests.
        num_threads: Nests that are worked on at once.

    Returns:
        int64 (N,).
    """
    sums = np.empty(num_regions, np.int64)

    def fill(row: int) -> None:
        innermost = np.ascontiguousarray(ranks[:, row])
        sums[nests[row].place] = _rank_sums(innermost, values, nests[row].parent)

    for_each(fill, range(len(nests)), num_threads)
    return sums


@numba.njit(cache=True, nogil=True)
def _starts(innermost: NDArray[np.uint16], num_regions: int) -> NDArray[np.int64]:
    """Return the number of atoms with a lower rank, for each rank; atoms in no region come after all ranks.

    Returns:
        (n + 2,) for the n ranks, for the atoms in no region, and the number of all atoms.
    """
    starts = np.zeros(num_regions + 2, np.int64)
    for atom in range(len(innermost)):
        starts[innermost[atom]] += 1
    starts[0], starts[num_regions + 1] = 0, len(innermost)
    for rank in range(1, num_regions + 1):
        starts[rank] += starts[rank - 1]
    return starts


@numba.njit(cache=True, nogil=True)
def _sort_by_rank(innermost: NDArray[np.uint16], starts: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    """Write the atoms sorted by rank, those in no region last, into `out`; what does not fit is left out."""
    num_regions = len(starts) - 2
    free = starts[:-1].copy()
    for atom in range(len(innermost)):
        rank = innermost[atom] - 1 if innermost[atom] else num_regions
        if free[rank] < len(out):
            out[free[rank]] = atom
            free[rank] += 1


@numba.njit(cache=True, nogil=True)
def _parents_of(stop: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank of the smallest interval that contains each, -1 for none; depth-first order."""
    parent = np.full(len(stop), -1, np.int64)
    for rank in range(1, len(stop)):
        ancestor = rank - 1
        while ancestor >= 0 and stop[ancestor] <= start[rank]:
            ancestor = parent[ancestor]
        parent[rank] = ancestor
    return parent


@numba.njit(cache=True, nogil=True)
def _rank_sums(
    innermost: NDArray[np.uint16], values: NDArray[np.int64], parent: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return (n,) sums over the regions of a nest.

    Args:
        innermost: (A,) 1 + rank of the innermost region that contains each atom, 0 for none.
        values: (A,) a value for each atom.
        parent: (n,) as `Nest.parent`.
    """
    sums = np.zeros(len(parent) + 1, np.int64)
    for atom in range(len(innermost)):
        sums[innermost[atom]] += values[atom]
    for rank in range(len(parent) - 1, -1, -1):
        if parent[rank] >= 0:
            sums[parent[rank] + 1] += sums[rank + 1]
    return sums[1:]
