"""Merging regions pair by pair, the most alike first, until one is left: a binary tree.

    weakest pair --merge--> its faces, voxels and intensities add up --> the pairs around it are weighed again

A heap over the pairs of the region graph that come next: those up to a ceiling; when it is empty, the
ceiling rises to take in another part of those that are left. Most pairs are gone by then, or weigh something
else. The neighbours of the smaller list move to the larger (small to large), so a merge costs the degree of
the smaller region; a pair whose regions grew since it was weighed is weighed again when it comes up. Pairs
come up in a strict order, whatever the ceilings. Own code, since higra's average linkage took 6.2 s for
62,110 regions of a CT, this 0.5 s.

Reads:  `RegionGraph`, features of the regions.
Writes: parents, int64 (M,), leaves first, a parent after its children; parts that do not touch are joined
        at the end.
Bounds: one thread; ties go to the pair that stands first, so the tree is the same on every machine.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.hierarchies.supervoxels import join

Linkage: TypeAlias = Literal[
    "boundary", "boundary_and_contrast", "ward", "neck", "contact", "compact", "piecewise"
]
"""How unlike two touching regions are:
boundary: mean evidence over their faces (average linkage);
boundary_and_contrast: that plus the distance of their mean features;
ward: the growth of the sum of squares, from mean features and volumes (Ward 1963);
neck: boundary_and_contrast, times the root of the smaller one's width over that of the contact: organs that
touch at a neck stay apart;
contact: boundary, times the share of the smaller one's surface that is not in contact: dents are filled;
compact: boundary, times the squared surface of the two together over that of a body of their volume;
piecewise: the growth of the sum of squares for each face that goes (Mumford and Shah 1989; Koepfler 1994)."""

_CODES: dict[Linkage, int] = {
    "boundary": 0,
    "boundary_and_contrast": 1,
    "ward": 2,
    "neck": 3,
    "contact": 4,
    "compact": 5,
    "piecewise": 6,
}

_VOXELS, _SURFACE, _NECK, _SIZE, _MEANS = range(5)
"""Columns of a body: volume, faces in common with others, the volume to the power of 2/3 and to that of the
size exponent (where they are wanted: powers are slow), and from there on the mean features."""

_PAIR = np.dtype(
    [
        ("regions", np.int32, 2),
        ("after", np.int32, 2),
        ("faces", np.float64),
        ("strength", np.float64),
        ("weight", np.float64),
        ("entry", np.float64),
    ]
)
"""A pair of touching regions, the first -1 once it is gone; the half-edge that follows in the list of each,
-1 at the end; what they have in common; how unlike they are; the weight of its entry in the heap, which is no
larger, or infinity where it has none."""

_PART = 8
"""One of so many pairs that are left goes into the heap at once."""

_CONTACT = 0.9
"""contact: how much less unlike a region is that lies wholly in contact with the other."""


def agglomerate(
    pairs: NDArray[np.int32],
    faces: NDArray[np.int32],
    strength_sums: NDArray[np.int64],
    voxels: NDArray[np.int64],
    feature_sums: NDArray[np.float64],
    *,
    linkage: Linkage,
    size_exponent: float = 0.0,
    num_remaining: int = 1,
) -> NDArray[np.int64]:
    """Parents of the merge tree.

    Args:
        pairs: (E, 2) touching regions.
        faces: (E,) common faces.
        strength_sums: (E,) evidence summed over the faces.
        voxels: (R,) size of each region.
        feature_sums: (R, F) features summed over voxels, in units of the evidence.
        linkage: How unlike two regions are.
        size_exponent: Unlikeness is multiplied by the smaller volume to this power; above 0, small go first.
        num_remaining: Stop when this many regions are left.

    Returns:
        int64 (M,): the parent of every node, leaves 0..R-1 first, children before parents; roots are their
        own.
    """
    parents, count = _agglomerate(
        pairs.astype(np.int32, copy=False),
        faces.astype(np.int32, copy=False),
        strength_sums.astype(np.int64, copy=False),
        voxels.astype(np.float64),
        np.array(feature_sums, dtype=np.float64, order="C"),  # a copy: they are added up in place
        _CODES[linkage],
        float(size_exponent),
        int(num_remaining),
    )
    return np.asarray(parents[:count])


def join_nearest(
    pairs: NDArray[np.int32],
    faces: NDArray[np.int32],
    strength_sums: NDArray[np.int64],
    voxels: NDArray[np.int64],
    feature_sums: NDArray[np.float64],
) -> tuple[NDArray[np.int32], int]:
    """One round in which every region joins its nearest neighbour (Boruvka): a third or so are left.

    Arguments are those of `agglomerate`; the linkage is "boundary_and_contrast".

    Returns:
        (int32 (R,): the new region of each, numbered by their lowest member; how many there are).
    """
    nearest = _nearest_pair(pairs, faces, strength_sums, feature_sums / voxels[:, None])
    nearest = nearest[nearest >= 0]
    return join(pairs[nearest, 0], pairs[nearest, 1], len(voxels))


def join_flat(
    pairs: NDArray[np.int32], passes: NDArray[np.int32], num_regions: int
) -> tuple[NDArray[np.int32], int]:
    """Basins of one plateau joined: those that touch where there is no evidence at all.

    On a plateau (clipped air, a saturated tumour) steepest descent knows no direction, and leaves stripes.

    Args:
        pairs: (E, 2) touching basins.
        passes: (E,) least evidence over their common faces.
        num_regions: How many basins there are.

    Returns:
        (int32 (R,): the new region of each, numbered by their lowest member; how many there are).
    """
    flat = passes == 0
    return join(pairs[flat, 0], pairs[flat, 1], num_regions)


@numba.njit(cache=True, nogil=True)
def _nearest_pair(
    pairs: NDArray[np.int32], faces: NDArray[np.int32], strength_sums: NDArray[np.int64],
    means: NDArray[np.float64],
) -> NDArray[np.int64]:  # fmt: skip
    """(R,) the pair of each region with its nearest neighbour, -1 without one; the first pair wins a tie."""
    nearest = np.full(len(means), -1, np.int64)
    least = np.full(len(means), np.inf)
    for e in range(len(pairs)):
        one, other = pairs[e]
        square = 0.0
        for k in range(means.shape[1]):
            square += (means[one, k] - means[other, k]) * (means[one, k] - means[other, k])
        unlikeness = strength_sums[e] / faces[e] + np.sqrt(square)
        for region in (one, other):
            if unlikeness < least[region]:
                nearest[region], least[region] = e, unlikeness
    return nearest


@numba.njit(cache=True, nogil=True)
def _rise(weights: NDArray[np.float64], entries: NDArray[np.int32], i: int) -> None:
    """Move an entry of the heap up to where it belongs: least weight first, lower pair among equals.

    A heap of four children a node: half as deep as one of two, and all four lie together in memory.
    """
    weight, pair = weights[i], entries[i]
    while i > 0:
        up = (i - 1) >> 2
        if weights[up] < weight or (weights[up] == weight and entries[up] <= pair):
            break
        weights[i], entries[i] = weights[up], entries[up]
        i = up
    weights[i], entries[i] = weight, pair


@numba.njit(cache=True, nogil=True)
def _sink(weights: NDArray[np.float64], entries: NDArray[np.int32], count: int, i: int) -> None:
    """Move an entry of the heap down to where it belongs."""
    weight, pair = weights[i], entries[i]
    while True:
        first = 4 * i + 1
        if first >= count:
            break
        down = first
        for child in range(first + 1, min(first + 4, count)):
            if weights[child] < weights[down] or (
                weights[child] == weights[down] and entries[child] < entries[down]
            ):
                down = child
        if not (weights[down] < weight or (weights[down] == weight and entries[down] < pair)):
            break
        weights[i], entries[i] = weights[down], entries[down]
        i = down
    weights[i], entries[i] = weight, pair


@numba.njit(cache=True, nogil=True)
def _unlikeness(pair: Any, one: Any, other: Any, linkage: int, exponent: float) -> Any:
    """Of the two bodies of a pair."""
    faces, strength = pair.faces, pair.strength
    smaller = one if one[_VOXELS] < other[_VOXELS] else other
    if linkage == 0:
        value = strength / faces
    elif linkage == 4:
        value = strength / faces * (1.0 - _CONTACT * faces / min(one[_SURFACE], other[_SURFACE]))
    elif linkage == 5:
        surface, volume = one[_SURFACE] + other[_SURFACE] - 2.0 * faces, one[_VOXELS] + other[_VOXELS]
        value = strength / faces * (surface * surface / volume ** (4 / 3))
    else:
        square = 0.0
        for k in range(_MEANS, len(one)):
            step = one[k] - other[k]
            square += step * step
        if linkage == 2:
            return square * one[_VOXELS] * other[_VOXELS] / (one[_VOXELS] + other[_VOXELS])
        if linkage == 6:
            return square * one[_VOXELS] * other[_VOXELS] / (one[_VOXELS] + other[_VOXELS]) / faces
        value = strength / faces + np.sqrt(square)
        if linkage == 3:
            value *= np.sqrt(smaller[_NECK] / faces)
    if exponent != 0.0:
        value *= smaller[_SIZE]
    return value


@numba.njit(cache=True, nogil=True)
def _weigh_body(body: Any, features: Any, linkage: int, exponent: float) -> None:
    """Fill in what follows from a body's volume and summed features."""
    if linkage == 3:
        body[_NECK] = body[_VOXELS] ** (2 / 3)
    if exponent != 0.0:
        body[_SIZE] = body[_VOXELS] ** exponent
    for k in range(len(features)):
        body[_MEANS + k] = features[k] / body[_VOXELS]


@numba.njit(cache=True, nogil=True)
def _bodies(
    pairs: Any, voxels: NDArray[np.float64], features: NDArray[np.float64], linkage: int, exponent: float
) -> NDArray[np.float64]:
    """(R, 4 + F) see `_VOXELS`."""
    bodies = np.zeros((len(voxels), _MEANS + features.shape[1]))
    for e in range(len(pairs)):
        for side in range(2):
            bodies[pairs[e].regions[side], _SURFACE] += pairs[e].faces
    for r in range(len(voxels)):
        bodies[r, _VOXELS] = voxels[r]
        _weigh_body(bodies[r], features[r], linkage, exponent)
    return bodies


@numba.njit(cache=True, nogil=True)
def _lists(pairs: Any, num_regions: int) -> NDArray[np.int32]:
    """(R, 3) first and last half-edge of each region's list of pairs, -1 for none, and how many there are.

    Half-edge 2e is in the list of pair e's first region, 2e + 1 in that of its second.
    """
    lists = np.full((num_regions, 3), -1, np.int32)
    lists[:, 2] = 0
    for e in range(len(pairs)):
        for side in range(2):
            _append(pairs, lists, pairs[e].regions[side], 2 * e + side)
    return lists


@numba.njit(cache=True, nogil=True)
def _append(pairs: Any, lists: NDArray[np.int32], region: Any, half: Any) -> None:
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
def _slot(table: NDArray[np.int32], pairs: Any, one: Any, other: Any) -> Any:
    """Where a hash table of pairs has the one of two regions, or else has room for it.

    Pairs that are gone, or have other regions by now, keep their old slots too.
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
def _fill_table(table: NDArray[np.int32], pairs: Any) -> int:
    """Put the pairs that are not gone into the table, and nothing else; how many there are."""
    table[:] = -1
    used = 0
    for e in range(len(pairs)):
        if pairs[e].regions[0] >= 0:
            table[_slot(table, pairs, pairs[e].regions[0], pairs[e].regions[1])] = e
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _refill(
    pairs: Any, rest: NDArray[np.int32], left: int, weights: NDArray[np.float64], entries: NDArray[np.int32]
) -> tuple[int, int, float]:
    """Put the lightest part of the pairs that are left into the empty heap.

    Args:
        pairs: All of them.
        rest: Pairs that may be left, from its beginning on; those that are gone are taken out.
        left: How many.
        weights: Of the heap.
        entries: Of the heap.

    Returns:
        (how many are left, entries of the heap, its ceiling: pairs up to that weight are in it).
    """
    alive = 0
    for k in range(left):
        if pairs[rest[k]].regions[0] >= 0:
            rest[alive] = rest[k]
            alive += 1
    if alive == 0:
        return 0, 0, 0.0
    step = alive // 1024 + 1
    sample = np.empty((alive - 1) // step + 1)
    for k in range(len(sample)):
        sample[k] = pairs[rest[k * step]].weight
    ceiling = np.sort(sample)[len(sample) // _PART]
    count = 0
    for k in range(alive):
        pair = pairs[rest[k]]
        if pair.weight <= ceiling:
            weights[count], entries[count], pair.entry = pair.weight, rest[k], pair.weight
            count += 1
    for i in range((count - 2) >> 2, -1, -1):
        _sink(weights, entries, count, i)
    return alive, count, ceiling


@numba.njit(cache=True, nogil=True)
def _lightest(
    weights: NDArray[np.float64], entries: NDArray[np.int32], pairs: Any, bodies: NDArray[np.float64],
    linkage: int, exponent: float, count: int, ceiling: float,
) -> int:  # fmt: skip
    """Bring the pair that comes first to the top of the heap; how many entries the heap has then."""
    while count > 0:
        pair = pairs[entries[0]]
        stale = pair.regions[0] < 0 or weights[0] != pair.entry
        if not stale and weights[0] == pair.weight:
            one, other = bodies[pair.regions[0]], bodies[pair.regions[1]]
            weight = _unlikeness(pair, one, other, linkage, exponent)
            if not weight > weights[0] * (1 + 1e-9) + 1e-12:
                break
            pair.weight = weight  # a region grew since
        if stale or pair.weight > ceiling:
            if not stale:
                pair.entry = np.inf
            count -= 1
            weights[0], entries[0] = weights[count], entries[count]
        else:
            weights[0] = pair.entry = pair.weight
        _sink(weights, entries, count, 0)
    return count


@numba.njit(cache=True, nogil=True)
def _agglomerate(
    ends: NDArray[np.int32], faces: NDArray[np.int32], strength: NDArray[np.int64],
    voxels: NDArray[np.float64], features: NDArray[np.float64], linkage: int, exponent: float, remaining: int,
) -> tuple[NDArray[np.int64], int]:  # fmt: skip
    """As `agglomerate`."""
    num_regions, num_pairs = len(voxels), len(ends)
    parent = np.arange(2 * num_regions)
    node = np.arange(num_regions)  # the tree node that a region's slot stands for now
    pairs: Any = np.empty(num_pairs, _PAIR)
    for e in range(num_pairs):
        pairs[e].regions[0], pairs[e].regions[1] = ends[e, 0], ends[e, 1]
        pairs[e].faces, pairs[e].strength = faces[e], strength[e]
    bodies = _bodies(pairs, voxels, features, linkage, exponent)
    lists = _lists(pairs, num_regions)
    size = 16
    while size < 2 * num_pairs:
        size *= 2
    table = np.empty(size, np.int32)
    used = _fill_table(table, pairs)
    for pair in pairs:
        one, other = bodies[pair.regions[0]], bodies[pair.regions[1]]
        pair.weight, pair.entry = _unlikeness(pair, one, other, linkage, exponent), np.inf
    room = num_pairs + num_pairs // 4 + 1
    weights, entries = np.empty(room), np.empty(room, np.int32)
    rest, num_rest, ceiling = np.arange(num_pairs).astype(np.int32), num_pairs, -np.inf
    count, new, left = 0, num_regions, num_regions
    while left > remaining:
        count = _lightest(weights, entries, pairs, bodies, linkage, exponent, count, ceiling)
        if count == 0:
            num_rest, count, ceiling = _refill(pairs, rest, num_rest, weights, entries)
            if count == 0:
                break
            continue
        pair = pairs[entries[0]]
        a, b = pair.regions[0], pair.regions[1]
        if lists[a, 2] > lists[b, 2] or (lists[a, 2] == lists[b, 2] and a < b):
            a, b = b, a
        parent[node[a]], parent[node[b]], node[b] = new, new, new
        new, left = new + 1, left - 1
        pair.regions[0] = -1
        bodies[b, _VOXELS] += bodies[a, _VOXELS]
        bodies[b, _SURFACE] += bodies[a, _SURFACE] - 2.0 * pair.faces
        for k in range(features.shape[1]):
            features[b, k] += features[a, k]
        _weigh_body(bodies[b], features[b], linkage, exponent)
        if count + lists[a, 2] > room:  # many entries are stale: anew, of the pairs that are left
            count, ceiling = 0, -np.inf
            for k in range(num_rest):
                pairs[rest[k]].entry = np.inf
        i = lists[a, 0]
        while i >= 0:
            e, side = i >> 1, i & 1
            pair = pairs[e]
            i = pair.after[side]
            if pair.regions[0] < 0:
                continue
            other = pair.regions[1 - side]
            slot = _slot(table, pairs, b, other)
            if table[slot] >= 0:
                joined = pairs[table[slot]]
                joined.faces += pair.faces
                joined.strength += pair.strength
                pair.regions[0] = -1
                e, pair = table[slot], joined
            else:
                table[slot] = e
                used += 1
                pair.regions[side] = b
                _append(pairs, lists, b, 2 * e + side)
            pair.weight = _unlikeness(pair, bodies[b], bodies[other], linkage, exponent)
            if pair.weight <= ceiling and pair.weight < pair.entry:
                weights[count], entries[count], pair.entry = pair.weight, e, pair.weight
                _rise(weights, entries, count)
                count += 1
        if used * 10 > size * 7:  # slots of pairs long gone fill the table
            used = _fill_table(table, pairs)
    if remaining == 1 and left > 1:  # parts that do not touch: under one root, in order
        for i in range(new):
            if parent[i] == i:
                parent[i] = new
        parent[new] = new
        new += 1
    return parent, new
