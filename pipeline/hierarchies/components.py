"""Connected components of intensity thresholds, exact to the voxel: air, lung, fat, vessels, bone, hot spots.

The components of several thresholds are nested, so they form a tree: `bright` above each threshold, `dark` at
or below it. Supervoxels follow boundaries and lose thin structures; thresholds keep them.

On the CPU a component is a set of runs of voxels along x, since there are far fewer runs than voxels.

Reads:  smoothed levels of one intensity window, integers (z, y, x).
Writes: `ComponentTree`: the innermost component of each voxel, and the parent of each component.
Bounds: face connectivity; components outside the size limits are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray, unite
from pipeline.hierarchies.region_totals import tally


@dataclass(frozen=True, kw_only=True)
class ComponentTree:
    """Nested components. Component 0 is the whole volume."""

    zones: DeviceArray
    """(z, y, x) innermost component of each voxel, on the backend; uint16, or int32 for more than 65,536
    components."""
    inside: NDArray[np.int64]
    """(Z,) parent of each component; component 0 is its own parent."""

    def parents(self) -> NDArray[np.int64]:
        """Return the parents of a `Hierarchy` whose leaves are the zones.

        Returns:
            int64 (2Z,); component i is node 2Z-1-i, and its leaf is node i.
        """
        count = len(self.inside)
        leaves = 2 * count - 1 - np.arange(count)
        nodes = (2 * count - 1 - self.inside)[::-1]
        return np.concatenate([leaves, nodes])


def connected_components(mask: DeviceArray, backend: Backend) -> tuple[DeviceArray, int]:
    """Return the face-connected components of a mask, and their number.

    Args:
        mask: bool (z, y, x) on the backend.
        backend: Backend that holds the mask.

    Returns:
        int32 (z, y, x) labels on the backend: 0 outside the mask, 1..C in scan order; and C.
    """
    if backend.name == "cpu":
        runs = _RunComponents.of(mask, 0, above=True)
        labels = np.zeros(mask.shape, np.int32)
        runs.assign(labels, np.arange(runs.count + 1, dtype=np.int32))
        return labels, runs.count
    xp = backend.xp
    labels, num_labels = backend.ndimage.label(mask)
    labels, count = labels.astype(xp.int32, copy=False), int(num_labels)
    _, first = tally(labels, count + 1, backend)
    first = first[1:]
    if not bool((first[1:] > first[:-1]).all()):  # GPU only: SciPy numbers in scan order
        number = xp.zeros(count + 1, dtype=xp.int32)
        number[1 + xp.argsort(first)] = xp.arange(1, count + 1, dtype=xp.int32)
        labels = number[labels]
    return labels, count


def component_tree(
    levels: DeviceArray,
    thresholds: NDArray[np.integer[Any]],
    *,
    side: Literal["bright", "dark"],
    min_voxels: int,
    max_voxels: int,
    backend: Backend,
) -> ComponentTree:
    """Return the tree of the connected components above, or below, each threshold.

    Args:
        levels: Integers (z, y, x) on the backend.
        thresholds: Integers (K,), ascending.
        side: "bright" for voxels above a threshold, "dark" for those at or below it.
        min_voxels: Smaller components are left out.
        max_voxels: Larger components are left out.
        backend: Backend that holds the levels.

    Returns:
        The components, and component 0 for the whole volume. Parents have lower numbers than their children.
    """
    zones = backend.xp.zeros(levels.shape, dtype=np.uint16)
    inside = [0]
    known = {0: levels.size}
    for threshold in thresholds if side == "bright" else thresholds[::-1]:
        found = _components_beyond(levels, int(threshold), side, backend)
        sizes, holders = found.sizes_and_holders(zones)
        number = np.zeros(found.count + 1, np.int32)
        for c in np.flatnonzero((sizes >= min_voxels) & (sizes <= max_voxels)):
            # A component of the same size as its parent is the same component.
            if c and known[int(holders[c])] != sizes[c]:
                number[c] = len(inside)
                known[len(inside)] = int(sizes[c])
                inside.append(int(holders[c]))
        if len(inside) > 1 << 16:
            zones = zones.astype(np.int32, copy=False)
        found.assign(zones, number)
        del found
    return ComponentTree(zones=zones, inside=np.array(inside, np.int64))


def _components_beyond(
    levels: DeviceArray, threshold: int, side: Literal["bright", "dark"], backend: Backend
) -> _RunComponents | _VoxelComponents:
    """Return the components of the voxels above a threshold (bright), or at or below it (dark)."""
    if backend.name == "cpu":
        return _RunComponents.of(levels, threshold, above=side == "bright")
    mask = levels > threshold if side == "bright" else levels <= threshold
    labels, count = connected_components(mask, backend)
    return _VoxelComponents(labels=labels, count=count, backend=backend)


@dataclass(frozen=True, kw_only=True)
class _VoxelComponents:
    """Components stored as one label per voxel, on any backend."""

    labels: DeviceArray
    """int32 (z, y, x), 0 outside, 1..C in scan order."""
    count: int
    backend: Backend

    def sizes_and_holders(self, zones: DeviceArray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return (C + 1,) voxels of each label, and the zone of its first voxel; on the host."""
        if self.backend.name != "gpu":
            return _sizes_and_holders_numba(self.labels.reshape(-1), zones.reshape(-1), self.count + 1)
        sizes, first = tally(self.labels, self.count + 1, self.backend)
        holders = zones.ravel()[self.backend.xp.minimum(first, self.labels.size - 1)]
        return self.backend.to_host(sizes).astype(np.int64), self.backend.to_host(holders).astype(np.int32)

    def assign(self, zones: DeviceArray, number: NDArray[np.int32]) -> None:
        """Set the zone of all voxels whose label has a new number above 0, in place.

        Args:
            zones: Integers (z, y, x).
            number: int32 (C + 1,) new zone of each label; 0 leaves the zone unchanged.
        """
        if self.backend.name != "gpu":
            _assign_numba(zones.reshape(-1), self.labels.reshape(-1), number)
            return
        new = self.backend.to_device(number)[self.labels]
        zones[...] = self.backend.xp.where(new > 0, new, zones)


@dataclass(frozen=True, kw_only=True)
class _RunComponents:
    """Components stored as runs of voxels along x, on the CPU."""

    begin: NDArray[np.int64]
    """(rows + 1,) index of the first run of each row of voxels; rows in scan order."""
    edges: NDArray[np.int32]
    """(2 runs,) first x of each run, and one past its last x."""
    labels: NDArray[np.int32]
    """(runs,) component of each run, 1..C in scan order."""
    count: int

    @classmethod
    def of(cls, levels: NDArray[Any], threshold: int, *, above: bool) -> _RunComponents:
        """Return the components of the voxels above a threshold, or at or below it."""
        rows = levels.reshape(-1, levels.shape[2])
        begin = np.zeros(len(rows) + 1, np.int64)
        edges = np.empty(2 * _count_runs(rows, threshold, above) + 1, np.int32)
        _find_runs(rows, threshold, above, begin, edges)
        labels = np.arange(begin[-1]).astype(np.int32)
        count = _join_runs(begin, edges, max(1, levels.shape[1]), labels)
        return cls(begin=begin, edges=edges, labels=labels, count=int(count))

    def sizes_and_holders(self, zones: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the same as `_VoxelComponents.sizes_and_holders`, but without values for label 0."""
        rows = zones.reshape(-1, zones.shape[2])
        return _sizes_of_runs(self.begin, self.edges, self.labels, rows, self.count + 1)

    def assign(self, zones: NDArray[Any], number: NDArray[np.int32]) -> None:
        """Do the same as `_VoxelComponents.assign`."""
        _assign_runs(self.begin, self.edges, self.labels, zones.reshape(-1, zones.shape[2]), number)


@numba.njit(cache=True, nogil=True)
def _count_runs(rows: NDArray[Any], threshold: int, above: bool) -> int:
    count = np.int32(0)
    for r in range(len(rows)):
        row = rows[r]
        starts = np.int32((row[0] > threshold) == above)
        for x in range(1, len(row)):
            starts += np.int32(((row[x] > threshold) == above) & ((row[x - 1] > threshold) != above))
        count += starts
    return int(count)


@numba.njit(cache=True, nogil=True)
def _find_runs(
    rows: NDArray[Any], threshold: int, above: bool, begin: NDArray[np.int64], edges: NDArray[np.int32]
) -> None:
    """Fill in the runs. Every x is written, and the index moves on only at the ends of a run: no branches."""
    e = 0
    for r in range(len(rows)):
        before = False
        for x in range(rows.shape[1]):
            here = (rows[r, x] > threshold) == above
            edges[e] = x
            e += here != before
            before = here
        if before:
            edges[e] = rows.shape[1]
            e += 1
        begin[r + 1] = e // 2


@numba.njit(cache=True, nogil=True)
def _join_runs(
    begin: NDArray[np.int64], edges: NDArray[np.int32], num_y: int, root: NDArray[np.int32]
) -> int:
    """Replace each run's own number by its component 1..C, in place; return C.

    A root is the first run of its component.
    """
    for r in range(len(begin) - 1):
        for axis in range(2):
            step = 1 if axis else num_y
            if r < step or (axis and r % num_y == 0):
                continue
            i, j = begin[r], begin[r - step]
            while i < begin[r + 1] and j < begin[r - step + 1]:
                if edges[2 * i] < edges[2 * j + 1] and edges[2 * j] < edges[2 * i + 1]:
                    unite(root, i, j)
                if edges[2 * i + 1] < edges[2 * j + 1]:
                    i += 1
                else:
                    j += 1
    count = 0
    for i in range(len(root)):  # the parent of a run comes before it, so it has its label already
        if root[i] == i:
            count += 1
            root[i] = count
        else:
            root[i] = root[root[i]]
    return count


@numba.njit(cache=True, nogil=True)
def _sizes_of_runs(
    begin: NDArray[np.int64], edges: NDArray[np.int32], labels: NDArray[np.int32], zones: NDArray[Any],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:  # fmt: skip
    sizes = np.zeros(count, np.int64)
    holders = np.full(count, -1, np.int32)
    for r in range(len(zones)):
        for i in range(begin[r], begin[r + 1]):
            if sizes[labels[i]] == 0:
                holders[labels[i]] = zones[r, edges[2 * i]]
            sizes[labels[i]] += edges[2 * i + 1] - edges[2 * i]
    return sizes, holders


@numba.njit(cache=True, nogil=True)
def _assign_runs(
    begin: NDArray[np.int64], edges: NDArray[np.int32], labels: NDArray[np.int32], zones: NDArray[Any],
    number: NDArray[np.int32],
) -> None:  # fmt: skip
    for r in range(len(zones)):
        for i in range(begin[r], begin[r + 1]):
            new = number[labels[i]]
            if new > 0:
                zones[r, edges[2 * i] : edges[2 * i + 1]] = new


@numba.njit(cache=True, nogil=True)
def _sizes_and_holders_numba(
    labels: NDArray[np.int32], zones: NDArray[Any], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return (C + 1,) voxels of each label, and the zone of its first voxel."""
    sizes = np.zeros(count, np.int64)
    holders = np.full(count, -1, np.int32)
    for i in range(len(labels)):
        label = labels[i]
        if sizes[label] == 0:
            holders[label] = zones[i]
        sizes[label] += 1
    return sizes, holders


@numba.njit(cache=True, nogil=True)
def _assign_numba(zones: NDArray[Any], labels: NDArray[np.int32], number: NDArray[np.int32]) -> None:
    for i in range(len(zones)):
        new = number[labels[i]]
        if new > 0:
            zones[i] = new
