"""A reference's masks carried over to a target by registration, with how far the images then agree.

    places    middle on middle; where the surroundings of the structures correlate best with the target;
              where a network sees the structures, if it is asked
    at each   demons in a window around the place -> correlation of both images around the structures
    answer    the masks through the best of them; that correlation is its agreement

*Takes* and *gives* arrays (z, y, x) of one voxel size, images z-scores. One thread, seconds a target; the
same input gives the same bytes. Nothing is learned: it is what a network has to beat (docs/results.md).
Bounds: turns and scales are left to the demons, so a target that lies otherwise than the reference is lost;
        a window of fewer than 8 voxels along an axis is moved only. Memory holds two float32 volumes of the
        target a structure.

Template matching: Lewis 1995, "Fast Normalized Cross-Correlation". Demons: Vercauteren et al. 2009,
"Diffeomorphic demons", here the symmetric forces of ITK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import match_template, peak_local_max

from training.data import box_of_mask
from training.inference.prompts import Progress, Reference, Structure

Image: TypeAlias = NDArray[np.float32]
Offset: TypeAlias = tuple[int, int, int]
Window: TypeAlias = tuple[slice, slice, slice]

NUM_PEAKS = 3
"""Places tried beside middle on middle."""
PATCH_MARGIN = 0.3
"""Of the structures' length along an axis: what is shown around them when they are looked for."""
WINDOW_MARGIN = 0.5
"""The same for the window that is registered."""
SEEN_FRACTION = 0.3
"""Of the highest probability: voxels below it do not count for the centre of what a network sees."""
LEAST_SEEN_OVERLAP = 0.2
"""Dice of the masks, carried over to where they were seen, with what was seen: below it the place is not
taken. A network that has learnt another anatomy sees something anywhere (docs/decisions/0010)."""
NEAR_VOXELS = 3
"""How far around the structures the images have to agree."""
LEAST_SHOWN = 0.7
"""An answer of which the target shows a smaller part than this counts for less."""
LOW_AGREEMENT = 0.6
"""Below it structures were mostly not found: a mean Dice of 0.08, above it 0.52 (docs/results.md)."""
LEVELS = ((4, 2.0, 60), (2, 1.0, 60), (1, 0.0, 30))
"""Shrink factor, Gaussian sigma (voxels) and iterations of demons at each resolution, coarse to fine."""
MAX_BENT_VOXELS = 1_000_000
"""Larger windows are bent at a coarser resolution only: else a liver at 1.5 mm takes minutes."""
FIELD_SIGMA = 1.2
"""Smoothing of the displacement field after every iteration, voxels."""
_LEAST_MARGIN = 3
_LEAST_SIDE = 8
"""Voxels along an axis below which no window is bent; an axis is not shrunk below twice as many."""
_LEAST_VARIANCE = 1e-9
"""Of z-scores, below which an image is constant but for rounding."""
_COARSE_SIDE = 64
"""Scans at least as long as this along an axis are searched at half their resolution along it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """Masks on a target's grid."""

    probabilities: NDArray[np.float32]
    """(K, z, y, x), 0..1: the masks, interpolated."""
    agreement: float
    """Correlation of both images around the structures after registration, -1..1; lower where the target
    shows a part of the structures only, 0 where nothing could be registered. It ranks answers."""


def carry(image: Image, masks: NDArray[np.bool_], target: Image, *, seen: Image | None = None) -> Carried:
    """Return masks of an image where a target shows the same.

    Args:
        image: The reference, (z, y, x).
        masks: Its masks, (K, z, y, x).
        target: (z, y, x), of any size.
        seen: (z, y, x) of the target, 0..1: where something else sees the structures; one more place.
    """
    probabilities = np.zeros((len(masks), *target.shape), np.float32)
    together = np.asarray(masks.any(axis=0))
    if not together.any():
        return Carried(probabilities=probabilities, agreement=0.0)
    near = ndimage.binary_dilation(together, iterations=NEAR_VOXELS)
    window = _around(together, WINDOW_MARGIN)
    offsets = [_middle_on_middle(image.shape, target.shape)]
    offsets += _peaks(image, _around(together, PATCH_MARGIN), target)
    places: list[tuple[Offset, Image | None]] = [(offset, None) for offset in offsets]
    if seen is not None and (centre := _centre_of(seen)) is not None:
        places.append((_from_centre(together, centre), seen))
    best: tuple[float, Window, sitk.Transform, sitk.Image] | None = None
    for offset, must_overlap in places:
        there = _moved(window, offset, target.shape)
        if there is None:
            continue
        fixed = _cut(target, there)
        transform = _registered(fixed, _itk(image), offset, float(image.min()))
        agreement = _agreement(target[there], fixed, image, near, transform)
        if must_overlap is not None:
            drawn = _array(sitk.Resample(_itk(together.astype(np.float32)), fixed, transform)) >= 0.5
            if _overlap(drawn, there, must_overlap) < LEAST_SEEN_OVERLAP:
                continue  # what was seen is something else
        if best is None or agreement > best[0]:
            best = agreement, there, transform, fixed
    if best is None:
        return Carried(probabilities=probabilities, agreement=0.0)
    agreement, there, transform, fixed = best
    for k, mask in enumerate(masks):
        moving = _itk(mask.astype(np.float32))
        probabilities[k][there] = _array(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0))
    return Carried(probabilities=probabilities, agreement=agreement)


def carry_structures(
    references: Sequence[Reference],
    structures: Sequence[Structure],
    target: Image,
    *,
    seen: Image | None = None,
    progress: Progress | None = None,
) -> Carried:
    """Return what several references say of a target: their answers' mean, weighed by how far they agree.

    The agreement is that of the reference that agrees best.

    Args:
        references: At least one.
        structures: K of them; a reference counts for those that it shows.
        target: (z, y, x).
        seen: As for `carry`.
        progress: Called with references done and references in all.
    """
    sums = np.zeros((len(structures), *target.shape), np.float32)
    weights = np.zeros(len(structures), np.float32)
    agreements = []
    for done, reference in enumerate(references, start=1):
        masks = np.stack([structure.mask(reference.labels) for structure in structures])
        carried = carry(reference.image, masks, target, seen=seen)
        weight = np.float32(max(carried.agreement, 1e-3))
        shown = masks.any(axis=(1, 2, 3))
        sums[shown] += weight * carried.probabilities[shown]
        weights[shown] += weight
        agreements.append(carried.agreement)
        if progress is not None:
            progress(done, len(references))
    sums /= np.maximum(weights, np.float32(1e-6))[:, None, None, None]
    return Carried(probabilities=sums, agreement=max(agreements))


def _middle_on_middle(shape: tuple[int, ...], target: tuple[int, ...]) -> Offset:
    z, y, x = ((there - here) // 2 for here, there in zip(shape, target, strict=True))
    return z, y, x


def _centre_of(seen: Image) -> tuple[float, float, float] | None:
    """Return the centre of what reaches a part of the highest value; None where nothing is seen."""
    highest = float(seen.max())
    if highest <= 0:
        return None
    z, y, x = ndimage.center_of_mass(np.where(seen >= SEEN_FRACTION * highest, seen, 0.0))
    return float(z), float(y), float(x)


def _from_centre(mask: NDArray[np.bool_], centre: tuple[float, float, float]) -> Offset:
    """Return the offset that brings the centre of a mask onto another."""
    z, y, x = (round(there - here) for here, there in zip(ndimage.center_of_mass(mask), centre, strict=True))
    return z, y, x


def _around(mask: NDArray[np.bool_], margin: float) -> Window:
    """The box of a mask that is not empty, longer by a part of its length on each side; inside the scan."""
    box = box_of_mask(mask)
    assert box is not None
    parts = []
    for part, size in zip(box, mask.shape, strict=True):
        more = max(_LEAST_MARGIN, round(margin * (part.stop - part.start)))
        parts.append(slice(max(0, part.start - more), min(size, part.stop + more)))
    return _window(parts)


def _moved(window: Window, offset: Offset, shape: tuple[int, ...]) -> Window | None:
    """A reference's window at a place of the target, as far as it lies inside; None where too little does."""
    parts = [
        slice(max(0, part.start + step), min(size, part.stop + step))
        for part, step, size in zip(window, offset, shape, strict=True)
    ]
    whole = zip(parts, window, shape, strict=True)
    if any(
        part.stop - part.start < min(_LEAST_SIDE, size, own.stop - own.start) for part, own, size in whole
    ):
        return None
    return _window(parts)


def _window(parts: Sequence[slice]) -> Window:
    z, y, x = parts
    return z, y, x


def _peaks(image: Image, window: Window, target: Image) -> list[Offset]:
    """Offsets from the reference to the target at which a window of the reference correlates best with it."""
    factors = [
        2 if min(here, there) >= _COARSE_SIDE else 1
        for here, there in zip(image.shape, target.shape, strict=True)
    ]
    patch, searched = _coarse_array(image[window], factors), _coarse_array(target, factors)
    pads = [side // 2 for side in patch.shape]
    padded = np.pad(searched, [(pad, pad) for pad in pads], mode="minimum")
    found = match_template(padded, patch)
    offsets = []
    for peak in peak_local_max(found, min_distance=3, num_peaks=NUM_PEAKS, exclude_border=False):
        z, y, x = (
            int((place - pad) * factor - part.start)
            for place, pad, factor, part in zip(peak, pads, factors, window, strict=True)
        )
        offsets.append((z, y, x))
    return offsets


def _coarse_array(image: Image, factors: Sequence[int]) -> Image:
    smooth = ndimage.gaussian_filter(image, [0.5 * (factor - 1) + 0.3 for factor in factors])
    zooms = [1 / factor for factor in factors]
    return np.asarray(ndimage.zoom(smooth, zooms, order=1, grid_mode=True, mode="nearest"), dtype=np.float32)


def _registered(fixed: sitk.Image, moving: sitk.Image, offset: Offset, outside: float) -> sitk.Transform:
    """The transform from a window of the target to the reference: a move, then demons."""
    z, y, x = offset
    move = sitk.TranslationTransform(3, (-float(x), -float(y), -float(z)))
    if min(fixed.GetSize()) < _LEAST_SIDE:
        return move
    moved = sitk.Resample(moving, fixed, move, sitk.sitkLinear, outside)
    matched = sitk.HistogramMatching(moved, fixed, 256, 12, True)
    field: sitk.Image | None = None
    for factor, sigma, iterations in _levels(fixed):
        small, other = _coarse(fixed, factor, sigma), _coarse(matched, factor, sigma)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(FIELD_SIGMA)
        demons.SetNumberOfThreads(1)
        field = (
            demons.Execute(small, other)
            if field is None
            else demons.Execute(small, other, _onto(field, small))
        )
    warp = sitk.DisplacementFieldTransform(sitk.Cast(_onto(field, fixed), sitk.sitkVectorFloat64))
    return sitk.CompositeTransform([move, warp])


def _overlap(drawn: NDArray[np.bool_], there: Window, seen: Image) -> float:
    """Return the Dice of a mask in a window of the target with what is seen there and elsewhere."""
    own = seen >= 0.5
    return 2 * float((drawn & own[there]).sum()) / max(float(drawn.sum() + own.sum()), 1.0)


def _levels(fixed: sitk.Image) -> Sequence[tuple[int, float, int]]:
    """Return the resolutions that are not too fine for a window of this size; the coarsest at least."""
    voxels = float(np.prod([float(size) for size in fixed.GetSize()]))
    return [level for level in LEVELS if voxels / level[0] ** 3 <= MAX_BENT_VOXELS] or LEVELS[:1]


def _agreement(
    shown: Image, fixed: sitk.Image, image: Image, near: NDArray[np.bool_], transform: sitk.Transform
) -> float:
    outside = float(image.min())
    warped = _array(sitk.Resample(_itk(image), fixed, transform, sitk.sitkLinear, outside))
    inside = _itk(near.astype(np.float32))
    here = _array(sitk.Resample(inside, fixed, transform, sitk.sitkNearestNeighbor, 0.0)) > 0
    share = float(here.sum()) / float(near.sum())
    return _correlation(shown[here], warped[here]) * min(1.0, share / LEAST_SHOWN)


def _correlation(first: Image, second: Image) -> float:
    """Pearson's, in float64; 0 where one of both is as good as constant."""
    if len(first) < 2:
        return 0.0
    a, b = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > _LEAST_VARIANCE * len(first) else 0.0


def _onto(field: Any, grid: sitk.Image) -> sitk.Image:
    return sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())


def _coarse(image: sitk.Image, factor: int, sigma: float) -> sitk.Image:
    smooth = sitk.SmoothingRecursiveGaussian(image, sigma) if sigma else image
    factors = [max(1, min(factor, size // (2 * _LEAST_SIDE))) for size in image.GetSize()]
    small: sitk.Image = sitk.Shrink(smooth, factors)
    return small


def _cut(image: Image, window: Window) -> sitk.Image:
    """A window, at its place in the scan."""
    cut = _itk(image[window])
    cut.SetOrigin([float(part.start) for part in window[::-1]])
    return cut


def _itk(array: Image) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))


def _array(image: sitk.Image) -> Image:
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)
