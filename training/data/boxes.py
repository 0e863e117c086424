"""Which two boxes of a scan a sample shows: integer arithmetic, no I/O.

A *view* is the box of `crop` voxels that the network sees where nothing is warped; its *cut* is the larger
box of `cut` voxels around the same centre, so that a rotated or widened view still finds voxels at its edges.
Starts may be negative and stops beyond the scan: what lies outside is padded by who reads.

    scan   |-----------------------------|         scan smaller than the view:      |--------|
    view        [-----------]                      it lies wholly inside, anywhere  [-------------]
    cut      [-----------------]

Along an axis where the scan has at least as many voxels as the view, the view lies inside the scan; where it
has fewer, the scan lies inside the view. Both views move, so that no mask stays where it was: a network that
copies the reference's mask to the same place gains nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Triple: TypeAlias = tuple[int, int, int]

_PROPOSED = 32
"""Shifts drawn at once; about one in five meets an overlap of 0.67."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A half-open box of voxels, (z, y, x); it may leave the scan."""

    start: Triple
    stop: Triple

    @property
    def shape(self) -> Triple:
        """Voxels along each axis."""
        return _triple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def voxels(self) -> int:
        """Voxels inside; 0 where it is empty."""
        return math.prod(max(0, size) for size in self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """One slice an axis; only of a box that starts at 0 or later."""
        z, y, x = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    def intersect(self, other: Box) -> Box:
        """Return what both cover; an axis of no or negative length where they do not meet."""
        return Box(
            start=_triple(map(max, self.start, other.start)), stop=_triple(map(min, self.stop, other.stop))
        )

    def enclose(self, other: Box) -> Box:
        """Return the smallest box around both."""
        return Box(
            start=_triple(map(min, self.start, other.start)), stop=_triple(map(max, self.stop, other.stop))
        )

    def grow(self, margin: Triple) -> Box:
        """Return the box with `margin` voxels more on both sides of each axis."""
        return Box(
            start=_triple(start - more for start, more in zip(self.start, margin, strict=True)),
            stop=_triple(stop + more for stop, more in zip(self.stop, margin, strict=True)),
        )

    def within(self, outer: Box) -> Box:
        """Return the same box counted from the corner of `outer`."""
        return Box(
            start=_triple(a - b for a, b in zip(self.start, outer.start, strict=True)),
            stop=_triple(a - b for a, b in zip(self.stop, outer.start, strict=True)),
        )


def whole(shape: Triple) -> Box:
    """Return the box of a whole scan."""
    return Box(start=(0, 0, 0), stop=shape)


def overlap_fraction(first: Box, second: Box) -> float:
    """Return the share of the first box that the second covers, in voxels of the boxes, padding included."""
    return first.intersect(second).voxels / first.voxels


def draw_views(
    shape: Triple, crop: Triple, *, min_overlap: float, generator: np.random.Generator
) -> tuple[Box, Box]:
    """Return the reference's and the target's view.

    Args:
        shape: Voxels of the scan along each axis.
        crop: Voxels of a view along each axis.
        min_overlap: Least share of a view that the other covers, 0..1.
        generator: Draws the reference's place evenly over all places, then the target's evenly over those
            that overlap enough.
    """
    low = np.minimum(0, np.subtract(shape, crop))
    high = np.maximum(0, np.subtract(shape, crop))
    reference = generator.integers(low, high, endpoint=True)
    # One axis alone may move no further than this, whatever the others do.
    reach = np.floor((1 - min_overlap) * np.array(crop) + 1e-9).astype(np.int64)
    nearest, farthest = np.maximum(low, reference - reach), np.minimum(high, reference + reach)
    starts = generator.integers(nearest, farthest, endpoint=True, size=(_PROPOSED, 3))
    overlaps = np.maximum(0, 1 - np.abs(starts - reference) / crop).prod(axis=1)
    enough = overlaps >= min_overlap - 1e-9
    target = starts[int(enough.argmax())]
    while not enough.any() and _overlap(target - reference, crop) < min_overlap - 1e-9:
        target = reference + np.trunc((target - reference) / 2).astype(np.int64)
    return _box(reference, crop), _box(target, crop)


def _overlap(shift: np.ndarray, crop: Triple) -> float:
    return float(np.maximum(0, 1 - np.abs(shift) / crop).prod())


def _box(start: np.ndarray, size: Triple) -> Box:
    return Box(start=_triple(start), stop=_triple(start + np.array(size)))


def _triple(values: object) -> Triple:
    z, y, x = (int(value) for value in values)  # type: ignore[attr-defined]
    return z, y, x
