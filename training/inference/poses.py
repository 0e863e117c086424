"""Initial poses of a registration: position, rotation and size of a part of a reference in a target.

    places    centre on centre; positions where the part correlates best with the target, unchanged
    turned    at one position: the rotations and sizes of the part that correlate best there

*Takes* arrays (z, y, x) of one voxel size, images z-scores. *Gives* poses, best first. Rotations and sizes
are tried at one position only: if tried everywhere, some fit another structure better (docs/results.md).

Template matching: Lewis 1995, "Fast Normalized Cross-Correlation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import match_template, peak_local_max

Image: TypeAlias = NDArray[np.float32]
Offset: TypeAlias = tuple[int, int, int]
Window: TypeAlias = tuple[slice, slice, slice]
Matrix: TypeAlias = NDArray[np.float64]

NUM_PEAKS = 3
"""Number of positions tried besides centre on centre."""
NUM_TURNED = 6
"""Pairs of rotation and size that are registered at the best place."""
TURNS_DEGREES = ((-90, -60, -40, -20, 20, 40, 60, 90), (-20, 20), (-20, 20))
"""Rotations tried about z, y and x, one axis at a time. Structures are rotated most in the plane of the
slices: heart scans are placed by the patient, and two hearts differ there by up to 106 degrees."""
SIZES = (0.8, 1.0, 1.25)
"""Sizes tried: a structure of the target, relative to the same one of the reference."""
SLAB = 1.5
"""A part this many times as long as the target along an axis is not searched for in the target: the target
is searched for in the part."""
REACH_VOXELS = 10
"""Largest distance between the place of a rotated part and the place where it was found without rotation."""
_COARSE_SIDE = 64
"""Scans at least as long as this along an axis are searched at half their resolution along it."""
_TURNED_SIDE = 32
"""Rotations are compared at a resolution at which each axis has at most this many voxels."""
_LEAST_SPREAD = 1e-3
"""Standard deviation of z-scores below which a part is constant: there is nothing to search for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """Maps a target's voxels to a reference's: p -> matrix (p - offset - centre) + centre."""

    offset: Offset
    """Voxels (z, y, x) from the reference to the target."""
    matrix: Matrix
    """(3, 3) for (z, y, x): the inverse rotation, divided by the size."""
    centre: tuple[float, float, float]
    """Centre of the rotation, in voxels (z, y, x) of the reference."""
    size: float = 1.0
    """Of a structure of the target, relative to the same one of the reference."""

    @classmethod
    def moved(cls, offset: Offset) -> Pose:
        """Return a pose without rotation and change of size."""
        return cls(offset=offset, matrix=np.eye(3), centre=(0.0, 0.0, 0.0))

    @property
    def is_moved_only(self) -> bool:
        """Whether it has no rotation and no change of size."""
        return bool((self.matrix == np.eye(3)).all())

    def transform(self) -> sitk.Transform:
        """Return the transform for images whose coordinates are their voxel indices (x, y, z)."""
        if self.is_moved_only:
            return sitk.TranslationTransform(3, [-float(step) for step in self.offset[::-1]])
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(self.matrix[::-1, ::-1].ravel().tolist())
        affine.SetCenter(
            [place + step for place, step in zip(self.centre[::-1], self.offset[::-1], strict=True)]
        )
        affine.SetTranslation([-float(step) for step in self.offset[::-1]])
        return affine


def places(image: Image, window: Window, target: Image) -> list[Pose]:
    """Return possible positions of a window of the reference: centre on centre, then the best correlations.

    If the target is much shorter than the window along an axis (a slab), the target is searched for in the
    reference instead.
    """
    sides = list(zip(image.shape, target.shape, strict=True))
    factors = [2 if min(here, there) >= _COARSE_SIDE else 1 for here, there in sides]
    z, y, x = ((there - here) // 2 for here, there in sides)
    offsets = [(z, y, x)]
    lengths = (part.stop - part.start for part in window)
    if any(length > SLAB * side for length, side in zip(lengths, target.shape, strict=True)):
        likeness = _Likeness.of(target, _whole(target), coarse(image, factors), factors)
        offsets += [(-z, -y, -x) for z, y, x in likeness.peaks(NUM_PEAKS)]
    else:
        likeness = _Likeness.of(image[window], window, coarse(target, factors), factors)
        offsets += likeness.peaks(NUM_PEAKS)
    return [Pose.moved(offset) for offset in offsets]


def on_centre(mask: NDArray[np.bool_], centre: tuple[float, float, float]) -> Pose:
    """Return the pose that brings the centre of a mask onto a voxel of the target."""
    z, y, x = (round(there - here) for here, there in zip(ndimage.center_of_mass(mask), centre, strict=True))
    return Pose.moved((z, y, x))


def turned(image: Image, window: Window, target: Image, near: Offset) -> list[Pose]:
    """Return the rotations and sizes of a window of the reference that fit best near a position.

    Args:
        image: The reference, (z, y, x).
        window: Its part that is searched for.
        target: (z, y, x).
        near: The position, as an offset from the reference; poses lie at most `REACH_VOXELS` from it.
    """
    sides = zip(image.shape, target.shape, strict=True)
    factors = [max(1, ceil(min(here, there) / _TURNED_SIDE)) for here, there in sides]
    searched = coarse(target, factors)
    z, y, x = ((part.start + part.stop - 1) / 2 for part in window)
    found: list[tuple[float, Pose]] = []
    for matrix, size in _turns_and_sizes():
        pose = Pose(offset=(0, 0, 0), matrix=matrix, centre=(z, y, x), size=size)
        part = _turned_part(image, window, pose)
        if part.std() >= _LEAST_SPREAD:
            likeness = _Likeness.of(part, window, searched, factors)
            best = likeness.best_near(near)
            if best is not None:
                found.append((best[0], replace(pose, offset=best[1])))
    found.sort(key=lambda one: -one[0])
    return [pose for _, pose in found[:NUM_TURNED]]


def coarse(image: Image, factors: Sequence[int]) -> Image:
    """Return an image with 1 / factor of its voxels along each axis, smoothed before."""
    smooth = ndimage.gaussian_filter(image, [0.5 * (factor - 1) + 0.3 for factor in factors])
    zooms = [1 / factor for factor in factors]
    return np.asarray(ndimage.zoom(smooth, zooms, order=1, grid_mode=True, mode="nearest"), dtype=np.float32)


def _whole(image: Image) -> Window:
    z, y, x = (slice(0, side) for side in image.shape)
    return z, y, x


def _turns_and_sizes() -> list[tuple[Matrix, float]]:
    """Return every rotation about one axis with every size, except the unchanged part."""
    turns = [np.eye(3)]
    for axis, degrees in enumerate(TURNS_DEGREES):
        turns += [_turn(axis, angle) for angle in degrees]
    return [
        (turn.T / size, size)
        for turn, size in product(turns, SIZES)
        if size != 1 or (turn != np.eye(3)).any()
    ]


def _turn(axis: int, degrees: float) -> Matrix:
    first, second = (other for other in range(3) if other != axis)
    angle = np.radians(degrees)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _turned_part(image: Image, window: Window, pose: Pose) -> Image:
    """Return the window's voxels, from the reference rotated about the window's centre."""
    z, y, x = (part.start for part in window)
    shape = [part.stop - part.start for part in window]
    start = np.array([z, y, x]) - pose.centre
    moved = pose.matrix @ start + pose.centre
    part = ndimage.affine_transform(
        image, pose.matrix, offset=moved, output_shape=tuple(shape), order=1, cval=float(image.min())
    )
    return np.asarray(part, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Likeness:
    """Correlation of a part of the reference with the target, at each position."""

    values: Image
    """Correlation -1..1, (z, y, x), on a coarse grid of positions."""
    first: Offset
    """Offset from the reference to the target at index 0."""
    factors: tuple[int, ...]
    """Voxels between two positions along each axis."""

    @classmethod
    def of(cls, part: Image, window: Window, searched: Image, factors: Sequence[int]) -> _Likeness:
        """Compare a part, which shows a window of the reference, with a coarse target."""
        patch = coarse(part, factors)
        pads = [side // 2 for side in patch.shape]
        padded = np.pad(searched, [(pad, pad) for pad in pads], mode="minimum")
        z, y, x = (
            -pad * factor - shown.start for pad, factor, shown in zip(pads, factors, window, strict=True)
        )
        values = np.asarray(match_template(padded, patch), dtype=np.float32)
        return cls(values=values, first=(z, y, x), factors=tuple(factors))

    def offset(self, index: Sequence[int]) -> Offset:
        """Return the offset from the reference to the target at an index."""
        z, y, x = (
            int(place) * factor + first
            for place, factor, first in zip(index, self.factors, self.first, strict=True)
        )
        return z, y, x

    def peaks(self, count: int) -> list[Offset]:
        """Return the offsets of the best positions, some voxels apart from each other."""
        found = peak_local_max(self.values, min_distance=3, num_peaks=count, exclude_border=False)
        return [self.offset(index) for index in found]

    def best_near(self, near: Offset) -> tuple[float, Offset] | None:
        """Return the best correlation near an offset, with its offset; None if no position is near."""
        parts = []
        for place, first, factor, side in zip(near, self.first, self.factors, self.values.shape, strict=True):
            middle, reach = round((place - first) / factor), max(1, round(REACH_VOXELS / factor))
            parts.append(slice(max(0, middle - reach), max(0, min(side, middle + reach + 1))))
        around = self.values[tuple(parts)]
        if not around.size:
            return None
        index = np.unravel_index(int(around.argmax()), around.shape)
        best = [int(step) + part.start for step, part in zip(index, parts, strict=True)]
        return float(around.max()), self.offset(best)
