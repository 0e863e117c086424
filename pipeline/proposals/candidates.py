"""Partitions of a scan's voxels and the trees over them, with the nodes that may become proposals.

    supervoxels, fine and coarse, or voxels --graph--> merged: at most `max_regions` leaves --> trees
    thresholds --> connected components, bright and dark --> a tree of each

Reads:  a `Scene`: the image through its windows, boundary evidence, the body.
Writes: a `Grown` for each partition; its label volume is on the backend.
Bounds: fewer than 2^31 voxels. Large graphs are made one at a time, to bound memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray
from pipeline.hierarchies import (
    NUM_LEVELS,
    Hierarchy,
    Levels,
    RegionGraph,
    RegionSums,
    TreeSpec,
    Window,
    basins,
    component_tree,
    count_inside,
    grow,
    join_flat,
    join_lowest_pass_in_place,
    leaf_sketches,
    merge_graph_consuming,
    merge_sums,
    merge_weakest_consuming,
    region_graph,
    region_sums,
    relabel_in_place,
)
from pipeline.proposals.calibration import Calibration
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.refinement import gathered
from pipeline.proposals.selection import Candidates, Leaves, candidates_of

_MANY = 4
"""Multiple of `max_regions`: if there are more basins, they are merged over their lowest pass before
a graph is made."""

PartitionName = Literal["fine", "coarse", "voxels"]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A partition of the voxels, with the trees over it and their candidates."""

    labels: DeviceArray
    """Leaf of each voxel, integers (z, y, x) on the backend."""
    hierarchies: tuple[Hierarchy, ...]
    candidates: tuple[Candidates, ...]


@dataclass(kw_only=True)
class Scene:
    """Input of all partitions of a scan. Several threads use it; it is made anew for each scan."""

    levels: Levels
    """The image through each intensity window."""
    evidence: DeviceArray
    """Integers (K, z, y, x), one volume per scale, on the backend; None once no partition needs them."""
    body: Future[DeviceArray]
    """bool (z, y, x) on the backend; computed beside the first partitions."""
    voxel_limits: tuple[int, int]
    """Least and largest volume of a proposal, in voxels."""
    config: ProposalConfig
    backend: Backend
    one_large_graph: Lock = field(default_factory=Lock)
    """Lock, held while a graph of more than `max_regions` regions is in memory."""


def grow_partition(name: PartitionName, scene: Scene) -> Grown | None:
    """Return supervoxels at one scale (or voxels), and the trees over them; None without regions."""
    num_windows = len(scene.levels.windows)
    specs = [spec for spec in scene.config.specs if spec.partition == name and spec.window < num_windows]
    if not specs or (name == "voxels" and scene.levels.codes.size > scene.config.max_voxel_leaves):
        return None
    leaves = _leaves(name, scene)
    if leaves is None:
        return None
    labels, graph, sums = leaves
    trees = grow_all(specs, graph, sums, scene.config, scene.backend)
    boundaries = _boundaries(graph, scene.config.scales_mm.index(scene.config.fine_scale_mm))
    del leaves, graph  # as large as a volume; another partition makes its own meanwhile
    return _with_candidates(labels, trees, sums.voxels, boundaries, scene)


def _leaves(name: PartitionName, scene: Scene) -> tuple[DeviceArray, RegionGraph, RegionSums] | None:
    """Return the leaves of a partition's trees, at most `max_regions`, with their graph and sums."""
    config, backend, xp = scene.config, scene.backend, scene.backend.xp
    shape = scene.levels.codes.shape
    if name == "voxels":
        count = scene.levels.codes.size
        labels = xp.arange(count, dtype=xp.int32).reshape(shape)
    else:
        sigma = config.fine_scale_mm if name == "fine" else config.coarse_scale_mm
        # On a plateau the evidence at the largest scale decides: it drains to its middle, not to an edge.
        evidence, coarsest = scene.evidence[config.scales_mm.index(sigma)], scene.evidence[-1]
        labels, count = basins(evidence, backend, ties=coarsest)
        while count > _MANY * config.max_regions:
            count = join_lowest_pass_in_place(labels, count, evidence, backend)
    # Without evidence the tree would depend on ties only.
    if count < 2 or not any(bool(evidence.max()) for evidence in scene.evidence):
        return None
    volumes = [
        partial(scene.levels.smoothed, w, config.scales_mm[0]) for w in range(len(scene.levels.windows))
    ]
    with scene.one_large_graph:  # one large graph at a time
        graph = region_graph(labels, count, scene.evidence, backend)
        sums = region_sums(labels, count, volumes, backend)
        if name != "voxels":
            lows = backend.to_host(graph.lows[:, -1])
            joined, count = join_flat(backend.to_host(graph.pairs), lows, count)
            graph = merge_graph_consuming(graph, joined, count, backend)
            sums = merge_sums(sums, joined, count)
            relabel_in_place(labels, joined, backend)
        if count < 2:
            return None
        if count > config.max_regions:
            new_region, graph, sums = merge_weakest_consuming(graph, sums, config.max_regions, backend)
            relabel_in_place(labels, new_region, backend)
        graph = graph.on_host(backend)
    if count <= 1 << 16:  # one volume per partition is held until the end
        labels = labels.astype(xp.uint16)
    return labels, graph, sums


def grow_all(
    specs: Sequence[TreeSpec],
    graph: RegionGraph,
    sums: RegionSums,
    config: ProposalConfig,
    backend: Backend,
) -> list[Hierarchy]:
    """Return the trees of a partition; several are grown at once, as compiled loops release Python's lock."""

    def grown_tree(spec: TreeSpec) -> Hierarchy:
        column = config.scales_mm.index(spec.scale_mm) if spec.scale_mm in config.scales_mm else 0
        return grow(spec, partition=0, graph=graph, sums=sums, scale_column=column)

    with ThreadPoolExecutor(backend.num_threads) as pool:
        return list(pool.map(grown_tree, specs))


def grow_components(
    calibration: Calibration, windows: list[Window], scene: Scene, pool: ThreadPoolExecutor
) -> list[Grown | None]:
    """Return the trees of bright and of dark connected components; None where there are none.

    Args:
        calibration: Calibration of the scan's intensities.
        windows: Its intensity windows, in real units.
        scene: The scan's images and limits.
        pool: Runs both sides.
    """
    thresholds, exceeded = _component_levels(calibration, windows, scene)
    sides: tuple[Literal["bright", "dark"], ...] = ("bright", "dark")
    # Computed again when the first side needs it: keeping it would cost two bytes per voxel at the peak.
    evidence = cache(lambda: scene.levels.evidence((scene.config.fine_scale_mm,)))
    return list(pool.map(lambda side: _grow_components(side, thresholds, exceeded, evidence, scene), sides))


def _component_levels(
    calibration: Calibration, windows: list[Window], scene: Scene
) -> tuple[NDArray[np.int64], DeviceArray]:
    """Return indices 0, 1, ... of the thresholds, ascending, and how many thresholds each voxel exceeds.

    Indices take half the memory of levels.
    """
    widest = int(np.argmax([high - low for low, high in windows]))
    low, high = windows[widest]
    reals = np.array(list(calibration.thresholds(scene.config)), np.float64)
    levels = np.rint((reals - low) / (high - low) * (NUM_LEVELS - 1)).astype(np.int64) * 8
    levels = np.unique(levels[(levels > 0) & (levels < (NUM_LEVELS - 1) * 8)])
    exceeded = scene.levels.exceeded(widest, scene.config.scales_mm[0], levels) if len(levels) else None
    return np.arange(len(levels)), exceeded


def _grow_components(
    side: Literal["bright", "dark"],
    thresholds: NDArray[np.int64],
    levels: DeviceArray,
    evidence: Callable[[], DeviceArray],
    scene: Scene,
) -> Grown | None:
    """Return voxel-exact components above or below thresholds; None if there are none.

    Args:
        side: "bright" for voxels above a threshold, "dark" for the others.
        thresholds: See `_component_levels`.
        levels: See `_component_levels`.
        evidence: Returns the evidence at the fine scale, (1, z, y, x), made once for both sides; called by
            one thread at a time.
        scene: The scan's images and limits.
    """
    if not len(thresholds):
        return None
    found = component_tree(
        levels,
        thresholds,
        side=side,
        min_voxels=scene.voxel_limits[0],
        max_voxels=scene.voxel_limits[1],
        backend=scene.backend,
    )
    count = len(found.inside)
    if count < 2:
        return None
    tree = Hierarchy.of(f"components-{side}", 0, count, found.parents(), level_sets=True)
    voxels = count_inside(found.zones, None, count, scene.backend)
    with scene.one_large_graph:  # one side at a time
        # Numbered backwards: the graph lists a pair at its lower region, and most regions touch zone 0.
        backwards = (count - 1 - found.zones).astype(found.zones.dtype, copy=False)
        graph = region_graph(backwards, count, evidence(), scene.backend).on_host(scene.backend)
        del backwards
    pairs, values = _boundaries(graph, 0)
    return _reduced(_with_candidates(found.zones, [tree], voxels, (count - 1 - pairs, values), scene), scene)


def _reduced(grown: Grown, scene: Scene) -> Grown:
    """Return the coarsest partition that separates the candidates of one tree: 16 bits are enough."""
    (tree,), (candidates,) = grown.hierarchies, grown.candidates
    smaller, leaf = tree.reduced(candidates.node)
    kind = np.uint16 if smaller.num_leaves <= 1 << 16 else np.int32
    return Grown(
        labels=gathered(leaf.astype(kind), grown.labels, scene.backend),
        hierarchies=(smaller,),
        candidates=(replace(candidates, node=np.arange(smaller.num_leaves, 2 * smaller.num_leaves - 1)),),
    )


def _boundaries(graph: RegionGraph, column: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return (E, 2) touching leaves; (E, 2) their common faces, and a column's evidence summed over them."""
    return graph.pairs, np.stack([graph.faces, graph.sums[:, column]], axis=1)


def _with_candidates(
    labels: DeviceArray,
    trees: list[Hierarchy],
    voxels: NDArray[np.int64],
    boundaries: tuple[NDArray[np.int32], NDArray[np.int64]],
    scene: Scene,
) -> Grown:
    """Return a partition and its trees, with the nodes that may become proposals.

    Args:
        labels: (z, y, x) leaf of each voxel, on the backend.
        trees: Trees over these leaves.
        voxels: (R,) voxels of each leaf.
        boundaries: See `_boundaries`.
        scene: The scan's images and limits.
    """
    leaves = Leaves(
        voxels=voxels,
        sketches=leaf_sketches(labels, len(voxels), scene.backend),
        body_voxels=count_inside(labels, scene.body.result(), len(voxels), scene.backend),
        pairs=boundaries[0],
        pair_values=boundaries[1],
    )
    found = partial(
        candidates_of,
        leaves=leaves,
        least_body_fraction=scene.config.min_body_fraction,
        voxel_limits=scene.voxel_limits,
        per_half_octave=scene.config.candidates_per_half_octave,
    )
    with ThreadPoolExecutor(scene.backend.num_threads) as pool:
        candidates = tuple(pool.map(found, trees))
    return Grown(labels=labels, hierarchies=tuple(trees), candidates=candidates)
