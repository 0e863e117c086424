"""Stored form of the orders: a small number per atom and tree, instead of rows of atoms. No I/O.

The starts and stops of a tree's proposals cut its depth-first order into segments. The order of the atoms
within a segment has no meaning, and atoms in no proposal are not needed. So it is enough to store the segment
of each atom.

    order      [7 2 9 | 4 | 1 3 | 0 5 6 8]     proposals 0:3, 0:4, 4:6; none contains 0 5 6 8
    segments    atom 0 1 2 3 4 5 6 7 8 9
                     0 3 1 3 2 0 0 1 0 1       0: in no proposal of this tree
    read as    [2 7 9 | 4 | 1 3]               the same proposals 0:3, 0:4, 4:6 over it

Side by side for all trees, the numbers of neighbouring atoms are nearly equal, so they compress to a third of
the size of the orders.

*Reads* rows of atom ids uint16 and the table's order, start, stop. *Writes* segments (A, T) uint8 or uint16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.uint16] | tuple[NDArray[np.uint16], ...]
"""Orders of an atom layer: one row per tree, of atoms in depth-first order. Rows may leave out atoms."""

Segments: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(A, T) segment of each atom in each tree, see the module."""


def pack_orders(
    orders: Sequence[Rows], num_atoms: Sequence[int], table: NDArray[np.int32]
) -> tuple[tuple[Segments, ...], NDArray[np.int32]]:
    """Return the segments of every layer's atoms, and the table with new starts and stops.

    Args:
        orders: Rows of each layer.
        num_atoms: Number of atoms A of each layer.
        table: int32 (N, 11); its order column numbers the rows of all layers consecutively.

    Returns:
        For each layer (A, T) the segment of each atom in tree t, from 1; 0 if no proposal contains the atom.
        The type is the smallest that holds all numbers. And a copy of the table, whose starts and stops count
        only the atoms that are in a proposal.
    """
    packed, moved, first = [], table.copy(), 0
    for rows, size in zip(orders, num_atoms, strict=True):
        segments = np.zeros((size, len(rows)), dtype=np.uint16)
        for tree, row in enumerate(rows):
            here = np.flatnonzero(table[:, 0] == first + tree)
            if len(here):
                segments[:, tree], moved[here, 1:3] = _pack_row(row, table[here, 1:3], size)
        packed.append(segments.astype(np.uint8) if segments.max() < 256 else segments)
        first += len(rows)
    return tuple(packed), moved


def _pack_row(
    row: NDArray[np.uint16], intervals: NDArray[np.int32], num_atoms: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return the segment of each atom of one tree, (A,), and the intervals (n, 2) among the kept atoms."""
    cuts, ends = np.unique(intervals, return_inverse=True)
    ends = ends.reshape(intervals.shape)
    depth = np.cumsum(
        np.bincount(ends[:, 0], minlength=len(cuts)) - np.bincount(ends[:, 1], minlength=len(cuts))
    )
    covered, lengths = depth[:-1] > 0, np.diff(cuts)
    segments = np.zeros(num_atoms, dtype=np.uint16)
    segments[row[cuts[0] : cuts[-1]]] = np.repeat(np.cumsum(covered) * covered, lengths)
    return segments, np.concatenate([[0], np.cumsum(lengths * covered)])[ends]


def unpack_orders(segments: Segments) -> tuple[NDArray[np.uint16], ...]:
    """Return the rows of a layer: for each tree the atoms in its proposals, segment by segment.

    Args:
        segments: (A, T).

    Returns:
        uint16 rows, one per tree, read-only.
    """
    rows = []
    for column in np.ascontiguousarray(segments.T):
        row = np.argsort(column, kind="stable").astype(np.uint16)[len(column) - np.count_nonzero(column) :]
        row.flags.writeable = False
        rows.append(row)
    return tuple(rows)
