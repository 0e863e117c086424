"""Fine views: a few boxes of a scan that show its structures at a finer resolution.

    scan       |--------------------------------|      whole in one window: 5 mm per voxel
    structure           [xxxxx]
    fine view        [-----------]                     in one window: 2 mm per voxel

Integer and real arithmetic on boxes; no arrays and no I/O. Boxes are in voxels of level 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from training.data.boxes import Triple
from training.data.whole_scans import ScanView
from training.data.windows import Slices, hull_of, join_boxes

MARGIN_FRACTION = 0.2
"""Margin on each side of a structure, as a fraction of its length, for voxels that a coarse prediction
misses."""
MAX_VOXELS = 2.0
"""Voxels of the scan per voxel of a window, along an axis, before structures are shown in several windows."""
MIN_GAIN = 1.25
"""A fine view is of use if its voxels are smaller by this factor than those of the whole scan's window."""
_OVERLAP_FRACTION = 0.2
"""Overlap of neighbouring views of one structure, as a fraction of their length."""


def fine_views(boxes: Sequence[Slices], shape: Triple, window: Triple, *, most: int) -> tuple[ScanView, ...]:
    """Return the views that show some structures finer than a window of the whole scan does.

    Structures that fit into one view share it. A view is as large as its structures with a margin, but has at
    least one voxel of the scan per voxel of the window, and lies in the scan where it can.

    Args:
        boxes: The smallest box around each structure, inside the scan; may be none.
        shape: Voxels of the scan along z, y, x.
        window: Voxels that each view is resampled to.
        most: Largest number of views; above it, views become coarser.

    Returns:
        None where no view would be finer than the whole scan by `MIN_GAIN` along any axis.
    """
    if not boxes or most < 1:
        return ()
    grown = [_with_margin(box, shape) for box in boxes]
    voxels = MAX_VOXELS
    while True:
        reach = _rounded(voxels * side for side in window)
        groups = join_boxes(grown, reach)
        views = tuple(
            view
            for group in groups
            for view in _views_over(hull_of(*(grown[k] for k in group)), shape, window, reach)
        )
        views = tuple(view for view in dict.fromkeys(views) if _gain(view, shape) >= MIN_GAIN)
        if len(views) <= most:
            return views
        voxels *= 1.25


def jittered(view: ScanView, generator: np.random.Generator) -> ScanView:
    """Return a view moved by up to a tenth of its length along each axis, and scaled by 0.8 to 1.25."""
    scales = np.exp(generator.uniform(-math.log(1.25), math.log(1.25), 3))
    moves = generator.uniform(-0.1, 0.1, 3)
    sizes = np.array(view.size) * scales
    centres = np.array(view.start) + np.array(view.size) * (0.5 + moves)
    z, y, x = (float(value) for value in centres - sizes / 2)
    depth, height, width = (float(value) for value in sizes)
    return ScanView(start=(z, y, x), size=(depth, height, width))


def _with_margin(box: Slices, shape: Triple) -> Slices:
    parts = []
    for part, length in zip(box, shape, strict=True):
        margin = math.ceil(MARGIN_FRACTION * (part.stop - part.start))
        parts.append(slice(max(0, part.start - margin), min(length, part.stop + margin)))
    return parts[0], parts[1], parts[2]


def _views_over(hull: Slices, shape: Triple, window: Triple, reach: Triple) -> Iterator[ScanView]:
    """Yield views that cover a box: one, or several along an axis where it is longer than `reach`."""
    along = [
        _intervals(part.start, part.stop, length, side, most)
        for part, length, side, most in zip(hull, shape, window, reach, strict=True)
    ]
    for (z, depth), (y, height), (x, width) in product(*along):
        yield ScanView(start=(z, y, x), size=(depth, height, width))


def _intervals(low: int, high: int, length: int, side: int, reach: int) -> list[tuple[float, float]]:
    """Return start and length of the views along one axis."""
    if high - low <= reach:
        size = float(max(high - low, side))
        start = (low + high - size) / 2
        if size >= length:
            return [((length - size) / 2, size)]
        return [(min(max(start, 0.0), length - size), size)]
    count = math.ceil((high - low - reach) / ((1 - _OVERLAP_FRACTION) * reach)) + 1
    return [(float(start), float(reach)) for start in np.linspace(low, high - reach, count)]


def _gain(view: ScanView, shape: Triple) -> float:
    return max(length / size for length, size in zip(shape, view.size, strict=True))


def _rounded(values: Iterator[float]) -> Triple:
    z, y, x = (max(1, round(value)) for value in values)
    return z, y, x
