"""Orders as they lie on disk: a small number for every atom in every tree, in place of rows of atoms. Pure.

The starts and stops of a tree's proposals cut its depth-first order into segments. Within one, the order of
the atoms says nothing, and what no proposal covers is not needed: all that counts is which segment each atom
is in.

    order      [7 2 9 | 4 | 1 3 | 0 5 6 8]     proposals 0:3, 0:4, 4:6; nothing covers 0 5 6 8
    segments    atom 0 1 2 3 4 5 6 7 8 9
                     0 3 1 3 2 0 0 1 0 1       0: in no proposal of this tree
    read as    [2 7 9 | 4 | 1 3]               the same proposals 0:3, 0:4, 4:6 over it

Side by side for all trees, the numbers of neighbouring atoms are nearly the same: they compress to a third of
what the orders take.

*Reads* rows of atom ids uint16 and the table's order, start, stop. *Writes* segments (A, T) uint8 or uint16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.uint16] | tuple[NDArray[np.uint16], ...]
"""The orders of an atom layer: a row a tree, of atoms in depth-first order. Rows may leave out atoms."""

Segments: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(A, T): see the module."""


def pack_orders(
    orders: Sequence[Rows], num_atoms: Sequence[int], table: NDArray[np.int32]
) -> tuple[tuple[Segments, ...], NDArray[np.int32]]:
    """Return the segments of every layer's atoms, and the table with starts and stops among the atoms kept.

    Args:
        orders: The rows of each layer.
        num_atoms: Atoms A of each layer.
        table: (N, 11), its order column counting the rows of all layers in turn.

    Returns:
        (A, T) a layer: the place of each atom's segment in tree t, from 1; 0 where no proposal covers it. The
        type is the smallest that holds them all. The table is a copy.
    """
    packed, moved, first = [], table.copy(), 0
    for rows, size in zip(orders, num_atoms, strict=True):
        segments = np.zeros((size, len(rows)), dtype=np.uint16)
        for place, row in enumerate(rows):
            here = np.flatnonzero(table[:, 0] == first + place)
            if len(here):
                segments[:, place], moved[here, 1:3] = _pack_row(row, table[here, 1:3], size)
        packed.append(segments.astype(np.uint8) if segments.max() < 256 else segments)
        first += len(rows)
    return tuple(packed), moved


def _pack_row(
    row: NDArray[np.uint16], intervals: NDArray[np.int32], num_atoms: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return the segment of each atom of one tree, (A,), and its intervals (n, 2) among the atoms kept."""
    cuts, places = np.unique(intervals, return_inverse=True)
    places = places.reshape(intervals.shape)
    depth = np.cumsum(
        np.bincount(places[:, 0], minlength=len(cuts)) - np.bincount(places[:, 1], minlength=len(cuts))
    )
    covered, lengths = depth[:-1] > 0, np.diff(cuts)
    segments = np.zeros(num_atoms, dtype=np.uint16)
    segments[row[cuts[0] : cuts[-1]]] = np.repeat(np.cumsum(covered) * covered, lengths)
    return segments, np.concatenate([[0], np.cumsum(lengths * covered)])[places]


def unpack_orders(segments: Segments) -> tuple[NDArray[np.uint16], ...]:
    """Return the rows of a layer: for each tree the atoms that its proposals cover, segment by segment.

    Args:
        segments: (A, T).
    """
    rows = []
    for column in np.ascontiguousarray(segments.T):
        row = np.argsort(column, kind="stable").astype(np.uint16)[len(column) - np.count_nonzero(column) :]
        row.flags.writeable = False
        rows.append(row)
    return tuple(rows)
