"""The region graph: pairs of touching regions, their common faces, and the strength of the boundary there.

Reads:  labels, int32 (z, y, x), 0..R-1, every voxel labelled; evidence volumes, int32 or uint16 (z, y, x).
Writes: a `RegionGraph`: pairs of touching regions with the number of their common faces, the sum and the
        least of the evidence over them.
Bounds: sums are int64. The strength of a face is the larger evidence of its two voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend, DeviceArray, slabs_of


@dataclass(kw_only=True)
class RegionGraph:
    """Pairs of touching regions, sorted; trees are grown over one on the host."""

    num_regions: int
    pairs: DeviceArray
    """int32 (E, 2), the lower region first; rows ascending."""
    faces: DeviceArray
    """int32 (E,) voxel faces that the two have in common."""
    sums: DeviceArray
    """int64 (E, K) evidence summed over the faces, one column per evidence volume."""
    lows: DeviceArray
    """int32 (E, K) least evidence over the faces: the height of the pass between the two regions."""

    def on_host(self, backend: Backend) -> RegionGraph:
        """Return the graph with its arrays copied from the backend to the host."""
        arrays = {name: backend.to_host(getattr(self, name)) for name in ("pairs", "faces", "sums", "lows")}
        return RegionGraph(num_regions=self.num_regions, **arrays)

    def take(self, name: str) -> DeviceArray:
        """Take a column out of the graph and return it, so that the caller can free its memory."""
        column = getattr(self, name)
        setattr(self, name, column[:0].copy())
        return column


def region_graph(
    labels: DeviceArray, num_regions: int, evidence: DeviceArray, backend: Backend
) -> RegionGraph:
    """Return the graph of touching regions, on the backend, with a column of strengths per evidence volume.

    Args:
        labels: int32 (z, y, x), 0..num_regions-1, on the backend.
        num_regions: Number of regions.
        evidence: K volumes in one array, int32 or uint16 (K, z, y, x), on the backend.
        backend: Where it runs.
    """
    if backend.name == "cpu":
        return _touching_graph(labels, evidence, num_regions)
    return _graph_of(num_regions, _touching(labels, list(evidence), backend), backend)


def _graph_of(
    num_regions: int, gathered: tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray], backend: Backend
) -> RegionGraph:
    """Return the graph from the results of `_gathered_pairs`."""
    xp, (keys, faces, sums, lows) = backend.xp, gathered
    return RegionGraph(
        num_regions=num_regions,
        pairs=xp.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(xp.int32),
        faces=faces.astype(xp.int32),
        sums=xp.ascontiguousarray(sums.T),
        lows=xp.ascontiguousarray(lows.T.astype(xp.int32)),
    )


def merge_graph_consuming(
    graph: RegionGraph, new_region: NDArray[np.int32], num_regions: int, backend: Backend = HOST
) -> RegionGraph:
    """Return the graph, on the backend, after regions are joined.

    Args:
        graph: On the backend. It is empty afterwards: freeing it column by column halves the memory.
        new_region: (R,) the region that each becomes part of.
        num_regions: Number of regions after the join.
        backend: Where it runs.
    """
    if backend.name == "gpu":
        xp = backend.xp
        ends = backend.to_device(new_region)[graph.take("pairs")].astype(xp.int64)
        one, other = ends[:, 0], ends[:, 1]
        kept = one != other
        keys = ((xp.minimum(one, other) << 32) | xp.maximum(one, other))[kept]
        faces, sums, lows = (graph.take(name)[kept].astype(xp.int64) for name in ("faces", "sums", "lows"))
        return _graph_of(
            num_regions, _gathered_pairs(keys, faces, list(sums.T), list(lows.T), backend), backend
        )
    keys = _joined_keys(graph.take("pairs"), new_region)
    order = np.argsort(keys, kind="stable")  # nearly sorted already
    count = _num_joined(keys, order)
    pairs, place = np.empty((count, 2), np.int32), np.empty(len(keys), np.int32)
    _place_joined(keys, order, pairs, place)
    del keys, order
    width = graph.sums.shape[1]
    faces = np.zeros((count, 1), np.int32)
    _add_joined(place, graph.take("faces")[:, None], faces)
    sums = np.zeros((count, width), np.int64)
    _add_joined(place, graph.take("sums"), sums)
    lows = np.full((count, width), np.iinfo(np.int32).max, np.int32)
    _least_joined(place, graph.take("lows"), lows)
    return RegionGraph(num_regions=num_regions, pairs=pairs, faces=faces[:, 0], sums=sums, lows=lows)


_SHORT = 48
"""Lists of at most this many pairs are sorted by insertion."""


def _touching(
    labels: DeviceArray, evidence: list[DeviceArray], backend: Backend
) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray]:
    """Return the same as `_gathered_pairs`, for the touching regions of a volume.

    A few planes at a time, since there are many faces and few pairs.
    """
    xp = backend.xp
    parts = []
    for start, stop in slabs_of(labels.shape, 1):
        planes = slice(start, stop + 1)  # and the next, for the faces towards it
        keys, strengths = _faces(labels[planes], [volume[planes] for volume in evidence], stop - start, xp)
        strengths = [values.astype(xp.int64) for values in strengths]
        parts.append(
            _gathered_pairs(keys, xp.ones(keys.shape, dtype=xp.int64), strengths, strengths, backend)
        )
    keys, faces = (xp.concatenate([part[i] for part in parts]) for i in range(2))
    sums, lows = (xp.concatenate([part[i] for part in parts], axis=1) for i in (2, 3))
    return _gathered_pairs(keys, faces, list(sums), list(lows), backend)


def _faces(
    labels: DeviceArray, evidence: list[DeviceArray], num_planes: int, xp: Any
) -> tuple[DeviceArray, list[DeviceArray]]:
    """Return the key of each face between two regions, and its strength in each volume.

    Faces of the first `num_planes` planes, those towards the next one included.
    """
    keys, strengths = [], [[] for _ in evidence]  # type: ignore[var-annotated]
    for axis in range(3):
        a: list[slice] = [slice(None, num_planes), slice(None), slice(None)]
        b: list[slice] = [slice(None, num_planes), slice(None), slice(None)]
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        one, other = labels[tuple(a)].astype(xp.int64), labels[tuple(b)].astype(xp.int64)
        differ = one != other
        one, other = one[differ], other[differ]
        keys.append((xp.minimum(one, other) << 32) | xp.maximum(one, other))
        for k, volume in enumerate(evidence):
            strengths[k].append(xp.maximum(volume[tuple(a)][differ], volume[tuple(b)][differ]))
    return xp.concatenate(keys), [xp.concatenate(values) for values in strengths]


def _gathered_pairs(
    keys: DeviceArray, faces: DeviceArray, sums: list[DeviceArray], lows: list[DeviceArray], backend: Backend
) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray]:
    """Return the distinct keys (lower << 32 | higher), ascending, with faces, sums (K, E), minima (K, E)."""
    xp = backend.xp
    unique, inverse = xp.unique(keys, return_inverse=True)
    count = len(unique)
    total = xp.zeros(count, dtype=xp.int64)
    backend.scatter_add(total, inverse, faces)
    added = xp.zeros((len(sums), count), dtype=xp.int64)
    least = xp.full((len(lows), count), np.iinfo(np.int64).max, dtype=xp.int64)
    for k, (some, low) in enumerate(zip(sums, lows, strict=True)):
        backend.scatter_add(added[k], inverse, some)
        backend.scatter_min(least[k], inverse, low)
    return unique, total, added, least


@dataclass(kw_only=True)
class _Table:
    """Pairs while they are collected, in the order of their first faces.

    The pairs of a region are a linked list at its lower member. Regions are numbered in scan order,
    so the lists for a row of voxels are close together in memory; entries of a hash table would not be.
    """

    links: NDArray[np.int32]
    """(E, 2) the next pair of the list, and the higher region."""
    faces: NDArray[np.int32]
    sums: NDArray[np.int64]
    lows: NDArray[np.int32]

    @classmethod
    def of(cls, room: int, width: int) -> _Table:
        """Return an empty table for `room` pairs, with `width` evidence volumes."""
        return cls(
            links=np.empty((room, 2), np.int32),
            faces=np.empty(room, np.int32),
            sums=np.empty((room, width), np.int64),
            lows=np.empty((room, width), np.int32),
        )

    @property
    def columns(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """All arrays, for the compiled loops."""
        return self.links, self.faces, self.sums, self.lows

    def grow(self, num_pairs: int) -> None:
        """Make room for `num_pairs` more pairs and half of the present capacity."""
        more = _Table.of(len(self.faces) // 2 + num_pairs, self.sums.shape[1])
        self.links = np.concatenate((self.links, more.links))
        self.faces = np.concatenate((self.faces, more.faces))
        self.sums = np.concatenate((self.sums, more.sums))
        self.lows = np.concatenate((self.lows, more.lows))

    def graph(self, head: NDArray[np.int32], used: int) -> RegionGraph:
        """Return the graph of the sorted pairs; the table is emptied column by column, to save memory."""
        order, pairs = np.empty(used, np.int32), np.empty((used, 2), np.int32)
        _sorted_pairs(head, self.links, order, pairs)
        self.links = self.links[:0].copy()
        self.faces = self.faces[order]
        self.sums = self.sums[order]
        self.lows = self.lows[order]
        return RegionGraph(
            num_regions=len(head), pairs=pairs, faces=self.faces, sums=self.sums, lows=self.lows
        )


def _touching_graph(labels: NDArray[np.int32], evidence: NDArray[Any], num_regions: int) -> RegionGraph:
    """Return the same as `_touching`, in one pass over the faces.

    A full table is enlarged here: a compiled loop that does so itself is far slower.
    """
    head = np.full(num_regions, -1, np.int32)
    table = _Table.of(8 * num_regions + 64, evidence.shape[0])
    row, used = 0, 0
    while True:
        row, used = _touching_numba(labels, evidence, head, table.columns, row, used)
        if row == labels.shape[0] * labels.shape[1]:
            return table.graph(head, used)
        table.grow(3 * labels.shape[2])


@numba.njit(cache=True, nogil=True)
def _sorted_pairs(
    head: NDArray[np.int32], links: NDArray[np.int32], order: NDArray[np.int32], pairs: NDArray[np.int32]
) -> None:
    """Write the indices of the pairs in ascending order, and the pairs."""
    done = 0
    for a in range(len(head)):
        first, e = done, head[a]
        while e >= 0:
            pairs[done, 0], pairs[done, 1], order[done] = a, links[e, 1], e
            done += 1
            e = links[e, 0]
        if done - first > _SHORT:
            rank = np.argsort(pairs[first:done, 1])
            pairs[first:done, 1] = pairs[first:done, 1][rank]
            order[first:done] = order[first:done][rank]
            continue
        for i in range(first + 1, done):
            b, e, j = pairs[i, 1], order[i], i
            while j > first and pairs[j - 1, 1] > b:
                pairs[j, 1], order[j] = pairs[j - 1, 1], order[j - 1]
                j -= 1
            pairs[j, 1], order[j] = b, e


@numba.njit(cache=True, nogil=True)
def _joined_keys(pairs: NDArray[np.int32], new_region: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return lower << 32 | higher region of each pair after the join; the largest int64 if equal."""
    keys = np.empty(len(pairs), np.int64)
    for p in range(len(pairs)):
        one, other = np.int64(new_region[pairs[p, 0]]), np.int64(new_region[pairs[p, 1]])
        keys[p] = (min(one, other) << 32) | max(one, other) if one != other else np.iinfo(np.int64).max
    return keys


@numba.njit(cache=True, nogil=True)
def _num_joined(keys: NDArray[np.int64], order: NDArray[np.int64]) -> Any:
    """Return the number of pairs that are left."""
    count, last = 0, np.int64(-1)
    for p in order:
        if keys[p] == np.iinfo(np.int64).max:
            break
        count += keys[p] != last
        last = keys[p]
    return count


@numba.njit(cache=True, nogil=True)
def _place_joined(
    keys: NDArray[np.int64], order: NDArray[np.int64], pairs: NDArray[np.int32], place: NDArray[np.int32]
) -> None:
    """Write the pairs that are left, and the new index of each old pair, -1 for none."""
    e, last = -1, np.int64(-1)
    for p in order:
        if keys[p] == np.iinfo(np.int64).max:
            place[p] = -1
            continue
        if keys[p] != last:
            e, last = e + 1, keys[p]
            pairs[e, 0], pairs[e, 1] = last >> 32, last & 0xFFFFFFFF
        place[p] = e


@numba.njit(cache=True, nogil=True)
def _add_joined(place: NDArray[np.int32], old: NDArray[Any], new: NDArray[Any]) -> None:
    for p in range(len(place)):
        if place[p] >= 0:
            for k in range(old.shape[1]):
                new[place[p], k] += old[p, k]


@numba.njit(cache=True, nogil=True)
def _least_joined(place: NDArray[np.int32], old: NDArray[Any], new: NDArray[Any]) -> None:
    for p in range(len(place)):
        if place[p] >= 0:
            for k in range(old.shape[1]):
                new[place[p], k] = min(new[place[p], k], old[p, k])


@numba.njit(cache=True, nogil=True)
def _touching_numba(
    labels: NDArray[np.int32],
    evidence: NDArray[Any],
    head: NDArray[np.int32],
    columns: Any,
    row: int,
    used: int,
) -> Any:
    """Collect the pairs from a row of voxels on, until the last row or until the table may be too small.

    Neighbouring faces mostly lie between the same two regions: `recent` holds regions and pair of the last
    face at each x, so that few lists are searched. `columns` are those of `_Table`. Returns (rows done, pairs
    used).
    """
    links, faces, sums, lows = columns
    num_z, num_y, num_x = labels.shape
    width = evidence.shape[0]
    recent = np.full((num_x, 3, 3), -1, np.int32)
    while row < num_z * num_y:
        if used + 3 * num_x > len(faces):
            break
        z, y = row // num_y, row % num_y
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
                if recent[x, d, 0] == a and recent[x, d, 1] == b:
                    e = recent[x, d, 2]
                elif x > 0 and recent[x - 1, d, 0] == a and recent[x - 1, d, 1] == b:
                    e = recent[x - 1, d, 2]
                else:
                    e = head[a]
                    while e >= 0 and links[e, 1] != b:
                        e = links[e, 0]
                if e < 0:
                    e = used
                    used += 1
                    links[e, 0], links[e, 1] = head[a], b
                    head[a] = e
                    faces[e] = 0
                    for k in range(width):
                        sums[e, k], lows[e, k] = 0, np.iinfo(np.int32).max
                recent[x, d, 0], recent[x, d, 1], recent[x, d, 2] = a, b, e
                faces[e] += 1
                for k in range(width):
                    value = np.int32(max(evidence[k, z, y, x], evidence[k, zz, yy, xx]))
                    sums[e, k] += value
                    lows[e, k] = min(lows[e, k], value)
        row += 1
    return row, used
