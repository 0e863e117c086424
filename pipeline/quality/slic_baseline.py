"""Flat multi-scale SLIC, the baseline for hierarchies of proposals.

Every segment of every scale is one proposal. The scales are scored together, as in the published ablation
with flat supervoxels (MASS, Gao et al. 2026: 54.3 / 43.8 Dice against 65.5 / 59.3 with SAM2 masks).

Reads: image (z, y, x) integer codes, voxel size in mm, label (z, y, x), 0 = background.
Writes: best IoU and Dice of each structure over all segments of all scales.
Bounds: one core, about 4.5 seconds per million voxels for the default four scales; memory about 30 bytes per
voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.quality.intervals import partition
from pipeline.quality.overlap import BestOverlap, best_overlap, interval_overlap
from pipeline.quality.stored_scan import IntArray


@dataclass(frozen=True, kw_only=True)
class SlicConfig:
    """Settings of the SLIC baseline (scikit-image `slic`, 3D, spacing in mm, whole stored volume)."""

    segments: tuple[int, ...] = (100, 400, 1600, 6400)
    """Requested number of segments at each scale; SLIC gives a few more or fewer."""
    compactness: float = 0.1
    """Weight of distance relative to intensity, for intensities scaled to 0..1; one value for all data sets.

    Of 0.01, 0.03, 0.1 and 0.3 this has the highest mean best IoU over nine sets (0.317, 0.334, 0.355, 0.309),
    although CT and MR of sarcomas are better with less (`benchmarks/slic_compactness.py`)."""
    iterations: int = 10
    """Iterations of k-means, scikit-image's default."""


def slic_scales(
    image: IntArray,
    spacing_zyx_mm: tuple[float, float, float],
    *,
    config: SlicConfig,
    progress: Callable[[str], None] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield a SLIC label volume (z, y, x) for each scale, labels 0 and above.

    Args:
        image: (z, y, x) codes, already clipped to the intensity window; scaled to 0..1 here.
        spacing_zyx_mm: Voxel size in mm.
        config: Scales, compactness and iterations.
        progress: Called with a line of text before each scale.
    """
    from skimage.segmentation import slic

    low, high = float(image.min()), float(image.max())
    unit = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    for segments in config.segments:
        if progress is not None:
            progress(f"SLIC, {segments} segments")
        yield slic(
            unit,
            n_segments=segments,
            compactness=config.compactness,
            max_num_iter=config.iterations,
            spacing=spacing_zyx_mm,
            channel_axis=None,
            start_label=0,
        )


def baseline_overlap(scales: Iterator[NDArray[np.int64]], labels: Sequence[IntArray]) -> list[BestOverlap]:
    """Return the best overlap of any segment of any scale with each structure, one result per label map.

    The numbers are those of all segments together (`counts` is their total number); segments have no rank.

    Args:
        scales: SLIC label volumes (z, y, x).
        labels: Label maps (z, y, x); 0 is background.
    """
    results: list[BestOverlap | None] = [None] * len(labels)
    for segments in scales:
        proposals = partition(segments)
        for index, label in enumerate(labels):
            here = best_overlap(interval_overlap(proposals, label), counts=())
            results[index] = _better(results[index], here)
    return [result for result in results if result is not None]


def _better(first: BestOverlap | None, second: BestOverlap) -> BestOverlap:
    """Return the better result for each structure.

    `best` numbers the segments of the first result, then those of the second.
    """
    if first is None:
        return second
    wins = second.iou[:, -1] > first.iou[:, -1]
    return BestOverlap(
        values=first.values,
        structure_voxels=first.structure_voxels,
        counts=(first.counts[-1] + second.counts[-1],),
        iou=np.maximum(first.iou, second.iou),
        dice=np.maximum(first.dice, second.dice),
        best=np.where(wins, second.best + first.counts[-1], first.best),
    )
