"""Selection: a few thousand regions that represent a million nested ones.

    nodes of all trees --longest-lived of each size--> candidates --facility location--> ranked choice

The weight of a candidate estimates how likely it is an organ: its lifetime (the growth at its next merge),
the number of trees that contain it, the strength of the boundary evidence along its outline, and the
smoothness of that outline. The chosen set represents all candidates best: each candidate adds its weight
times the squared IoU with the most similar chosen one (facility location; the greedy choice is within 1 - 1/e
of the best; Nemhauser et al., 1978). Weights are equalised over octaves of volume, so that regions of every
size are chosen. Regions at all places are chosen too, since distant regions do not overlap.

Reads:  `Hierarchy` values and the sketches of their leaves.
Writes: ranked (tree, node) pairs with their gains, best first; some of the best occur twice.
Bounds: overlaps are estimates (see `pipeline.hierarchies.minhash`); exact duplicates are removed by
        `pipeline.proposals.proposal_set`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.hierarchies import Hierarchy, similar_pairs

_LEAST_IOU = 0.4
"""Least IoU at which a region represents another."""

_AGREEMENT_IOU = 0.75
"""Estimated IoU from which regions of two trees count as the same region."""

_FAINT_EVIDENCE = 10.0
"""Boundary evidence at noise level: about 1 % of the levels of a window."""

_PLACES_AT_ONCE = 4
"""Number of columns of the sketches that are computed at a time."""

_SECOND_TREES = 4
"""Number of trees whose regions may get a second, rounder copy."""

_LEAST_SURFACE = 4.0
"""Least number of faces of a region per face of a cube of the same volume, without faces at the scan's edge;
a ball has 7.3."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Nodes of several trees that may become proposals."""

    tree: NDArray[np.int32]
    """(N,) index of the hierarchy."""
    node: NDArray[np.int64]
    """(N,) node of the hierarchy."""
    voxels: NDArray[np.int64]
    """(N,)"""
    growth: NDArray[np.float64]
    """(N,) log of the ratio of volumes: the next larger region over this one."""
    clarity: NDArray[np.float64]
    """(N,) mean evidence along the outline, divided by the outline's faces per face of a cube of this
    volume."""
    sketches: NDArray[np.uint32]
    """(N, 32) see `pipeline.hierarchies.minhash`."""

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """Return all parts, one after the other."""
        names = ("tree", "node", "voxels", "growth", "clarity", "sketches")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """The leaves that trees are grown over: R regions and the E pairs that touch."""

    voxels: NDArray[np.int64]
    """(R,)"""
    body_voxels: NDArray[np.int64]
    """(R,) those inside the body."""
    sketches: NDArray[np.uint32]
    """(R, 32) see `pipeline.hierarchies.minhash`."""
    pairs: NDArray[np.int32]
    """(E, 2) touching leaves."""
    pair_values: NDArray[np.int64]
    """(E, 2) common faces of each pair, and the boundary evidence summed over them."""


def candidates_of(
    hierarchy: Hierarchy,
    leaves: Leaves,
    *,
    least_body_fraction: float,
    voxel_limits: tuple[int, int],
    per_half_octave: int,
) -> Candidates:
    """Return the longest-lived nodes of a tree in each half octave of volume, as candidates of tree 0.

    Args:
        hierarchy: The tree.
        leaves: Its leaves.
        least_body_fraction: Nodes with a smaller part in the body are left out (table, air, streaks).
        voxel_limits: Least and largest volume, in voxels.
        per_half_octave: The most nodes that are kept for each factor of sqrt(2) in volume.
    """
    voxels, body = hierarchy.sums(np.stack([leaves.voxels, leaves.body_voxels], axis=1)).T
    with np.errstate(divide="ignore"):
        growth = np.log(voxels[hierarchy.parents] / np.maximum(voxels, 1))
    inside = (voxels >= voxel_limits[0]) & (voxels <= voxel_limits[1])
    inside &= body >= least_body_fraction * voxels
    inside[-1] = False  # the root is the whole scan
    nodes = np.flatnonzero(inside & (growth > 0.02))
    octave = np.floor(2 * np.log2(voxels[nodes])).astype(np.int64)
    order = np.lexsort((nodes, -growth[nodes], octave))
    ranked = octave[order]
    rank = np.arange(len(order)) - np.searchsorted(ranked, ranked, side="left")
    nodes = np.sort(nodes[order[rank < per_half_octave]])
    return Candidates(
        tree=np.zeros(len(nodes), np.int32),
        node=nodes,
        voxels=voxels[nodes],
        growth=growth[nodes],
        clarity=_clarity(hierarchy.outline_sums(leaves.pairs, leaves.pair_values)[nodes], voxels[nodes]),
        sketches=_node_sketches(hierarchy, leaves.sketches, nodes),
    )


def _node_sketches(
    hierarchy: Hierarchy, leaf_sketches: NDArray[np.uint32], nodes: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Return (N, 32) sketches of some nodes; a few columns at a time, to save memory."""
    out = np.empty((len(nodes), leaf_sketches.shape[1]), np.uint32)
    for k in range(0, leaf_sketches.shape[1], _PLACES_AT_ONCE):
        places = slice(k, k + _PLACES_AT_ONCE)
        out[:, places] = hierarchy.minima(leaf_sketches[:, places])[nodes]
    return out


def _clarity(outline: NDArray[np.int64], voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (N,) clarity from faces and evidence (N, 2) of outlines; strong, smooth ones are clear."""
    faces, evidence = outline.T
    surface = np.maximum(faces / np.cbrt(voxels.astype(np.float64)) ** 2, _LEAST_SURFACE)
    clarity: NDArray[np.float64] = (evidence / np.maximum(faces, 1) + _FAINT_EVIDENCE) / surface
    return clarity


def choose(candidates: Candidates, num_wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of the candidates that represent all best, in order of choice, and their gains.

    Args:
        candidates: At least one.
        num_wanted: The most rows to choose.

    Returns:
        (rows int64 (n,), gains float64 (n,), descending).
    """
    first, second, share = similar_pairs(candidates.sketches, candidates.voxels, _LEAST_IOU)
    agreement = _agreement(first, second, share, candidates.tree, len(candidates.node))
    # To the power of 3/4, in square roots: these are the same on every machine.
    clear = agreement * candidates.clarity
    weight = np.sqrt(candidates.growth) * np.sqrt(clear * np.sqrt(clear))
    # Octaves begin at the least volume: else one that the limit cuts to two voxels counts as a whole one.
    octave = np.floor(np.log2(candidates.voxels / candidates.voxels.min())).astype(np.int64)
    weight /= np.bincount(octave, weights=weight)[octave]
    begin, near, likeness = _adjacency(first, second, share * share, len(candidates.node))
    rows, gains = _facility_location(begin, near, likeness, weight, num_wanted)
    return rows, np.minimum.accumulate(gains)


def with_second(
    rows: NDArray[np.int64],
    gains: NDArray[np.float64],
    trees: NDArray[np.int32],
    soft: NDArray[np.bool_],
    num_first: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int8]]:
    """Return the chosen regions, and some of the best of them a second time, for rounder copies.

    A region with a noisy outline, or with leaks, may match a tumour once it is rounded, or an organ without
    rounding: so both are proposals. Copies are made of the best regions of the few trees that have most of
    them: each further tree is a volume to paint, and trees agree on large and clear regions.

    Args:
        rows: (N,) chosen rows of the candidates, best first.
        gains: (N,) their gains, descending.
        trees: (N,) the tree of each.
        soft: (T,) whether a tree's regions may be smoothed.
        num_first: Number of the best regions that may be copied.

    Returns:
        Rows and gains (N + M,), gains descending; int8 (N + M,) 1 for copies.
    """
    first = trees[:num_first]
    held = np.bincount(first, minlength=len(soft)) * soft
    most = np.argsort(-held, kind="stable")[:_SECOND_TREES]
    again = np.flatnonzero(np.isin(first, most) & soft[first])
    # Half of the gain: a copy is ranked after regions with more than half of its gain.
    gains = np.concatenate([gains, gains[again] / 2])
    order = np.argsort(-gains, kind="stable")
    second = np.repeat(np.array([0, 1], np.int8), [len(rows), len(again)])
    return np.concatenate([rows, rows[again]])[order], gains[order], second[order]


@numba.njit(cache=True, nogil=True)
def _agreement(
    first: NDArray[np.int32], second: NDArray[np.int32], share: NDArray[np.float32],
    tree: NDArray[np.int32], count: int,
) -> NDArray[np.float64]:  # fmt: skip
    """Return (N,) number of trees with this region, its own included; at most 64 are distinguished."""
    seen = np.zeros(count, np.uint64)
    one = np.uint64(1)
    for i in range(count):
        seen[i] = one << np.uint64(tree[i] & 63)
    for p in range(len(first)):
        if share[p] >= _AGREEMENT_IOU:
            seen[first[p]] |= one << np.uint64(tree[second[p]] & 63)
            seen[second[p]] |= one << np.uint64(tree[first[p]] & 63)
    out = np.empty(count, np.float64)
    for i in range(count):
        bits, number = seen[i], 0
        while bits:
            bits &= bits - one
            number += 1
        out[i] = number
    return out


@numba.njit(cache=True, nogil=True)
def _adjacency(
    first: NDArray[np.int32], second: NDArray[np.int32], share: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return compressed sparse rows: the neighbours of i are near[begin[i]:begin[i + 1]]."""
    begin = np.zeros(count + 1, np.int64)
    for p in range(len(first)):
        begin[first[p] + 1] += 1
        begin[second[p] + 1] += 1
    for i in range(count):
        begin[i + 1] += begin[i]
    free = begin[:-1].copy()
    near = np.empty(2 * len(first), np.int32)
    iou = np.empty(2 * len(first), np.float32)
    for p in range(len(first)):
        a, b = first[p], second[p]
        near[free[a]], iou[free[a]] = b, share[p]
        near[free[b]], iou[free[b]] = a, share[p]
        free[a] += 1
        free[b] += 1
    return begin, near, iou


@numba.njit(cache=True, nogil=True)
def _gain(
    j: int, begin: NDArray[np.int64], near: NDArray[np.int32], iou: NDArray[np.float32],
    weight: NDArray[np.float64], covered: NDArray[np.float32],
) -> Any:  # fmt: skip
    gain = weight[j] * (1.0 - covered[j])
    for k in range(begin[j], begin[j + 1]):
        more = iou[k] - covered[near[k]]
        if more > 0:
            gain += weight[near[k]] * more
    return gain


@numba.njit(cache=True, nogil=True)
def _sink(gains: NDArray[np.float64], rows: NDArray[np.int64], count: int) -> None:
    """Restore a heap (largest gain first, lower row among equals) whose top has changed."""
    i = 0
    while True:
        down = 2 * i + 1
        if down >= count:
            return
        right = down + 1
        if right < count and (
            gains[right] > gains[down] or (gains[right] == gains[down] and rows[right] < rows[down])
        ):
            down = right
        if not (gains[down] > gains[i] or (gains[down] == gains[i] and rows[down] < rows[i])):
            return
        gains[i], gains[down] = gains[down], gains[i]
        rows[i], rows[down] = rows[down], rows[i]
        i = down


@numba.njit(cache=True, nogil=True)
def _facility_location(
    begin: NDArray[np.int64], near: NDArray[np.int32], iou: NDArray[np.float32],
    weight: NDArray[np.float64], num_wanted: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Choose greedily with lazy gains (Minoux, 1978): gains only fall, so the top of the heap is enough."""
    count = len(weight)
    covered = np.zeros(count, np.float32)
    start = np.empty(count, np.float64)
    for j in range(count):
        start[j] = _gain(j, begin, near, iou, weight, covered)
    rows = np.argsort(-start, kind="mergesort")  # a sorted list is a heap
    gains = start[rows]
    chosen = np.empty(min(num_wanted, count), np.int64)
    gained = np.empty(min(num_wanted, count), np.float64)
    done = 0
    while done < len(chosen) and count > 0:
        j = rows[0]
        gains[0] = _gain(j, begin, near, iou, weight, covered)
        _sink(gains, rows, count)
        if rows[0] != j:
            continue
        chosen[done], gained[done] = j, gains[0]
        done += 1
        covered[j] = 1.0
        for k in range(begin[j], begin[j + 1]):
            covered[near[k]] = max(covered[near[k]], iou[k])
        count -= 1
        gains[0], rows[0] = gains[count], rows[count]
        _sink(gains, rows, count)
    return chosen[:done], gained[:done]
