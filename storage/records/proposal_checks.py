"""Exact check that a table of proposals fits its atoms, for every proposal, in under a second.

*Reads* atom layers uint16 (z, y, x), rows of atom ids uint16, table int32 (N, 11), scores float32 (N,).
*Raises* InvalidRecord at the first error. A box that is too small would cut masks off, since readers skip the
chunks outside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidRecord
from storage.layout import BACKGROUND_ATOM, MAX_ATOMS, PROPOSAL_COLUMNS
from storage.records.orders import Rows


def check_proposals(
    atoms: Sequence[NDArray[np.uint16]],
    orders: Sequence[Rows],
    table: NDArray[np.int32],
    scores: NDArray[np.float32],
    num_sources: int,
) -> None:
    """Raise InvalidRecord unless the orders fit the atoms and the table fits both.

    Args:
        atoms: (z, y, x) ids, one volume per layer.
        orders: Rows of each layer.
        table: (N, 11), columns as in PROPOSAL_COLUMNS.
        scores: (N,), non-increasing.
        num_sources: Number of source codes.
    """
    if len(atoms) != len(orders) or not atoms:
        raise InvalidRecord(f"needs orders for each atom layer, got {len(orders)} for {len(atoms)} layers")
    _check_table(table, scores, num_sources, sum(len(order) for order in orders))
    first_row = 0
    for layer, (volume, order) in enumerate(zip(atoms, orders, strict=True)):
        num_atoms = count_atoms(layer, volume)
        _check_rows(layer, order, num_atoms)
        sizes, lows, highs = atom_extents(volume, num_atoms, has_background=layer > 0)
        if not sizes.all():
            raise InvalidRecord(
                f"atom layer {layer}: atom {int(sizes.argmin())} of {len(sizes)} has no voxel"
            )
        for row, ids in enumerate(order):
            chosen = np.flatnonzero(table[:, 0] == first_row + row)
            if len(chosen):
                _check_intervals(table, chosen, sizes[ids], lows[ids], highs[ids])
        first_row += len(order)


def _check_table(
    table: NDArray[np.int32], scores: NDArray[np.float32], num_sources: int, num_orders: int
) -> None:
    if table.dtype != np.int32 or table.ndim != 2 or table.shape[1] != len(PROPOSAL_COLUMNS):
        raise InvalidRecord(
            f"table must be int32 (N, {len(PROPOSAL_COLUMNS)}), got {table.dtype} {table.shape}"
        )
    if len(table) == 0:
        raise InvalidRecord("has no proposal: there is nothing to learn from it")
    if scores.dtype != np.float32 or scores.shape != (len(table),):
        raise InvalidRecord(f"scores must be float32 ({len(table)},), got {scores.dtype} {scores.shape}")
    if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
        raise InvalidRecord("scores must be finite and never rise: the best proposal comes first")
    for name, top in (("order", num_orders), ("source", num_sources)):
        column = table[:, PROPOSAL_COLUMNS.index(name)]
        if column.min() < 0 or column.max() >= top:
            raise InvalidRecord(f"table: {name} must lie in 0..{top - 1}, got {column.min()}..{column.max()}")


def count_atoms(layer: int, volume: NDArray[np.uint16]) -> int:
    """Return the number of atoms A of a layer: one more than its highest id.

    Raises:
        InvalidRecord: It is not a volume of atoms.
    """
    if volume.dtype != np.uint16 or volume.ndim != 3 or volume.size == 0:
        raise InvalidRecord(
            f"atom layer {layer}: must be uint16 (z, y, x), got {volume.dtype} {volume.shape}"
        )
    num_atoms = int(volume.max()) + 1
    if num_atoms > MAX_ATOMS and layer > 0:
        inside = volume[volume != BACKGROUND_ATOM]
        num_atoms = int(inside.max()) + 1 if inside.size else 0
    if not 1 <= num_atoms <= MAX_ATOMS:
        got = num_atoms - 1 if num_atoms else "none"
        raise InvalidRecord(f"atoms of layer {layer}: ids must lie in 0..{MAX_ATOMS - 1}, got {got}")
    return num_atoms


def _check_rows(layer: int, rows: Rows, num_atoms: int) -> None:
    if not len(rows):
        raise InvalidRecord(f"orders {layer}: needs a row at least")
    for row in rows:
        if row.dtype != np.uint16 or row.ndim != 1:
            raise InvalidRecord(
                f"orders {layer}: a row must be uint16 with 1 axis, got {row.dtype} {row.shape}"
            )
        counts = np.bincount(row, minlength=num_atoms)
        if len(counts) > num_atoms or counts.max() > 1:
            raise InvalidRecord(
                f"orders {layer}: a row must have ids of 0..{num_atoms - 1}, none of them twice"
            )


def atom_extents(
    volume: NDArray[np.uint16], num_atoms: int, *, has_background: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return the number of voxels and the bounding box of every atom.

    Args:
        volume: (z, y, x) ids.
        num_atoms: Number of atoms A; ids are 0..A-1.
        has_background: Whether 65534 may occur.

    Returns:
        sizes int64 (A,) in voxels, 0 for an id that does not occur; lows and highs int32 (A, 3), the box's
        first index along z, y, x and one past its last.

    Raises:
        InvalidRecord: An id is out of range.
    """
    # An entry for every uint16, so that no index has to be checked.
    lows = np.zeros((65_536, 3), dtype=np.int32)
    highs = np.zeros((65_536, 3), dtype=np.int32)
    sizes = np.zeros(65_536, dtype=np.int64)
    for axis in range(3):
        # A scatter keeps the last value written: going up the slices gives the last slice of each atom, going
        # down gives the first.
        slices = np.ascontiguousarray(np.moveaxis(volume, axis, 0)).reshape(volume.shape[axis], -1)
        for index, ids in enumerate(slices):
            highs[ids, axis] = index + 1
            if axis == 0:
                sizes += np.bincount(ids, minlength=65_536)
        for index in range(len(slices) - 1, -1, -1):
            lows[slices[index], axis] = index
    invalid = np.flatnonzero(sizes[num_atoms:]) + num_atoms
    if has_background:
        invalid = invalid[invalid != BACKGROUND_ATOM]
    if len(invalid):
        raise InvalidRecord(f"atoms: ids must lie in 0..{num_atoms - 1}, got {int(invalid[0])}")
    return sizes[:num_atoms], lows[:num_atoms], highs[:num_atoms]


def _check_intervals(
    table: NDArray[np.int32],
    chosen: NDArray[np.intp],
    sizes: NDArray[np.int64],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
) -> None:
    """Compare the proposals of one order, rows `chosen` of the table, with the order's atoms."""
    start, stop = table[chosen, 1], table[chosen, 2]
    wrong = (start < 0) | (start >= stop) | (stop > len(sizes))
    if wrong.any():
        row = table[chosen[wrong.argmax()], :3].tolist()
        raise InvalidRecord(f"proposal {chosen[wrong.argmax()]}: order, start, stop {row} is no interval")
    truth = interval_extents(start, stop, sizes, lows, highs)
    wrong = (truth != table[chosen, 3:10]).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        raise InvalidRecord(
            f"proposal {chosen[first]}: its atoms give box and voxels {truth[first].tolist()}, "
            f"the table says {table[chosen[first], 3:10].tolist()}"
        )


def interval_extents(
    start: NDArray[np.int32],
    stop: NDArray[np.int32],
    sizes: NDArray[np.int64],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
) -> NDArray[np.int64]:
    """Return boxes and voxels of intervals of atoms.

    Args:
        start: (n,) first index of each interval in the order.
        stop: (n,) one past its last index, > start.
        sizes: (A,) voxels of the atoms, in the order.
        lows: (A, 3) first index of each atom along z, y, x, in the order.
        highs: (A, 3) one past its last index, in the order.

    Returns:
        int64 (n, 7): z0, y0, x0, z1, y1, x1, voxels.
    """
    # reduceat over start, stop, start, stop, ...: every second result is that of an interval. The extra row
    # allows a stop at the end.
    pairs = np.stack([start, stop], axis=1).ravel()
    extents = np.empty((len(start), 7), dtype=np.int64)
    extents[:, :3] = np.minimum.reduceat(np.pad(lows, ((0, 1), (0, 0))), pairs, axis=0)[::2]
    extents[:, 3:6] = np.maximum.reduceat(np.pad(highs, ((0, 1), (0, 0))), pairs, axis=0)[::2]
    sums = np.concatenate([[0], np.cumsum(sizes)])
    extents[:, 6] = sums[stop] - sums[start]
    return extents
