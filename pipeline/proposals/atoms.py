"""Atoms: the common refinement of the chosen regions. Each chosen region is stored as an interval of atoms.

    chosen nodes --refine (refinement.py)--> atoms --near-duplicates out, slivers absorbed (slivers.py)-->
    orders and intervals (nests.py)

Two voxels belong to one atom if the same chosen regions contain them. So every chosen region is a union of
atoms, whichever tree and partition it came from, and there are no more atoms than needed. For each tree the
atoms are sorted by its chosen regions, depth first. In this order every region is an interval (a run).

Reads:  a `Refinement`.
Writes: `AtomLayout`: atoms, uint16 (z, y, x), 0..A-1 in scan order; orders, uint16 (T, A); runs and boxes.
Bounds: A <= 65,534. If absorbing slivers is not enough, the lowest ranked regions are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend, DeviceArray, for_each
from pipeline.hierarchies import count_inside, relabel_in_place
from pipeline.proposals.nests import Nest, boxes_of, members_of, runs_of, sums_of
from pipeline.proposals.refinement import Refinement, measure
from pipeline.proposals.slivers import absorb_in_place
from pipeline.proposals.splitting import different_rows, move_up_in_place


@dataclass(frozen=True, kw_only=True)
class AtomLayout:
    """Chosen regions as intervals of atoms: N regions, A atoms, T orders."""

    atoms: NDArray[np.uint16]
    """(z, y, x) 0..A-1 in scan order."""
    orders: NDArray[np.uint16]
    """(T, A) permutations of the atoms; one row or several for each tree with chosen regions."""
    trees: tuple[int, ...]
    """(T,) index of the tree of each row."""
    styles: tuple[int, ...]
    """(T,) index of the outline settings that the regions of each row are smoothed with."""
    kept: NDArray[np.int64]
    """(N,) indices of the kept regions among the chosen ones, best first."""
    runs: NDArray[np.int32]
    """(N, 3) row in `orders`, start, stop of each region."""
    boxes: NDArray[np.int32]
    """(N, 6) z0, y0, x0, z1, y1, x1, half open."""
    voxels: NDArray[np.int64]
    """(N,) voxels of each region."""
    atom_voxels: NDArray[np.int64]
    """(A,) voxels of each atom."""


def worth_keeping(
    refinement: Refinement,
    *,
    min_voxels: int,
    duplicate_iou: float,
    body: DeviceArray | None = None,
    min_body_fraction: float = 0.0,
    backend: Backend = HOST,
) -> NDArray[np.int64]:
    """Return the indices of the regions within the size limits that are no near-duplicates of better ones.

    Volumes and IoUs are exact.

    Args:
        refinement: The regions, best first, and their atoms.
        min_voxels: Smaller regions are dropped: smoothing may have removed some of their voxels.
        duplicate_iou: A region is dropped if a better kept one has a larger IoU with it.
        body: bool (z, y, x) on the backend, True in the body; None if the body is everywhere.
        min_body_fraction: Regions with a smaller fraction of their voxels in the body are dropped.
        backend: Backend that holds the volumes; its threads compare regions.

    Returns:
        int64 (N,) indices into `refinement.chosen`, ascending.
    """
    count, threads = len(refinement.chosen), backend.num_threads
    voxels = sums_of(refinement.ranks, refinement.nests, refinement.atom_voxels, count, threads)
    boxes = boxes_of(refinement.ranks, refinement.nests, refinement.atom_boxes, count, threads)
    within = voxels >= max(min_voxels, 1)
    if body is not None:
        in_body = count_inside(refinement.atoms, body, len(refinement.ranks), backend)
        within &= (
            sums_of(refinement.ranks, refinement.nests, in_body, count, threads) >= min_body_fraction * voxels
        )
    members, spans = members_of(refinement.ranks, refinement.nests, count, threads)
    regions = members, spans, refinement.atom_voxels, voxels, boxes
    return np.flatnonzero(_without_near_duplicates(regions, duplicate_iou, within, backend.num_threads))


def arrange_consuming(
    refinement: Refinement, indices: NDArray[np.int64], *, max_atoms: int, backend: Backend = HOST
) -> AtomLayout:
    """Return atoms, orders and intervals of some of the regions.

    If the regions need too many atoms and absorbing slivers is not enough, the last ones are dropped.

    Args:
        refinement: The regions. Its atoms and ranks are overwritten; it is of no use afterwards.
        indices: int64 (N,) indices of the wanted regions, ascending, so best first.
        max_atoms: The most atoms, up to 65,534.
        backend: Backend that holds the atoms.
    """
    atoms, ranks, nests = refinement.atoms, refinement.ranks, list(refinement.nests)
    wanted = np.zeros(len(refinement.chosen), np.bool_)
    wanted[indices] = True
    while True:
        ranks, nests = _restrict_in_place(atoms, ranks, nests, wanted, backend)
        if len(ranks) > max_atoms:
            ranks = ranks[absorb_in_place(atoms, ranks, nests, len(indices), max_atoms, backend)]
        if len(ranks) <= max_atoms:
            orders, runs = runs_of(ranks, nests, len(indices), backend.num_threads)
            kept = np.flatnonzero(runs[:, 2] > runs[:, 1])  # a region of slivers only may be empty now
            if len(kept):  # else all regions were slivers: fewer regions need no absorbing
                break
        wanted = np.arange(len(indices)) < int(len(indices) * 0.9 * min(1.0, max_atoms / len(ranks)))
        wanted[0] = True
        indices = indices[wanted]
    voxels, boxes = measure(atoms, len(ranks), backend)
    return AtomLayout(
        atoms=backend.to_host(atoms.astype(np.uint16)),
        orders=orders.astype(np.uint16),
        trees=tuple(nest.tree for nest in nests),
        styles=tuple(nest.style for nest in nests),
        kept=indices[kept],
        runs=runs[kept],
        boxes=boxes_of(ranks, nests, boxes, len(indices), backend.num_threads)[kept].astype(np.int32),
        voxels=sums_of(ranks, nests, voxels, len(indices), backend.num_threads)[kept],
        atom_voxels=voxels,
    )


def _restrict_in_place(
    atoms: DeviceArray,
    ranks: NDArray[np.uint16],
    nests: Sequence[Nest],
    wanted: NDArray[np.bool_],
    backend: Backend,
) -> tuple[NDArray[np.uint16], list[Nest]]:
    """Merge the atoms that no wanted region separates.

    Args:
        atoms: int32 (z, y, x) on the backend. Afterwards it holds the merged atoms.
        ranks: (A, T) as in `Refinement`. Its memory holds the ranks that are returned.
        nests: (T,) as in `Refinement`.
        wanted: bool (N,) which regions are kept.
        backend: Backend that holds the atoms.

    Returns:
        Ranks and nests of the wanted regions; nests without such a region are left out.
    """
    restricted = [(column, *nest.restricted(wanted)) for column, nest in enumerate(nests)]
    restricted = [(column, nest, table) for column, nest, table in restricted if len(nest.nodes)]
    new_ranks = np.zeros((len(restricted), max(len(table) for _, _, table in restricted)), np.uint16)
    for row, (_, _, table) in enumerate(restricted):
        new_ranks[row, : len(table)] = table
    ranks = _look_up_in_place(ranks, np.array([column for column, _, _ in restricted]), new_ranks)
    # Atoms are numbered in scan order, so merged atoms numbered by their first member are too.
    number, first = different_rows(ranks)
    move_up_in_place(ranks, first)
    relabel_in_place(atoms, number, backend)
    return ranks[: len(first)], [nest for _, nest, _ in restricted]


@numba.njit(cache=True, nogil=True)
def _look_up_in_place(
    ranks: NDArray[np.uint16], columns: NDArray[np.int64], tables: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Return (A, T') some columns of the ranks, each looked up in its table, in the memory of `ranks`."""
    out = ranks.reshape(-1)[: len(ranks) * len(columns)].reshape(len(ranks), len(columns))
    row = np.empty(len(columns), np.uint16)
    for i in range(len(ranks)):
        for k in range(len(columns)):
            row[k] = tables[k, ranks[i, columns[k]]]
        out[i] = row
    return out


_Regions: TypeAlias = tuple[
    NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
]
"""Atoms of all regions (M,), (N, 2) start and stop of each region in them, voxels of the atoms (A,), voxels
(N,) and boxes (N, 6) of the regions."""


def _without_near_duplicates(
    regions: _Regions, iou: float, within: NDArray[np.bool_], num_threads: int
) -> NDArray[np.bool_]:
    """Return (N,) whether a region is within the limits and no better kept one has a larger IoU with it."""
    _, spans, atom_voxels, _, _ = regions
    duplicates: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(spans)

    def find(first: int) -> None:
        inside = np.zeros(len(atom_voxels), np.bool_)
        for b in range(first, len(spans), num_threads):
            if within[b]:
                duplicates[b] = _near_duplicates(b, regions, iou, within, inside)

    for_each(find, range(num_threads), num_threads)
    kept = within.copy()
    for b, found in enumerate(duplicates):
        kept[b] &= not kept[found].any()
    return kept


@numba.njit(cache=True, nogil=True)
def _near_duplicates(
    b: int, regions: _Regions, iou: float, within: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the regions before b, within the limits, whose IoU with region b exceeds `iou`.

    `inside` is working memory: (A,), False before and after.
    """
    members, spans, atom_voxels, voxels, boxes = regions
    own = members[spans[b, 0] : spans[b, 1]]
    for atom in own:
        inside[atom] = True
    found = np.empty(b, np.int64)
    used = 0
    for a in range(b):
        if not within[a] or min(voxels[a], voxels[b]) <= iou * max(voxels[a], voxels[b]):
            continue
        common = 1  # voxels of the intersection of the two boxes
        for d in range(3):
            common *= max(0, min(boxes[a, d + 3], boxes[b, d + 3]) - max(boxes[a, d], boxes[b, d]))
        if common <= iou * max(voxels[a], voxels[b]):
            continue
        both = voxels[a]  # upper bound of the intersection; atoms outside b are subtracted
        for atom in members[spans[a, 0] : spans[a, 1]]:
            if not inside[atom]:
                both -= atom_voxels[atom]
                if not both > iou * (voxels[a] + voxels[b] - both):
                    break
        if both > iou * (voxels[a] + voxels[b] - both):
            found[used] = a
            used += 1
    for atom in own:
        inside[atom] = False
    return found[:used]
