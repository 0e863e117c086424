"""From a scan's image to its mask proposals: the orchestrator of the steps below, and their settings.

    image --window, gradient--> boundary evidence at several scales          gradient.py
          --steepest descent--> supervoxels, fine and coarse                 supervoxels.py
          --faces-->            region graphs                                regions.py
          --linkage, watershed, component trees--> hierarchies               hierarchies.py
          --thresholds-->       voxel-exact components                       components.py
          --facility location--> the few thousand that stand for all         selection.py
          --smooth outlines, common refinement--> atoms, orders, table       smoothing.py, atoms.py

Reads:  codes, int16 (z, y, x), as they are stored: proposals made again from a store are the same bytes.
Writes: a `ProposalSet`, as DESIGN section 3 lays it out.
Bounds: fewer than 2^31 voxels; peak memory 2.0 GiB at 256^3. Scales and sizes are in mm and mm^3.
Source: the task comes from MASS (Gao et al., CVPR 2026); there the masks are SAM2's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.agglomeration import agglomerate, join_flat, join_nearest
from pipeline.atoms import AtomLayout, arrange, refine, worth_keeping
from pipeline.backend import Backend
from pipeline.components import component_tree
from pipeline.errors import ConfigError, NoProposals
from pipeline.foreground import body_mask
from pipeline.gradient import NUM_LEVELS, Window, boundary_evidence, smooth, window_levels
from pipeline.hierarchies import Hierarchy, TreeSpec, grow
from pipeline.regions import RegionGraph, RegionSums, merge_graph, merge_sums, region_graph, region_sums
from pipeline.selection import Candidates, candidates_of, choose
from pipeline.sketches import leaf_sketches
from pipeline.smoothing import Outlines
from pipeline.supervoxels import basins, join_lowest_pass

ALGORITHM_VERSION = 2
"""Of the code that makes proposals: raised when the same image and settings give others."""

MAX_ATOMS = 65_534
"""The most that uint16 ids with two reserved values can tell apart (format version 1)."""

_MANY = 4
"""Times `max_regions`: more basins are first joined over their lowest pass, before there is a graph."""

DEFAULT_TREES = (
    "fine-contrast-0.7mm",
    "fine-contrast-2.2mm",
    "fine-contrast-0.7mm-balanced",
    "fine-boundary-0.7mm",
    "fine-compact",
    "fine-volume-1mm",
    "fine-dynamics-1.5mm",
    "fine-bright-window0",
    "fine-dark-window0",
    "coarse-contrast-0.7mm",
    "coarse-volume-1.5mm",
    "coarse-volume-2.2mm",
    "coarse-dynamics-1.5mm",
    "coarse-dynamics-2.2mm",
    "coarse-compact",
    "voxels-contrast-0.7mm",
    "voxels-contrast-0.7mm-balanced",
    "voxels-contrast-2.2mm",
    "voxels-volume-1.5mm",
    "voxels-compact",
)
"""See `docs/decisions/0003-proposals.md` for what each brings."""


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Every choice made on the way from an image to its proposals; checked when made."""

    ct_windows_hu: tuple[Window, ...] = ((-160.0, 240.0), (-991.0, 500.0), (0.0, 150.0))
    """Intensity windows of a CT: soft tissue, wide, narrow. Boundary evidence is summed over them."""

    percentile_windows: tuple[Window, ...] = ((0.0, 100.0), (5.0, 95.0))
    """Windows of other scans: percentiles of the voxels above the floor (lowest 3 % of the stored range)."""

    scales_mm: tuple[float, ...] = (0.7, 1.0, 1.5, 2.2)
    """Gaussian scales of the boundary evidence, in mm; at least 0.45 voxels are used."""

    fine_scale_mm: float = 0.7
    """Scale whose basins are the fine supervoxels; one of `scales_mm`."""

    coarse_scale_mm: float = 1.5
    """Scale whose basins are the coarse supervoxels; one of `scales_mm`."""

    max_regions: int = 80_000
    """Weakest supervoxels are merged until no more than this many are left, before trees are grown."""

    max_voxel_leaves: int = 200_000
    """Scans of no more voxels also get trees whose leaves are voxels."""

    trees: tuple[str, ...] = DEFAULT_TREES
    """Hierarchies to grow: PARTITION-METHOD-SCALEmm (see `hierarchies.TreeSpec`)."""

    component_thresholds_hu: tuple[float, ...] = (-900, -700, -400, -150, -50, 20, 70, 130, 200, 300, 420)
    """Thresholds of voxel-exact components in CT, in HU: lung, fat, soft tissue, contrast, bone. Empty:
    none."""

    component_percentiles: tuple[float, ...] = (10, 20, 35, 50, 65, 80, 90, 95, 98, 99)
    """Likewise for other scans, as percentiles of the voxels above the floor. Empty: none."""

    min_volume_mm3: float = 100.0
    """Smaller regions are no proposals."""

    max_volume_fraction: float = 0.6
    """Regions that fill more of the scan are none either."""

    min_body_fraction: float = 0.5
    """Regions with a smaller part of their voxels in the body are none: table, air, streaks."""

    body_threshold_hu: float = -500.0
    """CT voxels above it are body; what they enclose is too (lung, bowel gas)."""

    candidates_per_half_octave: int = 600
    """Regions of each tree that are looked at, for each factor of sqrt(2) in volume."""

    max_proposals: int = 2000
    """The most that are kept."""

    outline_smoothing: float = 0.12
    """Regions of supervoxels are blurred, and kept where the blur exceeds a half: its standard deviation as a
    fraction of the cube root of their volume. 0 keeps the ragged outlines. Level sets are never blurred."""

    max_outline_sigma_mm: float = 6.0
    """The widest blur, in mm."""

    duplicate_iou: float = 0.95
    """A region that overlaps a better one more than this is left out."""

    max_atoms: int = MAX_ATOMS
    """The most atoms; above it slivers are absorbed. Fewer atoms are fewer bytes."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        # One region and what is around it are two atoms.
        _require(1 < self.max_atoms <= MAX_ATOMS, f"max_atoms must be 2..{MAX_ATOMS}, got {self.max_atoms}")
        _require(self.max_proposals > 0, f"max_proposals must be positive, got {self.max_proposals}")
        _require(self.max_regions > 1, f"max_regions must be above 1, got {self.max_regions}")
        _require(
            0 <= self.outline_smoothing <= 0.5,
            f"outline_smoothing must be in 0..0.5, got {self.outline_smoothing}",
        )
        _require(
            self.max_outline_sigma_mm > 0,
            f"max_outline_sigma_mm must be positive, got {self.max_outline_sigma_mm}",
        )
        _require(0 < self.duplicate_iou <= 1, f"duplicate_iou must be in (0, 1], got {self.duplicate_iou}")
        _require(
            0 < self.max_volume_fraction <= 1,
            f"max_volume_fraction must be in (0, 1], got {self.max_volume_fraction}",
        )
        _require(
            bool(self.ct_windows_hu and self.percentile_windows), "at least one intensity window is needed"
        )
        for low, high in (*self.ct_windows_hu, *self.percentile_windows):
            _require(low < high, f"an intensity window must rise, got [{low:g}, {high:g}]")
        _require(
            list(self.scales_mm) == sorted({s for s in self.scales_mm if s > 0}),
            f"scales_mm must be positive and rise, got {list(self.scales_mm)}",
        )
        for name in ("fine_scale_mm", "coarse_scale_mm"):
            value = getattr(self, name)
            _require(value in self.scales_mm, f"{name} must be one of scales_mm, got {value:g}")
        try:
            specs = [TreeSpec.parse(name) for name in self.trees]
        except ValueError as error:
            raise ConfigError(f"trees: {error}") from error
        for spec in specs:
            _require(
                spec.method in ("compact", "bright", "dark") or spec.scale_mm in self.scales_mm,
                f"trees: {spec.name} needs the scale {spec.scale_mm:g} in scales_mm",
            )

    def outlines(self, voxel_mm3: float) -> Outlines | None:
        """How outlines are smoothed where a voxel has this volume; None for not at all."""
        if not self.outline_smoothing:
            return None
        sigma = self.max_outline_sigma_mm / float(np.cbrt(voxel_mm3))
        return Outlines(fraction=self.outline_smoothing, max_sigma_voxels=sigma)

    @property
    def specs(self) -> tuple[TreeSpec, ...]:
        """The trees to grow."""
        return tuple(TreeSpec.parse(name) for name in self.trees)


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

    labels: NDArray[np.int32]
    hierarchies: tuple[Hierarchy, ...]
    candidates: tuple[Candidates, ...]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What every partition is grown from."""

    volumes: list[Any]
    """Smoothed levels, one a window, on the backend."""
    evidence: Any
    """int32 (K, z, y, x), one a scale, on the backend."""
    body: NDArray[np.bool_]
    voxel_limits: tuple[int, int]
    outlines: Outlines | None
    config: ProposalConfig
    backend: Backend


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

    Raises:
        NoProposals: the scan is too small or too flat to hold any region within the size limits.
    """
    codes = backend.to_device(image)
    calibration = _Calibration.of(codes, scale, offset, (intensity_low, intensity_high), unit, backend)
    windows = calibration.windows(config)
    volumes = [window_levels(codes, scale=scale, offset=offset, window=w, backend=backend) for w in windows]
    voxel_mm3 = float(np.prod(spacing_zyx_mm))
    limits = (
        max(2, int(np.ceil(config.min_volume_mm3 / voxel_mm3))),
        int(config.max_volume_fraction * image.size),
    )
    evidence = backend.xp.empty((len(config.scales_mm), *image.shape), dtype=backend.xp.int32)
    for k, sigma in enumerate(config.scales_mm):
        evidence[k] = boundary_evidence(
            volumes, sigma_mm=sigma, spacing_zyx_mm=spacing_zyx_mm, backend=backend
        )
    sigma_zyx = tuple(max(0.45, config.scales_mm[0] / s) for s in spacing_zyx_mm)
    volumes = [smooth(v, (sigma_zyx[0], sigma_zyx[1], sigma_zyx[2]), backend) for v in volumes]
    scene = _Scene(
        volumes=volumes,
        evidence=evidence,
        body=calibration.body(image, scale, offset, spacing_zyx_mm, config),
        voxel_limits=limits,
        outlines=config.outlines(voxel_mm3),
        config=config,
        backend=backend,
    )
    names: tuple[Literal["fine", "coarse", "voxels"], ...] = ("fine", "coarse", "voxels")
    with ThreadPoolExecutor(backend.num_threads) as pool:
        grown = list(pool.map(lambda name: _grow_partition(name, scene), names))
    grown += _grow_components(calibration, windows, scene)
    return _chosen([part for part in grown if part is not None], scene)


def _grow_partition(name: Literal["fine", "coarse", "voxels"], scene: _Scene) -> _Grown | None:
    """Supervoxels at one scale (or voxels), and the trees over them; None where there is nothing to grow."""
    config, backend, xp = scene.config, scene.backend, scene.backend.xp
    specs = [spec for spec in config.specs if spec.partition == name and spec.window < len(scene.volumes)]
    size = scene.volumes[0].size
    if not specs or (name == "voxels" and size > config.max_voxel_leaves):
        return None
    if name == "voxels":
        labels, count = xp.arange(size, dtype=xp.int32).reshape(scene.volumes[0].shape), size
    else:
        sigma = config.fine_scale_mm if name == "fine" else config.coarse_scale_mm
        # Where one scale sees no slope, the largest decides: plateaus drain to their middle, not to an edge.
        evidence, coarsest = scene.evidence[config.scales_mm.index(sigma)], scene.evidence[-1]
        labels, count = basins((evidence << 10) + xp.minimum(coarsest, 1023), backend)
        while count > _MANY * config.max_regions:
            labels, count = join_lowest_pass(labels, count, evidence, backend)
    if count < 2 or not bool(scene.evidence.any()):  # without evidence a tree would tell of ties only
        return None
    graph = region_graph(labels, count, scene.evidence, backend)
    sums = region_sums(labels, count, scene.volumes, backend)
    labels = backend.to_host(labels)
    if name != "voxels":
        joined, count = join_flat(graph.pairs, graph.lows[:, -1], count)
        graph, sums, labels = (
            merge_graph(graph, joined, count),
            merge_sums(sums, joined, count),
            joined[labels],
        )
    if count < 2:
        return None
    if count > config.max_regions:
        labels, graph, sums = _merge_weakest(labels, graph, sums, config.max_regions)
    trees = grow_all(specs, graph, sums, config, backend)
    return _with_candidates(labels, trees, sums.voxels, scene)


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


def _merge_weakest(
    labels: NDArray[np.int32], graph: RegionGraph, sums: RegionSums, max_regions: int
) -> tuple[NDArray[np.int32], RegionGraph, RegionSums]:
    """Supervoxels merged, small and alike first, until no more than `max_regions` are left."""
    if graph.num_regions > 2 * max_regions:  # much quicker than pair by pair, and these are a few voxels each
        nearest, count = join_nearest(
            graph.pairs, graph.faces, graph.sums[:, 0], sums.voxels, sums.levels / 8
        )
        joined = merge_graph(graph, nearest, count), merge_sums(sums, nearest, count)
        if count <= max_regions:
            return nearest[labels], *joined
        return _merge_weakest(nearest[labels], *joined, max_regions)
    parents = agglomerate(
        graph.pairs,
        graph.faces,
        graph.sums[:, 0],
        sums.voxels,
        sums.levels / 8,
        linkage="boundary_and_contrast",
        size_exponent=0.33,
        num_remaining=max_regions,
    )
    root = np.arange(len(parents))
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] != node:
            root[node] = root[parents[node]]
    # Leaves are numbered in scan order, so their roots in order of first leaf are so too.
    _, first, inverse = np.unique(root[: graph.num_regions], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    new_region = rank[inverse]
    count = len(first)
    return (
        new_region[labels],
        merge_graph(graph, new_region, count),
        merge_sums(sums, new_region, count),
    )


def _grow_components(calibration: _Calibration, windows: list[Window], scene: _Scene) -> list[_Grown]:
    """Voxel-exact components of thresholds on the widest window: one tree upwards, one downwards."""
    widest = int(np.argmax([high - low for low, high in windows]))
    low, high = windows[widest]
    reals = np.array(list(calibration.thresholds(scene.config)), np.float64)
    levels = np.rint((reals - low) / (high - low) * (NUM_LEVELS - 1)).astype(np.int64) * 8
    levels = np.unique(levels[(levels > 0) & (levels < (NUM_LEVELS - 1) * 8)])
    grown = []
    sides: tuple[Literal["bright", "dark"], ...] = ("bright", "dark")
    for side in sides if len(levels) else ():
        found = component_tree(
            scene.volumes[widest],
            levels,
            side=side,
            min_voxels=scene.voxel_limits[0],
            max_voxels=scene.voxel_limits[1],
            backend=scene.backend,
        )
        count = len(found.inside)
        if count > 1:
            tree = Hierarchy.of(f"components-{side}", 0, count, found.parents(), level_sets=True)
            voxels = np.bincount(found.zones.ravel(), minlength=count)
            grown.append(_with_candidates(found.zones, [tree], voxels, scene))
    return grown


def _with_candidates(
    labels: NDArray[np.int32], trees: list[Hierarchy], voxels: NDArray[np.int64], scene: _Scene
) -> _Grown:
    """A partition and its trees, with the nodes that may become proposals."""
    sketches = leaf_sketches(labels, len(voxels))
    body_voxels = np.bincount(labels[scene.body], minlength=len(voxels))
    candidates = tuple(
        candidates_of(
            tree,
            0,
            leaf_voxels=voxels,
            leaf_body_voxels=body_voxels,
            leaf_sketches=sketches,
            least_body_fraction=scene.config.min_body_fraction,
            voxel_limits=scene.voxel_limits,
            per_half_octave=scene.config.candidates_per_half_octave,
        )
        for tree in trees
    )
    return _Grown(labels=labels, hierarchies=tuple(trees), candidates=candidates)


def _chosen(grown: list[_Grown], scene: _Scene) -> ProposalSet:
    """The best candidates of all trees, near-duplicates out, laid out over their atoms."""
    config = scene.config
    partitions = [part.labels for part in grown]
    hierarchies = [replace(tree, partition=p) for p, part in enumerate(grown) for tree in part.hierarchies]
    found = [candidates for part in grown for candidates in part.candidates]
    found = [replace(c, tree=np.full(len(c.node), tree, np.int32)) for tree, c in enumerate(found)]
    if not sum(len(candidates.node) for candidates in found):
        raise NoProposals(
            "no region within the size limits: the scan is too small or flat",
            path=None,
            remedy="leave it out, or lower min_volume_mm3 or spacing_mm",
        )
    candidates = Candidates.joined(found)
    rows, gains = choose(candidates, config.max_proposals + config.max_proposals // 4)
    picked = list(zip(candidates.tree[rows].tolist(), candidates.node[rows].tolist(), strict=True))
    refinement = refine(
        partitions,
        hierarchies,
        picked,
        outlines=scene.outlines,
        num_threads=scene.backend.num_threads,
    )
    places = worth_keeping(
        refinement,
        min_voxels=scene.voxel_limits[0],
        duplicate_iou=config.duplicate_iou,
        body=scene.body,
        min_body_fraction=config.min_body_fraction,
    )
    layout = arrange(
        refinement,
        places[: config.max_proposals],
        max_atoms=config.max_atoms,
        num_threads=scene.backend.num_threads,
    )
    return _as_set(layout, gains[layout.kept], hierarchies)


def _as_set(layout: AtomLayout, gains: NDArray[np.float64], hierarchies: list[Hierarchy]) -> ProposalSet:
    table = np.concatenate(
        [layout.runs, layout.boxes, layout.voxels[:, None], layout.runs[:, :1]], axis=1
    ).astype(np.int32)
    return ProposalSet(
        atoms=(layout.atoms,),
        orders=(layout.orders,),
        table=table,
        scores=np.minimum.accumulate((gains / gains[0]).astype(np.float32)),
        sources=tuple(hierarchies[tree].source for tree in layout.trees),
    )


@dataclass(frozen=True, kw_only=True)
class _Calibration:
    """What turns settings into real intensities: the range, and for other scans than CT the histogram."""

    hounsfield: bool
    low: float
    high: float
    values: NDArray[np.float64]
    """Real values of the codes that occur above the floor, ascending."""
    cumulated: NDArray[np.int64]
    """How many voxels are at or below each."""

    @classmethod
    def of(
        cls,
        codes: Any,
        scale: float,
        offset: float,
        bounds: tuple[float, float],
        unit: str,
        backend: Backend,
    ) -> _Calibration:
        low, high = bounds
        shifted = codes.ravel().astype(backend.xp.int32) + (1 << 15)
        counts = np.asarray(backend.to_host(backend.xp.bincount(shifted, minlength=1 << 16)))
        values = np.arange(-(1 << 15), 1 << 15, dtype=np.float64) * scale + offset
        there = (counts > 0) & (values > low + 0.03 * (high - low))
        order = np.argsort(values[there], kind="stable")
        return cls(
            hounsfield=unit == "HU",
            low=low,
            high=high,
            values=values[there][order],
            cumulated=np.cumsum(counts[there][order]),
        )

    def body(
        self,
        image: NDArray[np.int16],
        scale: float,
        offset: float,
        spacing_zyx_mm: tuple[float, float, float],
        config: ProposalConfig,
    ) -> NDArray[np.bool_]:
        """Where the body is; thresholds are compared as codes."""
        most = (self.low + 0.1 * (self.high - self.low) - offset) / scale
        threshold = (config.body_threshold_hu - offset) / scale if self.hounsfield else None
        return body_mask(image, spacing_zyx_mm, threshold=threshold, most=most)

    def percentile(self, percent: float) -> float:
        """Real value that so many percent of the voxels above the floor do not exceed."""
        if not len(self.values):
            return self.low
        rank = np.searchsorted(self.cumulated, percent / 100 * self.cumulated[-1], side="left")
        return float(self.values[min(int(rank), len(self.values) - 1)])

    def windows(self, config: ProposalConfig) -> list[Window]:
        """Intensity windows in real units; the whole range for (0, 100)."""
        if self.hounsfield:
            return list(config.ct_windows_hu)
        windows = []
        for low, high in config.percentile_windows:
            ends = (
                self.percentile(low) if low > 0 else self.low,
                self.percentile(high) if high < 100 else self.high,
            )
            if ends[0] < ends[1]:
                windows.append(ends)
        return windows or [(self.low, self.high)]

    def thresholds(self, config: ProposalConfig) -> Iterator[float]:
        """Thresholds of the components, in real units."""
        if self.hounsfield:
            yield from config.component_thresholds_hu
        else:
            yield from (self.percentile(percent) for percent in config.component_percentiles)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
