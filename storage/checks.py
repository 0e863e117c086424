"""Does a table of proposals say the truth about its atoms? Exact, for every proposal, in under a second.

*Reads* atom layers uint16 (z, y, x), rows of atom ids uint16, table int32 (N, 11), scores float32 (N,).
*Raises* InvalidRecord at the first thing that does not hold. A box that is too small would cut masks off, as
readers skip the chunks outside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidRecord
from storage.layout import BACKGROUND_ATOM, MAX_ATOMS, PROPOSAL_COLUMNS
from storage.orders import Rows


def check_proposals(
    atoms: Sequence[NDArray[np.uint16]],
    orders: Sequence[Rows],
    table: NDArray[np.int32],
    scores: NDArray[np.float32],
    num_sources: int,
) -> None:
    """Raise InvalidRecord unless orders fit their atoms and every proposal its atoms."""
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
    """Return the atoms A of a layer: one more than its highest id.

    Raises:
        InvalidRecord: The volume is none of atoms.
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
    """Return the voxels, first and last place along each axis of every atom.

    Args:
        volume: (z, y, x) ids.
        num_atoms: Ids go from 0 to this less one.
        has_background: Whether 65534 may occur.

    Returns:
        sizes (A,) in voxels, 0 for an id that does not occur; lows (A, 3) and highs (A, 3), half-open.

    Raises:
        InvalidRecord: An id out of range.
    """
    # Room for every uint16: no bounds to check while scattering.
    lows = np.zeros((65_536, 3), dtype=np.int32)
    highs = np.zeros((65_536, 3), dtype=np.int32)
    sizes = np.zeros(65_536, dtype=np.int64)
    for axis in range(3):
        # Slices laid out one after the other; a plain scatter keeps the last writer, so the ends are found by
        # walking up and then down.
        slices = np.ascontiguousarray(np.moveaxis(volume, axis, 0)).reshape(volume.shape[axis], -1)
        for place, ids in enumerate(slices):
            highs[ids, axis] = place + 1
            if axis == 0:
                sizes += np.bincount(ids, minlength=65_536)
        for place in range(len(slices) - 1, -1, -1):
            lows[slices[place], axis] = place
    strangers = np.flatnonzero(sizes[num_atoms:]) + num_atoms
    if has_background:
        strangers = strangers[strangers != BACKGROUND_ATOM]
    if len(strangers):
        raise InvalidRecord(f"atoms: ids must lie in 0..{num_atoms - 1}, got {int(strangers[0])}")
    return sizes[:num_atoms], lows[:num_atoms], highs[:num_atoms]


def _check_intervals(
    table: NDArray[np.int32],
    chosen: NDArray[np.intp],
    sizes: NDArray[np.int64],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
) -> None:
    """Compare the proposals of one order, rows `chosen` of the table, with its atoms in depth-first order."""
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
    """Return z0, y0, x0, z1, y1, x1, voxels, (n, 7), of runs of atoms.

    Args:
        start: (n,) first place of each run in the order.
        stop: (n,) place after its last, > start.
        sizes: (A,) voxels of the atoms, in the order.
        lows: (A, 3) their first places.
        highs: (A, 3) their places after the last.
    """
    # reduceat over start, stop, start, stop, ...: every other result is a run's. The extra row lets the last
    # stop be the end.
    pairs = np.stack([start, stop], axis=1).ravel()
    extents = np.empty((len(start), 7), dtype=np.int64)
    extents[:, :3] = np.minimum.reduceat(np.pad(lows, ((0, 1), (0, 0))), pairs, axis=0)[::2]
    extents[:, 3:6] = np.maximum.reduceat(np.pad(highs, ((0, 1), (0, 0))), pairs, axis=0)[::2]
    sums = np.concatenate([[0], np.cumsum(sizes)])
    extents[:, 6] = sums[stop] - sums[start]
    return extents
