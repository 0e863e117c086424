"""Samples across patients: the reference of one scan, the target of another, masks that are the same in both.

*Takes* the pairs of `region_pairs`. *Gives* a Sample whose first cut is of one scan and whose second is of
the other; which of both is the reference is drawn. Views are those of whole scans. With two views of one
scan, a network can use the position and the exact intensities of the region; in another patient both differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage import Scan
from training.data.boxes import Box, whole
from training.data.region_pairs import PairTable
from training.data.sampling import DataConfig, draw_masks
from training.data.view_pairs import Sample, ViewPair, visible_in, words_of
from training.data.whole_scans import ResampledCut, draw_scan_views, level_window

_MAX_PAIRS = 8
"""Most pairs of scans that are tried for a sample; after them it is one of a single scan."""
_LEAST_VISIBLE = 4
"""Least number of paired regions that both views show."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _OneView:
    """A view of one of the two scans."""

    scan: Scan
    pair: ViewPair
    """The view, as a pair of two equal views."""


def draw_paired_sample(
    table: PairTable,
    config: DataConfig,
    scan_of: Callable[[str], Scan],
    index: int,
    generator: np.random.Generator,
) -> Sample | None:
    """Return sample `index` of two scans, or None if none of the pairs drawn shows enough regions.

    Args:
        table: Pairs that may be drawn.
        config: Windows and masks.
        scan_of: Opens a scan.
        index: Number of the sample.
        generator: Source of randomness.
    """
    for _ in range(_MAX_PAIRS):
        pairs = table.pairs[int(generator.integers(len(table.pairs)))]
        order = (0, 1) if generator.random() < 0.5 else (1, 0)
        ids = (pairs.reference, pairs.target)
        views = []
        for number, which in enumerate(order):
            view = _draw_view(scan_of(ids[which]), pairs.proposals[which], config, number, generator)
            if view is not None:
                views.append(view)
        if len(views) == 2:
            sample = _sample(views[0], views[1], config, index, generator)
            if sample is not None:
                return sample
    return None


def _draw_view(
    scan: Scan, ids: NDArray[np.int32], config: DataConfig, number: int, generator: np.random.Generator
) -> _OneView | None:
    """Draw the reference's view (number 0) or the target's (1); None if it misses the scan."""
    window = config.crop_zyx
    view = draw_scan_views(
        scan.shape,
        max_move=config.whole_move_fraction,
        wide_fraction=config.wide_fraction,
        generator=generator,
    )[number]
    level = scan.level_for(level_window(view, scan.shape, window))
    factors, whole_scan = level.factors_zyx, whole(level.shape_zyx)
    cut = ResampledCut(view=view.grown(window, config.cut_zyx), shape=config.cut_zyx, factors=factors)
    region = cut.box.intersect(whole_scan)
    box = view.box_at(factors)
    clipped: Box = box.intersect(whole_scan)
    if not clipped.voxels:
        return None
    wanted = ids.astype(np.int64)
    layers = sorted({int(layer) for layer in scan.proposals.layer[wanted]})
    atoms = {layer: scan.atoms(layer, region.slices, level=level) for layer in layers}
    seen = visible_in(scan, wanted, atoms, [clipped, clipped], region)[0]
    voxels = np.rint(seen * view.voxel_ratio(window, factors)).astype(np.int64)
    pair = ViewPair(
        level=level, views=(box, box), cuts=(cut, cut), region=region, atoms=atoms, ids=wanted, voxels=voxels
    )
    return _OneView(scan=scan, pair=pair)


def _sample(
    reference: _OneView, target: _OneView, config: DataConfig, index: int, generator: np.random.Generator
) -> Sample | None:
    """Return the sample of two views, or None if they show too few regions together."""
    voxels = np.stack([reference.pair.voxels, target.pair.voxels])
    most = config.max_mask_fraction * math.prod(config.crop_zyx)
    seen = np.flatnonzero((voxels >= config.min_mask_voxels).all(axis=0) & (voxels <= most).any(axis=0))
    if len(seen) < _LEAST_VISIBLE:
        return None
    count = config.masks_per_sample - 1
    sources = reference.scan.proposals.source[reference.pair.ids[seen]]
    chosen = np.resize(seen[draw_masks(voxels.min(axis=0)[seen], sources, count, generator)], count)
    scale, offset = _steps(reference.scan)
    first, padding = _codes(reference)
    second, _ = _codes(target)
    return Sample(
        index=index,
        scan_id=reference.scan.id,
        cuts=(first, _in_steps(second, _steps(target.scan), (scale, offset))),
        words=(_words(reference, chosen), _words(target, chosen)),
        scale=scale,
        offset=offset,
        padding_code=padding,
        views=(reference.pair.views[0], target.pair.views[0]),
        masks=tuple(int(mask) for mask in reference.pair.ids[chosen]),
    )


def _steps(scan: Scan) -> tuple[float, float]:
    """Return the z-score units per code step, and the z-score of code 0."""
    std = scan.intensity.std
    return scan.scale / std, (scan.offset - scan.intensity.mean) / std


def _codes(view: _OneView) -> tuple[NDArray[np.int16], int]:
    """Return the cut's image codes, and the code outside the scan."""
    scan, pair = view.scan, view.pair
    low = int(np.clip(round((scan.intensity.low - scan.offset) / scan.scale), -32_768, 32_767))
    codes = scan.image_codes(pair.region.slices, level=pair.level)
    return pair.cut(0, codes, padding=low, image=True), low


def _in_steps(
    codes: NDArray[np.int16], own: tuple[float, float], wanted: tuple[float, float]
) -> NDArray[np.int16]:
    """Return codes of one scan in the steps of another, so that a sample has one scale."""
    scores = codes.astype(np.float32) * np.float32(own[0]) + np.float32(own[1])
    steps = np.rint((scores - np.float32(wanted[1])) / np.float32(wanted[0]))
    found: NDArray[np.int16] = np.clip(steps, -32_768, 32_767).astype(np.int16)
    return found


def _words(view: _OneView, chosen: NDArray[np.int64]) -> NDArray[np.int16]:
    words = words_of(view.scan, view.pair.ids[chosen], view.pair)
    return view.pair.cut(0, words, padding=0, image=False)
