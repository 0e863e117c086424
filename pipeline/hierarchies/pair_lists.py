"""Pairs of touching regions while regions are merged: a list for each region, and a hash table of all pairs.

Reads:  pairs, int32 (E, 2), with their common faces and summed evidence.
Writes: an array of `PAIR`, half-edge lists (R, 3), a table of pair indices; all changed in place.
Bounds: compiled by Numba, for one thread. Pair e is two half-edges: 2e at its first region, 2e + 1 at its
        second.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

PAIR = np.dtype(
    [
        ("regions", np.int32, 2),
        ("after", np.int32, 2),
        ("faces", np.float64),
        ("strength", np.float64),
        ("weight", np.float64),
        ("entry", np.float64),
    ]
)
"""A pair of touching regions (`regions`, the first is -1 once the pair is removed); the next half-edge in the
list of each (`after`, -1 at the end); common faces and the evidence summed over them; its dissimilarity
(`weight`); the weight of its entry in the heap (`entry`: at most `weight`; infinity without an entry)."""


@numba.njit(cache=True, nogil=True)
def pairs_of(ends: NDArray[np.int32], faces: NDArray[np.int32], strength: NDArray[np.int64]) -> Any:
    """Return (E,) `PAIR`: regions, common faces and summed evidence; the other fields are not set."""
    pairs = np.empty(len(ends), PAIR)
    for e in range(len(ends)):
        pairs[e].regions[0], pairs[e].regions[1] = ends[e, 0], ends[e, 1]
        pairs[e].faces, pairs[e].strength = faces[e], strength[e]
    return pairs


@numba.njit(cache=True, nogil=True)
def empty_table(num_pairs: int) -> NDArray[np.int32]:
    """Return a hash table for pairs; its length is a power of two, and at least half of it stays empty."""
    size = 16
    while size < 2 * num_pairs:
        size *= 2
    return np.empty(size, np.int32)


@numba.njit(cache=True, nogil=True)
def half_edge_lists(pairs: Any, num_regions: int) -> NDArray[np.int32]:
    """Return (R, 3) first and last half-edge of each region's list of pairs, -1 for none, and its length.

    Half-edge 2e is in the list of pair e's first region, 2e + 1 in that of its second.
    """
    lists = np.full((num_regions, 3), -1, np.int32)
    lists[:, 2] = 0
    for e in range(len(pairs)):
        for side in range(2):
            append_half_edge(pairs, lists, pairs[e].regions[side], 2 * e + side)
    return lists


@numba.njit(cache=True, nogil=True)
def append_half_edge(pairs: Any, lists: NDArray[np.int32], region: Any, half: Any) -> None:
    """Put a half-edge at the end of a region's list."""
    pairs[half >> 1].after[half & 1] = -1
    last = lists[region, 1]
    if last < 0:
        lists[region, 0] = half
    else:
        pairs[last >> 1].after[last & 1] = half
    lists[region, 1] = half
    lists[region, 2] += 1


@numba.njit(cache=True, nogil=True)
def slot_of(table: NDArray[np.int32], pairs: Any, one: Any, other: Any) -> Any:
    """Return the slot of the pair of two regions in a hash table, or the empty slot for it.

    Pairs that were removed, or have other regions now, keep their old slots.
    """
    mask = len(table) - 1
    i = _first_slot(mask, one, other)
    while table[i] >= 0:
        a, b = pairs[table[i]].regions[0], pairs[table[i]].regions[1]
        if (a == one and b == other) or (a == other and b == one):
            break
        i = (i + 1) & mask
    return i


@numba.njit(cache=True, nogil=True)
def _first_slot(mask: int, one: Any, other: Any) -> Any:
    key = (np.uint64(min(one, other)) << np.uint64(32)) | np.uint64(max(one, other))
    return np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask


@numba.njit(cache=True, nogil=True)
def fill_table(table: NDArray[np.int32], pairs: Any) -> int:
    """Fill the table anew with the pairs that are not removed; return their number."""
    table[:] = -1
    used = 0
    for e in range(len(pairs)):
        if pairs[e].regions[0] >= 0:
            table[slot_of(table, pairs, pairs[e].regions[0], pairs[e].regions[1])] = e
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def move_half_edge(pairs: Any, lists: NDArray[np.int32], table: NDArray[np.int32], half: Any, to: Any) -> Any:
    """Move a half-edge to another region; if the two regions have a pair already, add its values to that.

    Args:
        pairs: All pairs.
        lists: See `half_edge_lists`.
        table: See `slot_of`.
        half: The half-edge.
        to: The region.

    Returns:
        (the pair of the two regions, 1 if it takes a new slot of the table, else 0).
    """
    e, side = half >> 1, half & 1
    pair = pairs[e]
    slot = slot_of(table, pairs, to, pair.regions[1 - side])
    if table[slot] >= 0:
        joined = pairs[table[slot]]
        joined.faces += pair.faces
        joined.strength += pair.strength
        pair.regions[0] = -1
        return np.int64(table[slot]), 0
    table[slot] = e
    pair.regions[side] = to
    append_half_edge(pairs, lists, to, half)
    return np.int64(e), 1
