"""From a scan's image to its mask proposals: the orchestrator of the steps below.

    image --window, gradient--> boundary evidence at several scales          gradient.py
          --steepest descent--> supervoxels, fine and coarse                 supervoxels.py
          --faces-->            region graphs                                regions.py
          --linkage, watershed, component trees--> hierarchies               hierarchies.py
          --thresholds-->       voxel-exact components                       components.py
          --facility location--> the few thousand that stand for all         selection.py
          --smooth outlines, common refinement--> atoms, orders, table       refinement.py, atoms.py

Reads:  codes, int16 (z, y, x), as they are stored: proposals made again from a store are the same bytes.
Writes: a `ProposalSet`, as DESIGN section 3 lays it out.
Bounds: fewer than 2^31 voxels; peak memory 1.0 GiB at 256^3. Scales and sizes are in mm and mm^3.
Source: the task comes from MASS (Gao et al., CVPR 2026); there the masks are SAM2's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from threading import Lock
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend
from pipeline.errors import NoProposals
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
    join_lowest_pass,
    leaf_sketches,
    merge_graph,
    merge_sums,
    merge_weakest,
    region_graph,
    region_sums,
    relabelled,
)
from pipeline.proposals.atoms import AtomLayout, arrange, worth_keeping
from pipeline.proposals.calibration import Calibration
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.outlines import Outlines
from pipeline.proposals.refinement import gathered, refine
from pipeline.proposals.selection import Candidates, candidates_of, choose, with_second

P = ParamSpec("P")

_log = logging.getLogger(__name__)

ALGORITHM_VERSION = 5
"""Of the code that makes proposals: raised when the same image and settings give others."""

_SIDE_BY_SIDE_VOXELS = 64_000_000
"""Partitions of larger scans are grown, and their regions painted, one after the other, to save memory."""

_MANY = 4
"""Times `max_regions`: more basins are first joined over their lowest pass, before there is a graph."""


PartitionName = Literal["fine", "coarse", "voxels"]


@dataclass(frozen=True, kw_only=True)
class ProposalSet:
    """Mask proposals of one scan, as format version 1 stores them."""

    atoms: tuple[NDArray[np.uint16], ...]
    """One layer (z, y, x): ids 0..A-1 in scan order, every voxel has one."""
    orders: tuple[NDArray[np.uint16], ...]
    """(T, A) for the layer; each row a permutation of the ids."""
    table: NDArray[np.int32]
    """(N, 11) order, start, stop, z0, y0, x0, z1, y1, x1 (half open), voxels, source; best first."""
    scores: NDArray[np.float32]
    """(N,) share of the best one's gain, never rising."""
    sources: tuple[str, ...]
    """Name of each code in the source column: the tree that drew the region."""


@dataclass(frozen=True, kw_only=True)
class _Grown:
    """A partition of the voxels, with the trees over it and their candidates."""

    labels: Any
    """(z, y, x) on the backend."""
    hierarchies: tuple[Hierarchy, ...]
    candidates: tuple[Candidates, ...]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What every partition is grown from."""

    levels: Levels
    """What the intensity windows show."""
    evidence: Any
    """Integers (K, z, y, x), one a scale, on the backend."""
    body: Future[Any]
    """bool (z, y, x) on the backend."""
    voxel_limits: tuple[int, int]
    outlines: tuple[Outlines, Outlines]
    config: ProposalConfig
    backend: Backend
    turn: Lock
    """Held while there is a graph of more regions than will be left."""


Make: TypeAlias = Callable[Concatenate[NDArray[np.int16], P], ProposalSet]


def _by_cpu_where_gpu_is_full(make: Make[P]) -> Make[P]:
    """The same, made by the CPU where a GPU's memory does not suffice; a GPU's memory is given back."""

    @wraps(make)
    def made(image: NDArray[np.int16], /, *args: P.args, **named: P.kwargs) -> ProposalSet:
        backend = named["backend"]
        assert isinstance(backend, Backend)
        try:
            return make(image, *args, **named)
        except MemoryError:  # CuPy's is one too
            if backend.name != "gpu":
                raise
            _log.warning(
                "the GPU has not enough memory for %s voxels; the CPU does this scan", f"{image.size:,}"
            )
        finally:
            backend.release()  # other processes share the device
        named["backend"] = replace(backend, name="cpu")
        return make(image, *args, **named)

    return made


@_by_cpu_where_gpu_is_full
def propose(
    image: NDArray[np.int16],
    *,
    scale: float,
    offset: float,
    intensity_low: float,
    intensity_high: float,
    spacing_zyx_mm: tuple[float, float, float],
    unit: str,
    config: ProposalConfig,
    backend: Backend,
) -> ProposalSet:
    """The mask proposals of a scan.

    Args:
        image: Codes (z, y, x); real value = code * scale + offset.
        scale: Real units a code.
        offset: Real value of code 0.
        intensity_low: Lower end of the stored intensity range, in real units.
        intensity_high: Its upper end.
        spacing_zyx_mm: Voxel size in mm.
        unit: "HU" takes the CT windows and thresholds, anything else percentiles.
        config: Every choice.
        backend: Where the array kernels run.

    Where a GPU has not enough memory for the scan, the CPU makes them: the same bytes.

    Raises:
        NoProposals: the scan is too small or too flat to hold any region within the size limits.
    """
    codes = backend.to_device(image)
    calibration = Calibration.of(codes, scale, offset, (intensity_low, intensity_high), unit, backend)
    windows = calibration.windows(config)
    levels = Levels(
        codes=codes,
        scale=scale,
        offset=offset,
        windows=tuple(windows),
        spacing_zyx_mm=spacing_zyx_mm,
        backend=backend,
    )
    voxel_mm3 = float(np.prod(spacing_zyx_mm))
    limits = (
        max(2, int(np.ceil(config.min_volume_mm3 / voxel_mm3))),
        int(config.max_volume_fraction * image.size),
    )
    beside = ThreadPoolExecutor(1)
    body = beside.submit(
        lambda: backend.to_device(calibration.body(image, scale, offset, spacing_zyx_mm, config))
    )
    beside.shutdown(wait=False)
    scene = _Scene(
        levels=levels,
        evidence=levels.evidence(config.scales_mm),
        body=body,
        voxel_limits=limits,
        outlines=config.outlines(voxel_mm3),
        config=config,
        backend=backend,
        turn=Lock(),
    )
    names: tuple[PartitionName, ...] = ("fine", "coarse", "voxels")
    sides: tuple[Literal["bright", "dark"], ...] = ("bright", "dark")
    # Small partitions side by side, each on one core; large ones in turn, each on all: a volume each.
    at_once = backend.num_threads if image.size <= _SIDE_BY_SIDE_VOXELS else 1
    with ThreadPoolExecutor(at_once) as pool:
        grown = list(pool.map(lambda name: _grow_partition(name, scene), names))
        scene = replace(scene, evidence=None)
        thresholded = _component_levels(calibration, windows, scene)
        # Made again: to keep it from the partitions on would cost two bytes a voxel where most is held.
        evidence = cache(lambda: scene.levels.evidence((config.fine_scale_mm,)))
        grown += pool.map(lambda side: _grow_components(side, *thresholded, evidence, scene), sides)
        thresholded = thresholded[0], None
        evidence.cache_clear()
    there = [part for part in grown if part is not None]
    grown.clear()
    return _chosen(there, scene, at_once)


def _grow_partition(name: PartitionName, scene: _Scene) -> _Grown | None:
    """Supervoxels at one scale (or voxels), and the trees over them; None where there is nothing to grow."""
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
    del leaves, graph  # as large as a volume, while another partition makes its own
    return _with_candidates(labels, trees, sums.voxels, boundaries, scene)


def _leaves(name: PartitionName, scene: _Scene) -> tuple[Any, RegionGraph, RegionSums] | None:
    """The leaves of a partition's trees, at most `max_regions`, with their graph and sums."""
    config, backend, xp = scene.config, scene.backend, scene.backend.xp
    shape = scene.levels.codes.shape
    if name == "voxels":
        count = scene.levels.codes.size
        labels = xp.arange(count, dtype=xp.int32).reshape(shape)
    else:
        sigma = config.fine_scale_mm if name == "fine" else config.coarse_scale_mm
        # Where one scale sees no slope, the largest decides: plateaus drain to their middle, not to an edge.
        evidence, coarsest = scene.evidence[config.scales_mm.index(sigma)], scene.evidence[-1]
        labels, count = basins(evidence, backend, ties=coarsest)
        while count > _MANY * config.max_regions:
            labels, count = join_lowest_pass(labels, count, evidence, backend)
    # Without evidence a tree would tell of ties only.
    if count < 2 or not any(bool(evidence.max()) for evidence in scene.evidence):
        return None
    volumes = [
        partial(scene.levels.smoothed, w, config.scales_mm[0]) for w in range(len(scene.levels.windows))
    ]
    with scene.turn:  # one large graph at a time
        graph = region_graph(labels, count, scene.evidence, backend)
        sums = region_sums(labels, count, volumes, backend)
        if name != "voxels":
            lows = backend.to_host(graph.lows[:, -1])
            joined, count = join_flat(backend.to_host(graph.pairs), lows, count)
            graph, sums = merge_graph(graph, joined, count, backend), merge_sums(sums, joined, count)
            labels = relabelled(labels, joined, backend)
        if count < 2:
            return None
        if count > config.max_regions:
            new_region, graph, sums = merge_weakest(graph, sums, config.max_regions, backend)
            labels = relabelled(labels, new_region, backend)
        graph = graph.on_host(backend)
    if count <= 1 << 16:  # a volume is held a partition until the end
        labels = labels.astype(xp.uint16)
    return labels, graph, sums


def grow_all(
    specs: Sequence[TreeSpec],
    graph: RegionGraph,
    sums: RegionSums,
    config: ProposalConfig,
    backend: Backend,
) -> list[Hierarchy]:
    """The trees of a partition, several at once: the compiled loops release Python's lock."""

    def grown_tree(spec: TreeSpec) -> Hierarchy:
        column = config.scales_mm.index(spec.scale_mm) if spec.scale_mm in config.scales_mm else 0
        return grow(spec, partition=0, graph=graph, sums=sums, scale_column=column)

    with ThreadPoolExecutor(backend.num_threads) as pool:
        return list(pool.map(grown_tree, specs))


def _component_levels(
    calibration: Calibration, windows: list[Window], scene: _Scene
) -> tuple[NDArray[np.int64], Any]:
    """Numbers 0, 1, ... of the components' thresholds, ascending, and how many of them each voxel exceeds.

    Numbers take half the memory of levels.
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
    levels: Any,
    evidence: Callable[[], Any],
    scene: _Scene,
) -> _Grown | None:
    """Voxel-exact components of thresholds, upwards or downwards; None where there are none.

    Args:
        side: Which way.
        thresholds: See `_component_levels`.
        levels: Likewise.
        evidence: Makes it at the fine scale, (1, z, y, x), once for both sides; one calls at a time.
        scene: What it all is grown from.
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
    with scene.turn:  # one side at a time
        # Backwards: the graph lists neighbours at the lower number, and around zone 0 lie most others.
        backwards = (count - 1 - found.zones).astype(found.zones.dtype, copy=False)
        graph = region_graph(backwards, count, evidence(), scene.backend).on_host(scene.backend)
        del backwards
    pairs, values = _boundaries(graph, 0)
    return _reduced(_with_candidates(found.zones, [tree], voxels, (count - 1 - pairs, values), scene), scene)


def _reduced(grown: _Grown, scene: _Scene) -> _Grown:
    """The partition of a single tree, no finer than its candidates need: 16 bits hold them, not all zones."""
    (tree,), (candidates,) = grown.hierarchies, grown.candidates
    smaller, leaf = tree.reduced(candidates.node)
    kind = np.uint16 if smaller.num_leaves <= 1 << 16 else np.int32
    return _Grown(
        labels=gathered(leaf.astype(kind), grown.labels, scene.backend),
        hierarchies=(smaller,),
        candidates=(replace(candidates, node=np.arange(smaller.num_leaves, 2 * smaller.num_leaves - 1)),),
    )


def _boundaries(graph: RegionGraph, column: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(E, 2) touching leaves; (E, 2) their common faces, and the evidence of a column summed over them."""
    return graph.pairs, np.stack([graph.faces, graph.sums[:, column]], axis=1)


def _with_candidates(
    labels: Any,
    trees: list[Hierarchy],
    voxels: NDArray[np.int64],
    boundaries: tuple[NDArray[np.int32], NDArray[np.int64]],
    scene: _Scene,
) -> _Grown:
    """A partition and its trees, with the nodes that may become proposals.

    Args:
        labels: (z, y, x) leaf of each voxel, on the backend.
        trees: Over these leaves.
        voxels: (R,) of each leaf.
        boundaries: See `_boundaries`.
        scene: What they were grown from.
    """
    sketches = leaf_sketches(labels, len(voxels), scene.backend)
    body_voxels = count_inside(labels, scene.body.result(), len(voxels), scene.backend)
    found = partial(
        candidates_of,
        leaf_voxels=voxels,
        leaf_body_voxels=body_voxels,
        leaf_sketches=sketches,
        pairs=boundaries[0],
        pair_values=boundaries[1],
        least_body_fraction=scene.config.min_body_fraction,
        voxel_limits=scene.voxel_limits,
        per_half_octave=scene.config.candidates_per_half_octave,
    )
    with ThreadPoolExecutor(scene.backend.num_threads) as pool:
        candidates = tuple(pool.map(lambda tree: found(tree, 0), trees))
    return _Grown(labels=labels, hierarchies=tuple(trees), candidates=candidates)


def _chosen(grown: list[_Grown], scene: _Scene, at_once: int) -> ProposalSet:
    """The best candidates of all trees, near-duplicates out, laid out over their atoms.

    `grown` is emptied: its label volumes are let go as soon as nothing needs them.
    """
    config = scene.config
    hierarchies = [replace(tree, partition=p) for p, part in enumerate(grown) for tree in part.hierarchies]
    picked, gains, style = _picked(
        [candidates for part in grown for candidates in part.candidates], hierarchies, config
    )
    volumes = [part.labels for part in grown]
    grown.clear()
    sources = [tree.source for tree in hierarchies]
    refinement = refine(
        volumes,
        hierarchies,
        picked,
        outlines=scene.outlines,
        style=style,
        at_once=at_once,
        backend=scene.backend,
    )
    places = worth_keeping(
        refinement,
        min_voxels=scene.voxel_limits[0],
        duplicate_iou=config.duplicate_iou,
        body=scene.body.result(),
        min_body_fraction=config.min_body_fraction,
        backend=scene.backend,
    )
    layout = arrange(
        refinement,
        places[: config.max_proposals],
        max_atoms=config.max_atoms,
        backend=scene.backend,
    )
    return _as_set(layout, gains[layout.kept], sources)


def _picked(
    found: Sequence[Candidates], hierarchies: Sequence[Hierarchy], config: ProposalConfig
) -> tuple[list[tuple[int, int]], NDArray[np.float64], NDArray[np.int8]]:
    """(tree, node) of what is chosen, best first, the gain of each, and 1 for what is offered again.

    Args:
        found: The candidates of each tree.
        hierarchies: The trees.
        config: How many are wanted.

    Raises:
        NoProposals: there are no candidates.
    """
    found = [replace(c, tree=np.full(len(c.node), tree, np.int32)) for tree, c in enumerate(found)]
    if not sum(len(candidates.node) for candidates in found):
        raise NoProposals(
            "no region within the size limits: the scan is too small or flat",
            path=None,
            remedy="leave it out, or lower min_volume_mm3 or spacing_mm",
        )
    candidates = Candidates.joined(found)
    rows, gains = choose(candidates, config.max_proposals + config.max_proposals // 4)
    soft = np.array([not tree.level_sets for tree in hierarchies])
    rows, gains, style = with_second(rows, gains, candidates.tree[rows], soft, config.num_rounded)
    picked = zip(candidates.tree[rows].tolist(), candidates.node[rows].tolist(), strict=True)
    return list(picked), gains, style


def _as_set(layout: AtomLayout, gains: NDArray[np.float64], sources: Sequence[str]) -> ProposalSet:
    table = np.concatenate(
        [layout.runs, layout.boxes, layout.voxels[:, None], layout.runs[:, :1]], axis=1
    ).astype(np.int32)
    return ProposalSet(
        atoms=(layout.atoms,),
        orders=(layout.orders,),
        table=table,
        scores=np.minimum.accumulate((gains / gains[0]).astype(np.float32)),
        sources=tuple(
            sources[tree] + ("-rounded" if style else "")
            for tree, style in zip(layout.trees, layout.styles, strict=True)
        ),
    )
