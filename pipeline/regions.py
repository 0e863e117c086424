"""The region graph: which regions touch, over how many faces, and how strong the boundary is there.

Reads:  labels, int32 (z, y, x), 0..R-1, every voxel labelled; evidence volumes, int32 (z, y, x).
Writes: a `RegionGraph`: pairs of touching regions with the number of their common faces, the sum and the
        least of the evidence over them; and `RegionSums`: voxels, intensity and place of each region.
Bounds: sums are int64. The strength of a face is the larger evidence of its two voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.backend import Backend


@dataclass(frozen=True, kw_only=True)
class RegionGraph:
    """Pairs of touching regions, sorted; all arrays on the host."""

    num_regions: int
    pairs: NDArray[np.int32]
    """(E, 2), the lower region first; rows ascending."""
    faces: NDArray[np.int64]
    """(E,) voxel faces that the two have in common."""
    sums: NDArray[np.int64]
    """(E, K) evidence summed over the faces, one column an evidence volume."""
    lows: NDArray[np.int32]
    """(E, K) least evidence over the faces: the height of the pass between the two regions."""


@dataclass(frozen=True, kw_only=True)
class RegionSums:
    """What regions hold, summed over their voxels."""

    voxels: NDArray[np.int64]
    """(R,)"""
    levels: NDArray[np.int64]
    """(R, W) intensity levels, one column a window."""
    places: NDArray[np.int64]
    """(R, 3) voxel indices z, y, x."""


def region_graph(labels: Any, num_regions: int, evidence: Any, backend: Backend) -> RegionGraph:
    """The graph of touching regions, with one column of strengths for each evidence volume.

    Args:
        labels: int32 (z, y, x), 0..num_regions-1, on the backend.
        num_regions: How many there are.
        evidence: K volumes in one array, int32 (K, z, y, x), on the backend.
        backend: Where it runs.
    """
    if backend.name == "cpu":
        keys, faces, sums, lows = _touching_numba(labels, evidence, num_regions)
    else:
        keys, faces, sums, lows = _touching(labels, list(evidence), backend)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    pairs = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32)
    return RegionGraph(
        num_regions=num_regions, pairs=pairs, faces=faces[order], sums=sums[order], lows=lows[order]
    )


def region_sums(labels: Any, num_regions: int, window_volumes: Sequence[Any], backend: Backend) -> RegionSums:
    """Voxels, intensity levels and voxel indices summed over each region.

    Args:
        labels: int32 (z, y, x) on the backend.
        num_regions: How many there are.
        window_volumes: W volumes int32 (z, y, x) on the backend.
        backend: Where it runs.
    """
    xp = backend.xp
    flat = labels.ravel()

    def summed(values: Any) -> NDArray[np.int64]:
        # Sums stay far below 2^53, so double precision holds them exactly.
        total = xp.bincount(flat, weights=values.ravel().astype(xp.float64), minlength=num_regions)
        return np.asarray(backend.to_host(total)).astype(np.int64)

    voxels = np.asarray(backend.to_host(xp.bincount(flat, minlength=num_regions))).astype(np.int64)
    levels = [summed(volume) for volume in window_volumes]
    places = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = labels.shape[axis]
        index = xp.arange(labels.shape[axis], dtype=xp.int32).reshape(shape)
        places.append(summed(xp.broadcast_to(index, labels.shape)))
    return RegionSums(
        voxels=voxels,
        levels=np.stack(levels, axis=1) if levels else np.zeros((num_regions, 0), np.int64),
        places=np.stack(places, axis=1),
    )


def merge_graph(graph: RegionGraph, new_region: NDArray[np.int32], num_regions: int) -> RegionGraph:
    """The graph after regions are joined: `new_region[r]` is the region that r becomes part of."""
    pairs = new_region[graph.pairs]
    keep = pairs[:, 0] != pairs[:, 1]
    pairs = np.sort(pairs[keep], axis=1).astype(np.int64)
    keys, inverse = np.unique((pairs[:, 0] << 32) | pairs[:, 1], return_inverse=True)
    count, width = len(keys), graph.sums.shape[1]
    faces = np.bincount(inverse, weights=graph.faces[keep], minlength=count).astype(np.int64)
    sums = np.zeros((count, width), np.int64)
    lows = np.full((count, width), np.iinfo(np.int32).max, np.int32)
    for k in range(width):
        sums[:, k] = np.bincount(inverse, weights=graph.sums[keep, k], minlength=count).astype(np.int64)
        np.minimum.at(lows[:, k], inverse, graph.lows[keep, k])
    return RegionGraph(
        num_regions=num_regions,
        pairs=np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32),
        faces=faces,
        sums=sums,
        lows=lows,
    )


def merge_sums(sums: RegionSums, new_region: NDArray[np.int32], num_regions: int) -> RegionSums:
    """What regions hold after they are joined (see `merge_graph`)."""

    def joined(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(new_region, weights=values, minlength=num_regions).astype(np.int64)

    return RegionSums(
        voxels=joined(sums.voxels),
        levels=np.stack([joined(column) for column in sums.levels.T], axis=1),
        places=np.stack([joined(column) for column in sums.places.T], axis=1),
    )


_Touching = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


def _touching(labels: Any, evidence: list[Any], backend: Backend) -> _Touching:
    """Keys (lower << 32 | higher) of touching pairs with their faces, sums and lows; keys ascending."""
    xp = backend.xp
    keys, strengths = [], [[] for _ in evidence]  # type: ignore[var-annotated]
    for axis in range(3):
        a: list[slice] = [slice(None)] * 3
        b: list[slice] = [slice(None)] * 3
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        one, other = labels[tuple(a)].astype(xp.int64), labels[tuple(b)].astype(xp.int64)
        differ = one != other
        one, other = one[differ], other[differ]
        keys.append((xp.minimum(one, other) << 32) | xp.maximum(one, other))
        for k, volume in enumerate(evidence):
            strengths[k].append(xp.maximum(volume[tuple(a)][differ], volume[tuple(b)][differ]))
    unique, inverse = xp.unique(xp.concatenate(keys), return_inverse=True)
    count = len(unique)
    sums = xp.zeros((count, len(evidence)), dtype=xp.int64)
    lows = xp.full((count, len(evidence)), np.iinfo(np.int32).max, dtype=xp.int32)
    for k in range(len(evidence)):
        values = xp.concatenate(strengths[k])
        column = xp.zeros(count, dtype=xp.int64)
        backend.scatter_add(column, inverse, values.astype(xp.int64))
        sums[:, k] = column
        least = xp.full(count, np.iinfo(np.int32).max, dtype=xp.int32)
        backend.scatter_min(least, inverse, values.astype(xp.int32))
        lows[:, k] = least
    faces = xp.bincount(inverse, minlength=count).astype(xp.int64)
    return (
        backend.to_host(unique),
        backend.to_host(faces),
        backend.to_host(sums),
        backend.to_host(lows),
    )


@numba.njit(cache=True, nogil=True)
def _touching_numba(labels: NDArray[np.int32], evidence: NDArray[np.int32], num_regions: int) -> _Touching:
    """As `_touching`, in one pass over the faces; keys in the order in which pairs are met.

    The pairs of a region are a linked list at its lower member. Regions are numbered in scan order,
    so the lists that a row of voxels needs lie close together, which a table of hashed keys would not.
    """
    num_z, num_y, num_x = labels.shape
    width = evidence.shape[0]
    head = np.full(num_regions, -1, np.int32)
    room = 4 * num_regions + 64
    following = np.empty(room, np.int32)
    higher = np.empty(room, np.int32)
    keys = np.empty(room, np.int64)
    faces = np.empty(room, np.int64)
    sums = np.empty((room, width), np.int64)
    lows = np.empty((room, width), np.int32)
    used = 0
    for z in range(num_z):
        for y in range(num_y):
            for x in range(num_x):
                one = labels[z, y, x]
                for d in range(3):
                    zz, yy, xx = z + (d == 0), y + (d == 1), x + (d == 2)
                    if zz == num_z or yy == num_y or xx == num_x:
                        continue
                    other = labels[zz, yy, xx]
                    if one == other:
                        continue
                    a, b = min(one, other), max(one, other)
                    e = head[a]
                    while e >= 0 and higher[e] != b:
                        e = following[e]
                    if e < 0:
                        if used == room:
                            following = np.concatenate((following, np.empty(room, np.int32)))
                            higher = np.concatenate((higher, np.empty(room, np.int32)))
                            keys = np.concatenate((keys, np.empty(room, np.int64)))
                            faces = np.concatenate((faces, np.empty(room, np.int64)))
                            sums = np.concatenate((sums, np.empty((room, width), np.int64)))
                            lows = np.concatenate((lows, np.empty((room, width), np.int32)))
                            room *= 2
                        e = used
                        used += 1
                        following[e], higher[e] = head[a], b
                        head[a] = e
                        keys[e], faces[e] = (np.int64(a) << 32) | b, 0
                        sums[e] = 0
                        lows[e] = np.iinfo(np.int32).max
                    faces[e] += 1
                    for k in range(width):
                        value = max(evidence[k, z, y, x], evidence[k, zz, yy, xx])
                        sums[e, k] += value
                        lows[e, k] = min(lows[e, k], value)
    return keys[:used].copy(), faces[:used].copy(), sums[:used].copy(), lows[:used].copy()
