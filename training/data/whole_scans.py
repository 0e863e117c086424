"""Whole scans in one window: drawing of views, and resampling of a scan to a window and back.

A crop does not show where in the body it is; a whole scan does. Therefore a view may be a box of any size,
in voxels of level 0, that is resampled to the voxels of the window:

    scan      |--------------------------------|         330 mm
    view         [--------------------------------]      as long as the scan, moved
    window       |  |  |  |  |  |  |  |  |  |  |  |      64 voxels of 5.2 mm

Each axis is scaled independently. This module reads no files; its callers read a level of the scan that is
at least as fine as the window.

*Takes* and *gives* arrays (z, y, x): images by linear interpolation, labels and masks by nearest neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.records import coarse_shape, plan_levels
from training.data.boxes import Box, Triple, whole
from training.data.windows import STRIDE_VOXELS
from training.errors import DataError

Kind = TypeVar("Kind", bound=np.generic)

_CUT_MARGIN = 0.19
"""Margin of a cut on each side of a window, as a fraction of the window's length: 44 voxels for 32, as in the
small recipe."""

MAX_SIDE_VOXELS = 128
"""Longest axis of a window: the network's limit for references."""


@dataclass(frozen=True, kw_only=True)
class ScanView:
    """A box of a scan, in voxels of level 0 along z, y, x; it may extend beyond the scan."""

    start: tuple[float, float, float]
    """Its lower edge along each axis; 0 is the lower edge of the first voxel."""
    size: tuple[float, float, float]
    """Its length along each axis."""

    def grown(self, window: Triple, cut: Triple) -> ScanView:
        """Return the box around the same centre, enlarged by the ratio of `cut` to `window`."""
        factors = [whole / part for whole, part in zip(cut, window, strict=True)]
        start = [s - size * (f - 1) / 2 for s, size, f in zip(self.start, self.size, factors, strict=True)]
        size = [size * factor for size, factor in zip(self.size, factors, strict=True)]
        return ScanView(start=_triple(start), size=_triple(size))

    def positions(self, window: Triple, factors: Triple) -> tuple[NDArray[np.float64], ...]:
        """Return the centres of a window's voxels along each axis, as fractional voxel indices of a level.

        Args:
            window: Voxels that the box is resampled to.
            factors: Voxels of level 0 per voxel of the level, along each axis.
        """
        return tuple(
            (start + (np.arange(count) + 0.5) * size / count) / factor - 0.5
            for start, size, count, factor in zip(self.start, self.size, window, factors, strict=True)
        )

    def box_at(self, factors: Triple) -> Box:
        """Return the smallest box of a level's voxels that contains this view, also beyond the scan."""
        low = [math.floor(start / factor) for start, factor in zip(self.start, factors, strict=True)]
        high = [
            math.ceil((start + size) / factor)
            for start, size, factor in zip(self.start, self.size, factors, strict=True)
        ]
        return Box(start=(low[0], low[1], low[2]), stop=(high[0], high[1], high[2]))

    def contains(self, voxel: Triple) -> bool:
        """Return whether the centre of a voxel of level 0 lies in this view."""
        return all(
            start <= index + 0.5 <= start + size
            for start, size, index in zip(self.start, self.size, voxel, strict=True)
        )

    def voxel_ratio(self, window: Triple, factors: Triple) -> float:
        """Return the number of window voxels per voxel of a level."""
        return math.prod(
            factor * count / size for factor, count, size in zip(factors, window, self.size, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class ResampledCut:
    """A cut that is made by resampling a box of a scan."""

    view: ScanView
    """The box, in voxels of level 0, margins included."""
    shape: Triple
    """Voxels of the cut."""
    factors: Triple
    """Voxels of level 0 per voxel of the level that is read, along each axis."""

    @property
    def box(self) -> Box:
        """The voxels of the level that the cut is made from, also beyond the scan."""
        return self.view.box_at(self.factors).grow((1, 1, 1))  # one more on each side, for interpolation

    def take(self, array: NDArray[np.int16], region: Box, *, padding: int, image: bool) -> NDArray[np.int16]:
        """Return the cut, resampled from an array of a region of the level.

        Args:
            array: (z, y, x) in the region.
            region: Voxels of the level.
            padding: Value outside the region.
            image: Whether to interpolate; words are sampled by nearest neighbour.
        """
        positions = [
            along_axis - start
            for along_axis, start in zip(
                self.view.positions(self.shape, self.factors), region.start, strict=True
            )
        ]
        if not image:
            return sample_nearest(array, positions, fill=padding)
        return np.rint(sample_linear(array.astype(np.float32), positions, fill=padding)).astype(np.int16)


def whole_view(shape: Triple) -> ScanView:
    """Return the view of exactly one whole scan of this shape."""
    return ScanView(start=(0.0, 0.0, 0.0), size=_triple(shape))


def draw_scan_views(
    shape: Triple, *, max_move: float, wide_fraction: float, generator: np.random.Generator
) -> tuple[ScanView, ScanView]:
    """Draw the views of a reference and of a target, independently of each other.

    Args:
        shape: Voxels of the scan.
        max_move: Largest shift of a view of the whole scan along y and x, as a fraction of the scan's length;
            along z it is half of this.
        wide_fraction: Fraction of pairs whose views are boxes of 0.4 to 1.3 of the scan along each axis, with
            their centre anywhere in the scan.
        generator: Source of randomness.
    """
    wide = generator.random() < wide_fraction
    sizes = np.array(shape, dtype=np.float64)
    views = []
    for _ in range(2):
        scales = np.clip(generator.uniform(0.5, 1.15) * generator.uniform(0.8, 1.25, 3), 0.4, 1.3)
        centres, moves = generator.uniform(0, 1, 3), generator.uniform(-1, 1, 3)
        if wide:
            size, centre = sizes * scales, sizes * centres
        else:
            size, centre = sizes, sizes * (0.5 + moves * max_move * np.array([0.5, 1.0, 1.0]))
        views.append(ScanView(start=_triple(centre - size / 2), size=_triple(size)))
    return views[0], views[1]


def cut_around(window: Triple) -> Triple:
    """Return the voxels of the cut around a window, with margins for warping."""
    z, y, x = (side + 2 * round(side * _CUT_MARGIN) for side in window)
    return z, y, x


def window_for(shapes: Sequence[Triple], max_voxels: int) -> Triple:
    """Return the best window for whole scans; its sides are multiples of 16, at most 128.

    It is the window of at most `max_voxels` voxels in which the longest edge of a voxel is shortest, when a
    scan of median shape is resampled to it; among equal windows the largest.

    Args:
        shapes: Voxels of the scans along z, y, x.
        max_voxels: Largest number of voxels of the window.

    Raises:
        DataError: `max_voxels` is below the smallest window, 16^3.
    """
    sides = range(STRIDE_VOXELS, MAX_SIDE_VOXELS + 1, STRIDE_VOXELS)
    median = np.median(np.array(shapes), axis=0)
    best: tuple[tuple[float, int], Triple] | None = None
    for z in sides:
        for y in sides:
            for x in sides:
                if z * y * x > max_voxels:
                    break
                key = (float((median / (z, y, x)).max()), -z * y * x)
                if best is None or key < best[0]:
                    best = (key, (z, y, x))
    if best is None:
        raise DataError(f"max_window_voxels must be at least {STRIDE_VOXELS**3}, got {max_voxels}")
    return best[1]


def level_window(view: ScanView, shape: Triple, window: Triple) -> Triple:
    """Return the voxels that the whole scan may have at the level that a view is resampled from.

    That level is at least as fine as the window's voxels and, except along short axes, less than twice as
    fine.

    Args:
        view: Box of the scan.
        shape: Voxels of the scan.
        window: Voxels that the box is resampled to.
    """
    z, y, x = (
        math.ceil(2 * count / (size / length))
        for count, size, length in zip(window, view.size, shape, strict=True)
    )
    return z, y, x


def to_window(
    image: NDArray[np.float32], window: Triple, view: ScanView | None = None
) -> NDArray[np.float32]:
    """Return an image (z, y, x), or a view of it, resampled to a window as in training.

    The image is averaged over blocks until it is less than twice as fine as the window, then interpolated.

    Args:
        image: (z, y, x).
        window: Voxels of the window.
        view: Box of the image; None for all of it.
    """
    shape = _shape(image)
    view = view or whole_view(shape)
    factors = plan_levels(shape, level_window(view, shape, window))[-1]
    box = view.box_at(factors).grow((1, 1, 1)).intersect(whole(coarse_shape(shape, factors)))
    read = tuple(
        slice(low * factor, high * factor)
        for low, high, factor in zip(box.start, box.stop, factors, strict=True)
    )
    positions = [
        along_axis - low for along_axis, low in zip(view.positions(window, factors), box.start, strict=True)
    ]
    return sample_linear(_block_means(image[read], factors), positions, fill=float(image.min()))


def labels_to_window(labels: NDArray[Kind], window: Triple) -> NDArray[Kind]:
    """Return a whole label map (z, y, x) resampled to a window by nearest neighbour."""
    return sample_nearest(labels, whole_view(_shape(labels)).positions(window, (1, 1, 1)))


def from_window(
    values: NDArray[np.float32], shape: Triple, view: ScanView | None = None
) -> NDArray[np.float32]:
    """Return values of a window (z, y, x), interpolated on the voxels of the scan that it shows.

    Args:
        values: (z, y, x), in the window.
        shape: Voxels of the scan.
        view: Box of the scan that the window shows; None for the whole scan.

    Returns:
        (z, y, x) in the voxels `visible_box(view, shape)`.
    """
    window, view = _shape(values), view or whole_view(shape)
    box = visible_box(view, shape)
    positions: list[NDArray[np.float64]] = [
        (np.arange(low, high, dtype=np.float64) + 0.5 - start) * count / size - 0.5
        for low, high, start, size, count in zip(
            box.start, box.stop, view.start, view.size, window, strict=True
        )
    ]
    return sample_linear(values, positions, fill=0.0)


def visible_box(view: ScanView, shape: Triple) -> Box:
    """Return the voxels of a scan whose centres lie inside a view."""
    low = [max(0, math.floor(start - 0.5) + 1) for start in view.start]
    high = [
        min(count, math.ceil(start + size - 0.5))
        for start, size, count in zip(view.start, view.size, shape, strict=True)
    ]
    return Box(start=(low[0], low[1], low[2]), stop=(high[0], high[1], high[2]))


def _block_means(image: NDArray[np.float32], factors: Triple) -> NDArray[np.float32]:
    """Return the means of blocks of voxels; incomplete blocks are padded by repeating the last slice."""
    short = [-size % factor for size, factor in zip(image.shape, factors, strict=True)]
    full = np.pad(image, [(0, more) for more in short], mode="edge") if any(short) else image
    z, y, x = (size // factor for size, factor in zip(full.shape, factors, strict=True))
    a, b, c = factors
    means: NDArray[np.float32] = full.reshape(z, a, y, b, x, c).mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def sample_linear(
    image: NDArray[np.float32], positions: Sequence[NDArray[np.float64]], *, fill: float
) -> NDArray[np.float32]:
    """Return an image (z, y, x) interpolated linearly at a grid of positions.

    Args:
        image: (z, y, x); the centres of its voxels are at 0, 1, 2, ...
        positions: Fractional voxel indices along z, y, x; the result has as many voxels along each axis.
        fill: Value beyond the outer edges of the image.
    """
    result = image - np.float32(fill)
    for axis, along_axis in enumerate(positions):
        count = result.shape[axis]
        weights = np.zeros((len(along_axis), count), dtype=np.float32)
        inside = (along_axis > -0.5) & (along_axis < count - 0.5)
        low = np.clip(np.floor(along_axis), 0, count - 1).astype(np.int64)
        high = np.minimum(low + 1, count - 1)
        part = np.clip(along_axis - low, 0, 1)
        rows = np.arange(len(along_axis))
        np.add.at(weights, (rows, low), np.where(inside, 1 - part, 0))
        np.add.at(weights, (rows, high), np.where(inside, part, 0))
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.asarray(result + np.float32(fill), dtype=np.float32)


def sample_nearest(
    labels: NDArray[Kind], positions: Sequence[NDArray[np.float64]], *, fill: int = 0
) -> NDArray[Kind]:
    """Return labels (..., z, y, x) at a grid of positions by nearest neighbour; see `sample_linear`."""
    shape = labels.shape[-3:]
    nearest = [np.floor(along_axis + 0.5).astype(np.int64) for along_axis in positions]
    inside = [(index >= 0) & (index < count) for index, count in zip(nearest, shape, strict=True)]
    z, y, x = (np.clip(index, 0, count - 1) for index, count in zip(nearest, shape, strict=True))
    found = labels[..., z[:, None, None], y[:, None], x]
    in_volume = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return np.where(in_volume, found, np.array(fill, dtype=labels.dtype))


def _triple(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def _shape(volume: NDArray[Kind]) -> Triple:
    z, y, x = volume.shape
    return z, y, x
