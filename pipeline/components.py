"""Connected components of intensity thresholds, exact to the voxel: air, lung, fat, vessels, bone, hot spots.

Thresholds from low to high give nested components (`bright`: above each threshold; `dark`: below each, from
high to low): a tree. Regions drawn on boundaries cut thin things badly; thresholds do not.

Reads:  smoothed levels of one intensity window, integers (z, y, x).
Writes: `ComponentTree`: the deepest component of each voxel, and which component each lies in.
Bounds: face connectivity; components outside the size limits are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.backend import Backend
from pipeline.regions import tally


@dataclass(frozen=True, kw_only=True)
class ComponentTree:
    """Nested components; number 0 is everything outside them."""

    zones: Any
    """(z, y, x) the innermost component of each voxel, on the backend; uint16, or int32 where needed."""
    inside: NDArray[np.int64]
    """(Z,) the component that each lies in; component 0 lies in itself."""

    def parents(self) -> NDArray[np.int64]:
        """Parents of the `Hierarchy` whose leaves are the zones; component i is its node 2Z-1-i."""
        count = len(self.inside)
        leaves = 2 * count - 1 - np.arange(count)
        nodes = (2 * count - 1 - self.inside)[::-1]
        return np.concatenate([leaves, nodes])


def connected_components(mask: Any, backend: Backend) -> tuple[Any, int]:
    """Face-connected components of a mask: int32 labels, 0 outside, 1..C in scan order, and C."""
    if backend.name == "cpu":
        import cc3d

        labels = cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32).view(np.int32)
        count = int(_renumber(labels.reshape(-1), int(labels.max()) if labels.size else 0))
        return labels, count
    xp = backend.xp
    labels, num_labels = backend.ndimage.label(mask)
    labels, count = labels.astype(xp.int32, copy=False), int(num_labels)
    _, first = tally(labels, count + 1, backend)
    first = first[1:]
    if not bool((first[1:] > first[:-1]).all()):
        number = xp.zeros(count + 1, dtype=xp.int32)
        number[1 + xp.argsort(first)] = xp.arange(1, count + 1, dtype=xp.int32)
        labels = number[labels]
    return labels, count


def component_tree(
    levels: Any,
    thresholds: NDArray[np.integer[Any]],
    *,
    side: Literal["bright", "dark"],
    min_voxels: int,
    max_voxels: int,
    backend: Backend,
) -> ComponentTree:
    """The tree of components beyond each threshold.

    Args:
        levels: Integers (z, y, x) on the backend.
        thresholds: Ascending.
        side: "bright": above a threshold; "dark": at or below it.
        min_voxels: Smaller components are left out.
        max_voxels: Larger ones too.
        backend: Where it runs.
    """
    zones = backend.xp.zeros(levels.shape, dtype=np.uint16)
    inside = [0]
    known = {0: levels.size}
    for threshold in thresholds if side == "bright" else thresholds[::-1]:
        mask = levels > int(threshold) if side == "bright" else levels <= int(threshold)
        labels, count = connected_components(mask, backend)
        del mask
        sizes, holders = _sizes_and_holders(labels, zones, count + 1, backend)
        number = np.zeros(count + 1, np.int32)
        for c in np.flatnonzero((sizes >= min_voxels) & (sizes <= max_voxels)):
            # One that a threshold leaves as it was is no new component.
            if c and known[int(holders[c])] != sizes[c]:
                number[c] = len(inside)
                known[len(inside)] = int(sizes[c])
                inside.append(int(holders[c]))
        if len(inside) > 1 << 16:
            zones = zones.astype(np.int32, copy=False)
        _assign(zones, labels, number, backend)
        del labels
    return ComponentTree(zones=zones, inside=np.array(inside, np.int64))


def _sizes_and_holders(
    labels: Any, zones: Any, count: int, backend: Backend
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Voxels of each label, and the zone of its first voxel; on the host."""
    if backend.name != "gpu":
        return _sizes_and_holders_numba(labels.reshape(-1), zones.reshape(-1), count)
    sizes, first = tally(labels, count, backend)
    holders = zones.ravel()[backend.xp.minimum(first, labels.size - 1)]
    return backend.to_host(sizes).astype(np.int64), backend.to_host(holders).astype(np.int32)


def _assign(zones: Any, labels: Any, number: NDArray[np.int32], backend: Backend) -> None:
    """Give the voxels of each label that has a number that zone, in place."""
    if backend.name != "gpu":
        _assign_numba(zones.reshape(-1), labels.reshape(-1), number)
        return
    new = backend.to_device(number)[labels]
    zones[...] = backend.xp.where(new > 0, new, zones)


@numba.njit(cache=True, nogil=True)
def _renumber(flat: NDArray[np.int32], count: int) -> int:
    """Labels to 1..C in scan order, in place."""
    number = np.zeros(count + 1, np.int32)
    used = 0
    for i in range(len(flat)):
        label = flat[i]
        if label > 0:
            if number[label] == 0:
                used += 1
                number[label] = used
            flat[i] = number[label]
    return used


@numba.njit(cache=True, nogil=True)
def _sizes_and_holders_numba(
    labels: NDArray[np.int32], zones: NDArray[Any], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Voxels of each label, and the zone of its first voxel."""
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
