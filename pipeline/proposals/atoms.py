"""Atoms: the common refinement of the chosen regions, and the chosen regions as runs of atoms.

    chosen nodes --refine (refinement.py)--> atoms --near-duplicates out, slivers absorbed (slivers.py)-->
    orders and runs (nests.py)

Two voxels belong to one atom when the same chosen regions contain them. So every chosen region is a union of
atoms, whichever tree and partition it came from, and there are no more atoms than needed. Each tree's chosen
regions, laid out depth first, order the atoms so that every region is a run.

Reads:  a `Refinement`.
Writes: `AtomLayout`: atoms, uint16 (z, y, x), 0..A-1 in scan order; orders, uint16 (T, A);
        runs and boxes.
Bounds: A <= 65,534; if absorbing slivers is not enough, the lowest ranked regions are given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend, for_each
from pipeline.hierarchies import count_inside, relabelled
from pipeline.proposals.nests import Nest, boxes_of, members_of, runs_of, sums_of
from pipeline.proposals.refinement import Refinement, measure
from pipeline.proposals.slivers import absorb
from pipeline.proposals.splitting import different_rows, move_up


@dataclass(frozen=True, kw_only=True)
class AtomLayout:
    """Chosen regions as runs of atoms."""

    atoms: NDArray[np.uint16]
    """(z, y, x) 0..A-1 in scan order."""
    orders: NDArray[np.uint16]
    """(T, A) one row, or some, a tree that has chosen regions."""
    trees: tuple[int, ...]
    """Which tree each row is."""
    styles: tuple[int, ...]
    """In which way the regions of each row are smoothed."""
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


def worth_keeping(
    refinement: Refinement,
    *,
    min_voxels: int,
    duplicate_iou: float,
    body: Any = None,
    min_body_fraction: float = 0.0,
    backend: Backend = HOST,
) -> NDArray[np.int64]:
    """Places of the regions within the limits that are no near-duplicates of better ones; exact.

    Args:
        refinement: The regions and their atoms.
        min_voxels: Smaller regions go: smoothing may have taken some of their voxels.
        duplicate_iou: A region goes when a better one has more than this IoU with it.
        body: bool (z, y, x) on the backend, where the body is; None for everywhere.
        min_body_fraction: Regions with a smaller part in the body go.
        backend: Where the volumes are; its threads compare regions.
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
    return np.flatnonzero(_no_twins(regions, duplicate_iou, within, backend.num_threads))


def arrange(
    refinement: Refinement, places: NDArray[np.int64], *, max_atoms: int, backend: Backend = HOST
) -> AtomLayout:
    """Atoms, orders and runs of some of the regions; of fewer, from the best on, if they need too many atoms.

    Args:
        refinement: The regions; its ranks are overwritten, and on the CPU its atoms.
        places: (N,) which of them, rising: best first.
        max_atoms: At most 65,534.
        backend: Where the atoms are.
    """
    atoms, ranks, nests = refinement.atoms, refinement.ranks, list(refinement.nests)
    wanted = np.zeros(len(refinement.chosen), np.bool_)
    wanted[places] = True
    while True:
        atoms, ranks, nests = _restrict(atoms, ranks, nests, wanted, backend)
        if len(ranks) > max_atoms:
            atoms, old = absorb(atoms, ranks, nests, len(places), max_atoms, backend)
            ranks = ranks[old]
        if len(ranks) <= max_atoms:
            orders, runs = runs_of(ranks, nests, len(places), backend.num_threads)
            kept = np.flatnonzero(runs[:, 2] > runs[:, 1])  # a region of slivers only may be gone
            if len(kept):  # else all were slivers: fewer need no absorbing
                break
        wanted = np.arange(len(places)) < int(len(places) * 0.9 * min(1.0, max_atoms / len(ranks)))
        wanted[0] = True
        places = places[wanted]
    voxels, boxes = measure(atoms, len(ranks), backend)
    return AtomLayout(
        atoms=backend.to_host(atoms.astype(np.uint16)),
        orders=orders.astype(np.uint16),
        trees=tuple(nest.tree for nest in nests),
        styles=tuple(nest.style for nest in nests),
        kept=places[kept],
        runs=runs[kept],
        boxes=boxes_of(ranks, nests, boxes, len(places), backend.num_threads)[kept].astype(np.int32),
        voxels=sums_of(ranks, nests, voxels, len(places), backend.num_threads)[kept],
        atom_voxels=voxels,
    )


def _restrict(
    atoms: Any, ranks: NDArray[np.uint16], nests: Sequence[Nest], wanted: NDArray[np.bool_], backend: Backend
) -> tuple[Any, NDArray[np.uint16], list[Nest]]:
    """The refinement of some regions: atoms that only others told apart are one.

    Ranks are overwritten, and on the CPU the atoms.
    """
    restricted = [(column, *nest.restricted(wanted)) for column, nest in enumerate(nests)]
    restricted = [(column, nest, table) for column, nest, table in restricted if len(nest.nodes)]
    around = np.zeros((len(restricted), max(len(table) for _, _, table in restricted)), np.uint16)
    for row, (_, _, table) in enumerate(restricted):
        around[row, : len(table)] = table
    ranks = _looked_up(ranks, np.array([column for column, _, _ in restricted]), around)
    # Atoms are numbered in scan order, so those that several of them become are too.
    number, first = different_rows(ranks)
    move_up(ranks, first)
    return relabelled(atoms, number, backend), ranks[: len(first)], [nest for _, nest, _ in restricted]


@numba.njit(cache=True, nogil=True)
def _looked_up(
    ranks: NDArray[np.uint16], columns: NDArray[np.int64], tables: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """(A, T') some columns of the ranks, each looked up in its table; written over the ranks, row by row."""
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
"""Members (M,), spans (N, 2) of each region in them, voxels (A,) of the atoms, voxels (N,) and boxes (N,
6)."""


def _no_twins(
    regions: _Regions, iou: float, within: NDArray[np.bool_], num_threads: int
) -> NDArray[np.bool_]:
    """(N,) whether a region is within the limits, and no kept one before it has a larger IoU with it."""
    _, spans, atom_voxels, _, _ = regions
    twins: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(spans)

    def find(first: int) -> None:
        inside = np.zeros(len(atom_voxels), np.bool_)
        for b in range(first, len(spans), num_threads):
            if within[b]:
                twins[b] = _twins(b, regions, iou, within, inside)

    for_each(find, range(num_threads), num_threads)
    kept = within.copy()
    for b, found in enumerate(twins):
        kept[b] &= not kept[found].any()
    return kept


@numba.njit(cache=True, nogil=True)
def _twins(
    b: int, regions: _Regions, iou: float, within: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Regions before b, within the limits, that have a larger IoU with it; `inside` is false and stays so."""
    members, spans, atom_voxels, voxels, boxes = regions
    own = members[spans[b, 0] : spans[b, 1]]
    for atom in own:
        inside[atom] = True
    found = np.empty(b, np.int64)
    used = 0
    for a in range(b):
        if not within[a] or min(voxels[a], voxels[b]) <= iou * max(voxels[a], voxels[b]):
            continue
        room = 1  # voxels that both boxes hold
        for d in range(3):
            room *= max(0, min(boxes[a, d + 3], boxes[b, d + 3]) - max(boxes[a, d], boxes[b, d]))
        if room <= iou * max(voxels[a], voxels[b]):
            continue
        both = voxels[a]  # at most: what is found outside goes off, until too little is left
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
