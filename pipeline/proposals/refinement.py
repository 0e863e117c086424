"""The common refinement: the partition of the voxels that separates the chosen regions.

    chosen nodes --smooth outlines--> regions, a volume per nest --split by each (splitting.py)--> refinement

Reads:  partitions, int32 or uint16 (z, y, x); hierarchies over them; chosen (tree, node) pairs.
Writes: `Refinement`: atoms, int32 (z, y, x), 0..A-1 in scan order, and which regions each lies in.
Bounds: fewer than 65,535 chosen regions and 2^31 atoms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend, DeviceArray, for_each, over_slabs
from pipeline.hierarchies import Hierarchy
from pipeline.proposals.nests import Nest
from pipeline.proposals.outlines import Outlines, paint_smoothed, region_boxes
from pipeline.proposals.splitting import Pieces

Chosen = Sequence[tuple[int, int]]
"""(tree, node) of each chosen region, best first."""


_GONE = np.empty((0, 0, 0), np.int32)


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The chosen regions and the partition of the voxels that separates them."""

    chosen: tuple[tuple[int, int], ...]
    """(tree, node) of each region, best first."""
    atoms: DeviceArray
    """int32 (z, y, x) 0..A-1 in scan order, on the backend."""
    ranks: NDArray[np.uint16]
    """(A, T) for each tree that has chosen regions: 1 + rank of the innermost one around an atom, or 0."""
    nests: tuple[Nest, ...]
    """(T,) the chosen regions of these trees, by rank."""
    atom_voxels: NDArray[np.int64]
    """(A,) voxels of each atom."""
    atom_boxes: NDArray[np.int32]
    """(A, 6) z0, y0, x0, z1, y1, x1, half open."""


def refine_consuming(
    partitions: list[DeviceArray],
    hierarchies: list[Hierarchy],
    chosen: Chosen,
    *,
    outlines: Sequence[Outlines] = (),
    style: NDArray[np.int8] | None = None,
    at_once: int = 1,
    backend: Backend = HOST,
) -> Refinement:
    """Return the atoms that separate the chosen regions.

    Args:
        partitions: Label volumes on the backend, whose regions are the leaves of the hierarchies. The list is
        empty afterwards: each volume is freed after its last use.
        hierarchies: The trees. The list is empty afterwards: they take some bytes per voxel.
        chosen: At least one region, at most 65,534 of them.
        outlines: Outline settings; without any, no region is smoothed. Level sets never are.
        style: (N,) index of each chosen region's outline settings; the first if not given.
        at_once: Number of trees that are painted at once on the CPU; each takes a volume.
        backend: Where it runs.
    """
    leaves = [measure(labels, _num_leaves(hierarchies, p), backend) for p, labels in enumerate(partitions)]
    volumes = _volumes(hierarchies, leaves, chosen)
    style = np.zeros(len(chosen), np.int8) if style is None else style
    sigmas, width = _blurs(hierarchies, chosen, volumes, outlines, style)
    nests = _nests(hierarchies, chosen, style, width)

    partition_of = [hierarchies[nest.tree].partition for nest in nests]
    innermost = [_innermost(nest, hierarchies[nest.tree]) for nest in nests]
    hierarchies.clear()

    at_once = min(at_once, backend.volume_threads)
    pieces = Pieces(partitions[0].shape, backend, at_once=at_once)
    waiting = Counter(partition_of)
    turn = Lock()

    def paint_and_split(column: int) -> None:
        nest, p, around = nests[column], partition_of[column], innermost[column]
        volume = _painted(nest, around, partitions[p], leaves[p][1], sigmas[nest.place], outlines, backend)
        with turn:
            waiting[p] -= 1
            if not waiting[p]:
                partitions[p] = _GONE
        pieces.split(column, volume)

    for_each(paint_and_split, range(len(nests)), at_once)
    partitions.clear()
    atoms, ranks = pieces.numbered(len(nests))
    voxels, boxes = measure(atoms, len(ranks), backend)
    return Refinement(
        chosen=tuple(chosen),
        atoms=atoms,
        ranks=ranks,
        nests=tuple(nests),
        atom_voxels=voxels,
        atom_boxes=boxes,
    )


def _painted(
    nest: Nest,
    innermost: NDArray[np.uint16],
    labels: DeviceArray,
    leaf_boxes: NDArray[np.int32],
    sigmas: NDArray[np.float64],
    outlines: Sequence[Outlines],
    backend: Backend,
) -> DeviceArray:
    """Return uint16 (z, y, x): 1 + rank of the innermost region of a nest at each voxel, smoothed; or 0.

    Args:
        nest: Chosen regions of one tree.
        innermost: (R,) 1 + rank of the smallest of them around each leaf, or 0.
        labels: (z, y, x) leaf of each voxel, on the backend.
        leaf_boxes: (R, 6) of the leaves.
        sigmas: (N,) width of the blur of each region, in voxels.
        outlines: Outline settings.
        backend: Where it runs.
    """
    if not sigmas.any():
        return gathered(innermost, labels, backend)
    boxes = region_boxes(leaf_boxes, innermost, nest.parent)
    way = outlines[nest.style]
    return paint_smoothed(labels, innermost, nest.parent, nest.last, sigmas, boxes, way, backend)


def _innermost(nest: Nest, hierarchy: Hierarchy) -> NDArray[np.uint16]:
    """Return (R,) 1 + rank of the smallest chosen region that contains each leaf, 0 for none."""
    inside = np.zeros(hierarchy.num_leaves, np.uint16)
    for rank, node in enumerate(nest.nodes):
        inside[hierarchy.start[node] : hierarchy.stop[node]] = rank + 1
    return inside[hierarchy.start[: hierarchy.num_leaves]]


def _num_leaves(hierarchies: Sequence[Hierarchy], partition: int) -> int:
    return next((tree.num_leaves for tree in hierarchies if tree.partition == partition), 0)


def _volumes(
    hierarchies: Sequence[Hierarchy],
    leaves: Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]],
    chosen: Chosen,
) -> NDArray[np.int64]:
    """Return (N,) voxels of the chosen regions, before they are smoothed."""
    volumes = np.empty(len(chosen), np.int64)
    trees, nodes = np.array(chosen, np.int64).T
    for tree in np.unique(trees).tolist():
        hierarchy = hierarchies[tree]
        here = trees == tree
        volumes[here] = hierarchy.sums(leaves[hierarchy.partition][0][:, None])[nodes[here], 0]
    return volumes


def _blurs(
    hierarchies: Sequence[Hierarchy],
    chosen: Chosen,
    volumes: NDArray[np.int64],
    outlines: Sequence[Outlines],
    style: NDArray[np.int8],
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Return (N,) blur of each chosen region in voxels, and (N,) its class of width (`Outlines.widths`)."""
    sigmas, width = np.zeros(len(chosen)), np.zeros(len(chosen), np.int8)
    soft = np.array([not hierarchies[tree].level_sets for tree, _ in chosen])
    for number, way in enumerate(outlines):
        here = soft & (style == number)
        sigmas[here], width[here] = way.sigmas(volumes[here]), way.widths(volumes[here])
    return sigmas, width


def _nests(
    hierarchies: Sequence[Hierarchy], chosen: Chosen, style: NDArray[np.int8], width: NDArray[np.int8]
) -> list[Nest]:
    """Return the chosen nodes by tree, and within a tree by outline settings and width of blur."""
    wanted: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for place, (tree, node) in enumerate(chosen):
        wanted.setdefault((tree, int(style[place]), int(width[place])), []).append((node, place))
    return [
        Nest.of(key[0], hierarchies[key[0]], *map(list, zip(*wanted[key], strict=True)), style=key[1])
        for key in sorted(wanted)
    ]


def gathered(table: NDArray[Any], labels: DeviceArray, backend: Backend = HOST) -> DeviceArray:
    """Return `table[labels]` on the backend, without the 64-bit indices that NumPy would make of labels."""
    if backend.name == "gpu":
        return backend.to_device(table)[labels]
    out = np.empty(labels.shape, table.dtype)

    def gather(start: int, stop: int) -> None:
        _gather(table, labels[start:stop].reshape(-1), out[start:stop].reshape(-1))

    over_slabs(gather, labels.shape, backend.num_threads)
    return out


@numba.njit(cache=True, nogil=True)
def _gather(table: NDArray[Any], labels: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(len(labels)):
        out[i] = table[labels[i]]


def measure(
    atoms: DeviceArray, count: int, backend: Backend = HOST
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return (A,) voxels and (A, 6) boxes z0, y0, x0, z1, y1, x1 of the atoms of a volume on the backend."""
    if backend.name != "gpu":
        voxels, boxes = _measure(atoms, count)
        return voxels, boxes
    xp = backend.xp
    sizes, corners = xp.zeros(count, dtype=xp.int32), xp.zeros((count, 6), dtype=xp.int32)
    corners[:, :3] = np.iinfo(np.int32).max
    depth, height, width = atoms.shape
    stretches = depth * height * -(-width // 32)
    shape = [np.int32(n) for n in atoms.shape]
    backend.launch("measure", stretches, atoms.astype(xp.int32, copy=False), *shape, sizes, corners)
    return backend.to_host(sizes).astype(np.int64), backend.to_host(corners)


@numba.njit(cache=True, nogil=True)
def _measure(atoms: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Do the same as `measure`, on the CPU."""
    num_z, num_y, num_x = atoms.shape
    voxels = np.zeros(count, np.int64)
    boxes = np.empty((count, 6), np.int32)
    boxes[:, :3] = np.iinfo(np.int32).max
    boxes[:, 3:] = 0
    for z in range(num_z):
        for y in range(num_y):
            for x in range(num_x):
                a = atoms[z, y, x]
                voxels[a] += 1
                boxes[a, 0], boxes[a, 3] = min(boxes[a, 0], z), max(boxes[a, 3], z + 1)
                boxes[a, 1], boxes[a, 4] = min(boxes[a, 1], y), max(boxes[a, 4], y + 1)
                boxes[a, 2], boxes[a, 5] = min(boxes[a, 2], x), max(boxes[a, 5], x + 1)
    return voxels, boxes
