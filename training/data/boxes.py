"""Boxes of voxels, and drawing the two boxes of a scan that a sample shows: integer arithmetic, no I/O.

A *view* is the box of `crop` voxels that the network sees if nothing is warped. Its *cut* is the larger box
of `cut` voxels around the same centre, so that a rotated or enlarged view has image data at its edges, too.
Starts may be negative and stops may lie beyond the scan; the reader pads what is outside.

    scan   |-----------------------------|         scan smaller than the view:   |--------|
    view        [-----------]                      it lies anywhere inside    [-------------]
    cut      [-----------------]

Along an axis where the scan has at least as many voxels as the view, the view lies inside the scan; where it
has fewer, the scan lies inside the view. Both views are drawn, so that a mask has different positions in the
two: a network cannot succeed by copying the reference's mask to the same position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Triple: TypeAlias = tuple[int, int, int]

_SHIFTS_PER_DRAW = 32
"""Shifts drawn at once; about one in five has an overlap of at least 0.67."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A half-open box of voxels, (z, y, x); it may extend beyond the scan."""

    start: Triple
    """First voxel along each axis."""
    stop: Triple
    """One beyond the last voxel along each axis."""

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
        """One slice per axis; valid only if every start is 0 or more."""
        z, y, x = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    def intersect(self, other: Box) -> Box:
        """Return the intersection of both boxes; a length is 0 or negative where they do not meet."""
        return Box(
            start=_triple(map(max, self.start, other.start)), stop=_triple(map(min, self.stop, other.stop))
        )

    def enclose(self, other: Box) -> Box:
        """Return the smallest box that contains both."""
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
        """Return the same box in coordinates relative to the start of `outer`."""
        return Box(
            start=_triple(a - b for a, b in zip(self.start, outer.start, strict=True)),
            stop=_triple(a - b for a, b in zip(self.stop, outer.start, strict=True)),
        )


def whole(shape: Triple) -> Box:
    """Return the box of a whole scan."""
    return Box(start=(0, 0, 0), stop=shape)


def overlap_fraction(first: Box, second: Box) -> float:
    """Return the fraction of the first box's voxels, padding included, that the second box covers."""
    return first.intersect(second).voxels / first.voxels


def draw_crop_views(
    shape: Triple, crop: Triple, *, min_overlap: float, generator: np.random.Generator
) -> tuple[Box, Box]:
    """Draw the view of the reference and that of the target.

    The reference's position is uniform over all positions, the target's over those that overlap enough.

    Args:
        shape: Voxels of the scan along each axis.
        crop: Voxels of a view along each axis.
        min_overlap: Smallest fraction of a view that the other view covers, 0..1.
        generator: Source of randomness.
    """
    low = np.minimum(0, np.subtract(shape, crop))
    high = np.maximum(0, np.subtract(shape, crop))
    reference = generator.integers(low, high, endpoint=True)
    # Largest shift along one axis, for no shift along the others.
    reach = np.floor((1 - min_overlap) * np.array(crop) + 1e-9).astype(np.int64)
    nearest, farthest = np.maximum(low, reference - reach), np.minimum(high, reference + reach)
    starts = generator.integers(nearest, farthest, endpoint=True, size=(_SHIFTS_PER_DRAW, 3))
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
