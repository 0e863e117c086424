"""Masks, lookups and coverage of proposals that are stored as intervals of atoms.

Reads: atoms (z, y, x), rows of orders, table (N, 11) of `pipeline.quality.stored_scan.Intervals`.
Writes: masks, rows of the table, counts per voxel; nothing is kept.
Bounds: exact. A lookup takes one pass over the voxels of the region, never over the masks of all proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.quality.stored_scan import ORDER, START, STOP, VOXELS, IntArray, Intervals, Rows

Region = tuple[slice, slice, slice]
"""A box (z, y, x) of the scan."""
WHOLE: Region = (slice(None), slice(None), slice(None))
"""The whole scan."""

NO_ATOM = 65_534
"""Lowest id of a uint16 volume that is not an atom."""

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class IntervalSet:
    """Proposals without scores; has exactly the fields of `pipeline.quality.stored_scan.Intervals`."""

    atoms: Sequence[IntArray]
    """Label volumes (z, y, x), one per layer."""
    orders: Sequence[Rows]
    """Orders of the atoms of each layer."""
    table: IntArray
    """(N, 11), see `stored_scan.ORDER`."""


def select(proposals: Intervals, rows: IntArray | Sequence[int]) -> IntervalSet:
    """Return some of the proposals, in the given order.

    Args:
        proposals: Atoms, orders and table.
        rows: (M,) rows of the table.
    """
    return IntervalSet(atoms=proposals.atoms, orders=proposals.orders, table=proposals.table[rows])


def partition(labels: IntArray) -> IntervalSet:
    """Return the labels of a volume as proposals: row a of the table is label a.

    Args:
        labels: Integers (z, y, x), 0 or above.
    """
    size = int(labels.max()) + 1
    table = np.zeros((size, 11), dtype=np.int32)
    table[:, ORDER], table[:, START], table[:, STOP] = 0, np.arange(size), np.arange(size) + 1
    table[:, VOXELS] = np.bincount(labels.ravel(), minlength=size)
    return IntervalSet(atoms=(labels,), orders=(np.arange(size)[None],), table=table)


def order_rows(proposals: Intervals) -> list[tuple[int, int]]:
    """Return (layer, row) of each order, in the numbering of the table."""
    return [(layer, row) for layer, orders in enumerate(proposals.orders) for row in range(len(orders))]


def proposal_mask(proposals: Intervals, index: int, region: Region = WHOLE) -> NDArray[np.bool_]:
    """Return the mask of one proposal in a region, bool (z, y, x).

    Args:
        proposals: Atoms, orders and table.
        index: Row of the table.
        region: Box of the scan.

    Raises:
        IndexError: there is no such proposal.
    """
    order, start, stop = (int(proposals.table[index, column]) for column in (ORDER, START, STOP))
    layer, row = order_rows(proposals)[order]
    member = _lookup(proposals, layer, np.bool_)
    member[proposals.orders[layer][row][start:stop]] = True
    return _gather(proposals, layer, member, region)


def proposal_words(
    proposals: Intervals, indices: Sequence[int], region: Region = WHOLE
) -> NDArray[np.uint64]:
    """Return the masks of up to 64 proposals as bits, uint64 (z, y, x).

    Args:
        proposals: Atoms, orders and table.
        indices: Rows of the table; bit k is the mask of `indices[k]`.
        region: Box of the scan.

    Raises:
        ValueError: there are more than 64 indices.
    """
    if len(indices) > 64:
        raise ValueError(f"a word holds 64 masks, got {len(indices)}")
    rows = order_rows(proposals)
    words = np.zeros(proposals.atoms[0][region].shape, dtype=np.uint64)
    for layer in range(len(proposals.atoms)):
        lookup = _lookup(proposals, layer, np.uint64)
        for bit, index in enumerate(indices):
            order, start, stop = (int(proposals.table[index, column]) for column in (ORDER, START, STOP))
            if rows[order][0] == layer:
                lookup[proposals.orders[layer][rows[order][1]][start:stop]] |= np.uint64(1 << bit)
        if lookup.any():
            words |= _gather(proposals, layer, lookup, region)
    return words


def proposals_at(proposals: Intervals, point_zyx: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the rows of the proposals that contain a voxel, from the smallest to the largest.

    Args:
        proposals: Atoms, orders and table.
        point_zyx: Voxel indices (z, y, x), inside the scan.

    Returns:
        int64 (M,) rows of the table.

    Raises:
        IndexError: the point is outside the scan.
    """
    shape = proposals.atoms[0].shape
    if not all(0 <= p < n for p, n in zip(point_zyx, shape, strict=True)):
        raise IndexError(f"the point {point_zyx} is outside the scan of shape {shape}")
    table = proposals.table
    position = np.full(len(order_rows(proposals)), -1, dtype=np.int64)
    first = 0
    for atoms, orders in zip(proposals.atoms, proposals.orders, strict=True):
        atom = int(atoms[point_zyx])
        for order, row in enumerate(orders, start=first):
            found = np.flatnonzero(row == atom)
            if len(found):
                position[order] = found[0]
        first += len(orders)
    here = position[table[:, ORDER]]
    rows = np.flatnonzero((here >= table[:, START]) & (here < table[:, STOP]))
    return np.asarray(rows[np.argsort(table[rows, VOXELS], kind="stable")], dtype=np.int64)


def coverage(proposals: Intervals, region: Region = WHOLE) -> NDArray[np.int32]:
    """Return the number of proposals that contain each voxel of a region, int32 (z, y, x)."""
    table = proposals.table
    total = np.zeros(proposals.atoms[0][region].shape, dtype=np.int32)
    first = 0
    for layer, orders in enumerate(proposals.orders):
        lookup = _lookup(proposals, layer, np.int32)
        for order, row in enumerate(orders, start=first):
            chosen = table[table[:, ORDER] == order]
            steps = np.zeros(len(row) + 1, dtype=np.int32)
            np.add.at(steps, chosen[:, START], 1)
            np.add.at(steps, chosen[:, STOP], -1)
            lookup[row] += np.cumsum(steps[:-1], dtype=np.int32)
        total += _gather(proposals, layer, lookup, region)
        first += len(orders)
    return total


def num_atoms(proposals: Intervals, layer: int) -> int:
    """Return the number of atoms A of a layer: one more than the highest id of an atom."""
    atoms = proposals.atoms[layer]
    if atoms.dtype == np.uint16:
        atoms = atoms[atoms < NO_ATOM]
    return 1 + max(int(ids.max()) for ids in (atoms, *proposals.orders[layer]) if ids.size)


def _lookup(proposals: Intervals, layer: int, dtype: type[T]) -> NDArray[T]:
    """Return zeros for each id that a voxel of a layer may have."""
    size = 65_536 if proposals.atoms[layer].dtype == np.uint16 else num_atoms(proposals, layer)
    return np.zeros(size, dtype=dtype)


def _gather(proposals: Intervals, layer: int, lookup: NDArray[T], region: Region) -> NDArray[T]:
    """Return the value of each voxel's atom; 0 for voxels without an atom."""
    return lookup[proposals.atoms[layer][region]]
