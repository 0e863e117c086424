"""Nests: the chosen regions of one tree, depth first, and what they hold by the ranks of their atoms.

Reads:  a `Hierarchy` and some of its nodes; ranks, uint16 (A, T): for each nest 1 + the rank of the innermost
        region around an atom, or 0.
Writes: `Nest`; runs, boxes and sums of its regions.
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
    """The chosen nodes of one tree, depth first: a rank is a place in it."""

    tree: int
    nodes: NDArray[np.int64]
    place: NDArray[np.int64]
    """(n,) place of each in the list of all chosen regions."""
    parent: NDArray[np.int64]
    """(n,) rank of the smallest one around each, -1 where there is none."""
    last: NDArray[np.int64]
    """(n,) rank of the last one inside each."""
    style: int = 0
    """In which of several ways they are smoothed."""

    @classmethod
    def of(
        cls, tree: int, hierarchy: Hierarchy, nodes: list[int], place: list[int], *, style: int = 0
    ) -> Nest:
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
            style=style,
        )

    def restricted(self, wanted: NDArray[np.bool_]) -> tuple[Nest, NDArray[np.uint16]]:
        """The nest of some of the nodes, and 1 + the rank in it of what is around each node of this one."""
        kept = wanted[self.place]
        around = np.zeros(len(kept) + 1, np.uint16)
        number = np.cumsum(kept)
        for rank in range(len(kept)):
            around[rank + 1] = number[rank] if kept[rank] else around[self.parent[rank] + 1]
        parent = around[self.parent[kept] + 1].astype(np.int64) - 1
        last = number[self.last[kept]] - 1
        place = (np.cumsum(wanted) - 1)[self.place[kept]]
        nodes = self.nodes[kept]
        return replace(self, nodes=nodes, place=place, parent=parent, last=last), around


def runs_of(
    ranks: NDArray[np.uint16], nests: Sequence[Nest], num_regions: int, num_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(T, A) atoms in depth-first order of each nest; (N, 3) row, start, stop of each region, by place."""
    orders = np.empty((len(nests), len(ranks)), np.int32)
    runs = np.empty((num_regions, 3), np.int32)

    def fill(row: int) -> None:
        nest = nests[row]
        start = _starts(ranks[:, row], len(nest.nodes))
        runs[nest.place, 0] = row
        runs[nest.place, 1] = start[:-2]
        runs[nest.place, 2] = start[nest.last + 1]
        _put(ranks[:, row], start, orders[row])

    for_each(fill, range(len(nests)), num_threads)
    return orders, runs


def members_of(
    ranks: NDArray[np.uint16], nests: Sequence[Nest], num_regions: int, num_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The atoms of all regions in one list; (N, 2) start and stop of each region's in it, by place.

    As the orders of `runs_of` without the atoms that are in no region of a nest, which most are.
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
        _put(ranks[:, row], starts[row], members[first : ends[row]])

    for_each(fill, range(len(nests)), num_threads)
    return members, spans


def boxes_of(
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    atom_boxes: NDArray[np.int32],
    num_regions: int,
    num_threads: int = 1,
) -> NDArray[np.int64]:
    """(N, 6) boxes of the regions, by place."""
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
    """(N,) sums of the atoms' values over the regions, by place."""
    sums = np.empty(num_regions, np.int64)

    def fill(row: int) -> None:
        innermost = np.ascontiguousarray(ranks[:, row])
        sums[nests[row].place] = _rank_sums(innermost, values, nests[row].parent)

    for_each(fill, range(len(nests)), num_threads)
    return sums


@numba.njit(cache=True, nogil=True)
def _starts(innermost: NDArray[np.uint16], num_regions: int) -> NDArray[np.int64]:
    """(n + 2,) how many atoms have a lower rank, for each rank, for those in no region, and for all atoms."""
    starts = np.zeros(num_regions + 2, np.int64)
    for atom in range(len(innermost)):
        starts[innermost[atom]] += 1
    starts[0], starts[num_regions + 1] = 0, len(innermost)
    for rank in range(1, num_regions + 1):
        starts[rank] += starts[rank - 1]
    return starts


@numba.njit(cache=True, nogil=True)
def _put(innermost: NDArray[np.uint16], starts: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    """Atoms by rank, those in no region last, as far as there is room for them."""
    num_regions = len(starts) - 2
    free = starts[:-1].copy()
    for atom in range(len(innermost)):
        rank = innermost[atom] - 1 if innermost[atom] else num_regions
        if free[rank] < len(out):
            out[free[rank]] = atom
            free[rank] += 1


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
