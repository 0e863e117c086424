"""From a scan's image to its mask proposals: the steps in their order.

    image --window, gradient--> boundary evidence at several scales         hierarchies/boundaries.py
          --steepest descent--> supervoxels, fine and coarse                hierarchies/supervoxels.py
          --common faces--> region graphs                                   hierarchies/region_graphs.py
          --linkages, watershed, component trees--> hierarchies             hierarchies/trees.py, growing.py
          --thresholds--> voxel-exact connected components                  hierarchies/components.py
          --facility location--> a few thousand regions that represent all  selection.py
          --smooth outlines, common refinement--> atoms, orders, table      refinement.py, atoms.py

Reads:  codes, int16 (z, y, x), as they are stored: proposals made again from a store are the same bytes.
Writes: a `ProposalSet` (docs/format.md).
Bounds: fewer than 2^31 voxels; peak memory 1.0 GiB at 256^3. Scales and sizes are in mm and mm^3.
Source: the task comes from MASS (Gao et al., CVPR 2026); there the masks are SAM2's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend
from pipeline.errors import NoProposals
from pipeline.hierarchies import Hierarchy, Levels
from pipeline.proposals.atoms import AtomLayout, arrange_consuming, worth_keeping
from pipeline.proposals.calibration import Calibration
from pipeline.proposals.candidates import Grown, PartitionName, Scene, grow_components, grow_partition
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.outlines import Outlines
from pipeline.proposals.refinement import refine_consuming
from pipeline.proposals.selection import Candidates, choose, with_second

_log = logging.getLogger(__name__)

ALGORITHM_VERSION = 5
"""Version of the code that makes proposals: raised when the same image and settings give other proposals."""

_SIDE_BY_SIDE_VOXELS = 64_000_000
"""Partitions of larger scans are grown, and their regions painted, one after the other, to save memory."""


@dataclass(frozen=True, kw_only=True)
class ProposalSet:
    """Mask proposals of one scan, as format version 1 stores them."""

    atoms: tuple[NDArray[np.uint16], ...]
    """One layer (z, y, x): the atom of each voxel, 0..A-1 in scan order."""
    orders: tuple[NDArray[np.uint16], ...]
    """(T, A) for the layer; each row a permutation of the ids."""
    table: NDArray[np.int32]
    """(N, 11) order, start, stop, z0, y0, x0, z1, y1, x1 (half open), voxels, source; best first."""
    scores: NDArray[np.float32]
    """(N,) gain of each proposal as a fraction of the best one's, descending."""
    sources: tuple[str, ...]
    """Name of each code in the source column: the tree that drew the region."""


def propose(
    image: NDArray[np.int16],
    *,
    scale: float,
    offset: float,
    intensity_range: tuple[float, float],
    spacing_zyx_mm: tuple[float, float, float],
    unit: str,
    config: ProposalConfig,
    backend: Backend,
) -> ProposalSet:
    """Return the mask proposals of a scan.

    If the memory of a GPU is not enough for the scan, the CPU makes them, with the same bytes.

    Args:
        image: Codes (z, y, x); real value = code * scale + offset.
        scale: Real units per code.
        offset: Real value of code 0.
        intensity_range: Lower and upper end of the stored intensities, in real units.
        spacing_zyx_mm: Voxel size in mm.
        unit: "HU" for the CT windows and thresholds; any other for percentiles.
        config: All settings.
        backend: Where the array kernels run.

    Raises:
        NoProposals: The scan is too small or too flat to hold any region within the size limits.
    """
    calibrated = scale, offset, intensity_range, spacing_zyx_mm, unit
    try:
        return _propose(image, calibrated, config, backend)
    except MemoryError:  # CuPy's is one too
        if backend.name != "gpu":
            raise
        _log.warning("the GPU has not enough memory for %s voxels; the CPU does this scan", f"{image.size:,}")
    finally:
        backend.release()  # other processes share the device
    return _propose(image, calibrated, config, replace(backend, name="cpu"))


def _propose(
    image: NDArray[np.int16],
    calibrated: tuple[float, float, tuple[float, float], tuple[float, float, float], str],
    config: ProposalConfig,
    backend: Backend,
) -> ProposalSet:
    """`propose` on one backend; `calibrated` are its arguments from scale to unit."""
    scale, offset, intensity_range, spacing_zyx_mm, unit = calibrated
    codes = backend.to_device(image)
    calibration = Calibration.of(codes, scale, offset, intensity_range, unit, backend)
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
    beside = ThreadPoolExecutor(1)
    body = beside.submit(
        lambda: backend.to_device(calibration.body(image, scale, offset, spacing_zyx_mm, config))
    )
    beside.shutdown(wait=False)
    scene = Scene(
        levels=levels,
        evidence=levels.evidence(config.scales_mm),
        body=body,
        voxel_limits=(
            max(2, int(np.ceil(config.min_volume_mm3 / voxel_mm3))),
            int(config.max_volume_fraction * image.size),
        ),
        config=config,
        backend=backend,
    )
    names: tuple[PartitionName, ...] = ("fine", "coarse", "voxels")
    # Small partitions are grown at the same time, on one core each; large ones one by one, each on all cores.
    at_once = backend.num_threads if image.size <= _SIDE_BY_SIDE_VOXELS else 1
    with ThreadPoolExecutor(at_once) as pool:
        grown = list(pool.map(lambda name: grow_partition(name, scene), names))
        scene.evidence = None
        grown += grow_components(calibration, windows, scene, pool)
    found = [part for part in grown if part is not None]
    grown.clear()
    return _choose_consuming(found, scene, config.outlines(voxel_mm3), at_once)


def _choose_consuming(
    grown: list[Grown], scene: Scene, outlines: tuple[Outlines, Outlines], at_once: int
) -> ProposalSet:
    """Return the best candidates of all trees, without near-duplicates, as intervals of atoms.

    `grown` is emptied: each label volume is freed after its last use.
    """
    config = scene.config
    hierarchies = [replace(tree, partition=p) for p, part in enumerate(grown) for tree in part.hierarchies]
    picked, gains, style = _picked(
        [candidates for part in grown for candidates in part.candidates], hierarchies, config
    )
    volumes = [part.labels for part in grown]
    grown.clear()
    sources = [tree.source for tree in hierarchies]
    refinement = refine_consuming(
        volumes,
        hierarchies,
        picked,
        outlines=outlines,
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
    layout = arrange_consuming(
        refinement,
        places[: config.max_proposals],
        max_atoms=config.max_atoms,
        backend=scene.backend,
    )
    return _as_set(layout, gains[layout.kept], sources)


def _picked(
    found: Sequence[Candidates], hierarchies: Sequence[Hierarchy], config: ProposalConfig
) -> tuple[list[tuple[int, int]], NDArray[np.float64], NDArray[np.int8]]:
    """(tree, node) of each chosen region, best first; its gain; 1 for a second, rounder copy, else 0.

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
