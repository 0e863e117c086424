"""Segmentation by registration: a reference's masks, carried over to a target.

    positions  centre on centre; those where the surroundings of the structures correlate best with the
               target; that where a network finds the structures, if there is one
    at each    demons in a window around the position -> correlation of both images around the structures
    result     the masks by the best registration; its correlation is the agreement
    then       refined to the target's own boundaries (`refinement`); for several references the mean

*Takes* and *gives* arrays (z, y, x) of one voxel size, images z-scores. One thread, seconds per target; the
same input gives the same bytes. Nothing is learned: it is the baseline for networks (docs/results.md).
Bounds: large rotations are not found (`poses` lists those that are tried). A window of fewer than 8 voxels
        along an axis is only moved. Memory holds two float32 volumes of the target per structure, and of the
        box around each structure one more per reference, or three while it is refined. The search for
        positions takes some volumes of the target, however many structures there are.

Template matching: Lewis 1995, "Fast Normalized Cross-Correlation". Demons: Vercauteren et al. 2009,
"Diffeomorphic demons", here the symmetric forces of ITK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from training.data import box_of_mask
from training.inference.poses import Image, Pose, Window, on_centre, places, turned
from training.inference.prompts import Progress, Reference, Structure
from training.inference.refinement import confidence, correlation, sharpen, vote

Level: TypeAlias = tuple[int, float, int]

PATCH_MARGIN = 0.3
"""Margin of the patch that is searched for, on each side of the structures, as part of their length."""
WINDOW_MARGIN = 0.5
"""Margin of the window that is registered, on each side of the structures, as part of their length."""
SEEN_FRACTION = 0.3
"""Voxels below this fraction of the network's highest probability do not count for its centre."""
LEAST_SEEN_OVERLAP = 0.2
"""Least Dice of the masks, registered at the network's position, with the network's own masks; below it the
position is dropped. A network that has learnt another anatomy finds something in any scan
(docs/decisions/0010)."""
THRESHOLD = 0.5
"""Probability from which a voxel is drawn."""
NEAR_VOXELS = 3
"""Width of the margin around the structures in which the two images are compared, in voxels."""
LEAST_SHOWN = 0.7
"""If the target shows a smaller fraction of the structures than this, the agreement is lowered."""
AGREEMENT_POWER = 4
"""References are weighted by this power of their agreement, so that a badly placed one hardly counts."""
CONSENSUS_POWER = 4
"""References are also weighted by this power of the mean Dice of their masks with those of all references
together: if most are placed well, a badly placed one disagrees with them."""
LOW_CONFIDENCE = 0.5
"""Confidence of a structure below which it is called low. Mean Dice: 0.20 below it, 0.68 above it
(docs/results.md)."""
LEVELS: tuple[Level, ...] = ((4, 2.0, 60), (2, 1.0, 60), (1, 0.0, 30))
"""Shrink factor, Gaussian sigma (voxels) and iterations of demons at each resolution, coarse to fine."""
BRIEF_LEVELS = LEVELS[:2]
"""Fewer iterations: enough to choose among rotations, but not among places (docs/results.md)."""
MAX_BENT_VOXELS = 1_000_000
"""Larger windows are registered at a coarser resolution only; a liver at 1.5 mm would take minutes."""
FIELD_SIGMA = 1.2
"""Smoothing of the displacement field after every iteration, voxels."""
_LEAST_MARGIN = 3
_LEAST_SIDE = 8
"""Windows with fewer voxels along an axis are not registered; no axis is shrunk below twice as many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """Masks on a target's grid."""

    probabilities: NDArray[np.float32]
    """(K, z, y, x), 0..1: the masks, interpolated."""
    agreement: float
    """Correlation of both images around the structures after registration, -1..1; lower if the target shows
    only a part of the structures, 0 if nothing could be registered. Results are ranked by it."""
    warped: Image
    """(z, y, x): the reference's image, registered; the target's own values outside of it."""
    confidences: tuple[float, ...] = ()
    """(K,) estimate of each structure's Dice, 0..1, where masks were drawn (`confidence`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Registered:
    """A window of the target with the reference registered to it."""

    pose: Pose
    """Initial pose."""
    window: Window
    fixed: sitk.Image
    """The target in the window."""
    transform: sitk.Transform
    agreement: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Registration:
    """One scan registered to another, around a region of it."""

    agreement: float
    """Correlation of both images around the region after registration, -1..1."""
    labels: NDArray[np.int32]
    """(z, y, x) of the target: the reference's labels, by nearest neighbour; -1 where they do not reach."""


def register_labels(
    image: Image,
    region: NDArray[np.bool_],
    labels: NDArray[np.int32],
    target: Image,
    *,
    levels: Sequence[Level] = BRIEF_LEVELS,
) -> Registration | None:
    """Return an image's labels, registered to a target; None if nothing could be registered.

    Args:
        image: The reference, (z, y, x), z-scores.
        region: (z, y, x): the region to register, with its surroundings.
        labels: (z, y, x), 0 and above, such as atoms.
        target: (z, y, x), of any size, z-scores.
        levels: Resolutions of the demons.
    """
    best = _best(image, region, target, None, levels)
    if best is None:
        return None
    found = np.full(target.shape, -1, dtype=np.int32)
    moving = sitk.GetImageFromArray(np.ascontiguousarray(labels, dtype=np.int32))
    carried = sitk.Resample(moving, best.fixed, best.transform, sitk.sitkNearestNeighbor, -1.0)
    found[best.window] = sitk.GetArrayFromImage(carried)
    return Registration(agreement=best.agreement, labels=found)


def carry(image: Image, masks: NDArray[np.bool_], target: Image, *, seen: Image | None = None) -> Carried:
    """Return the masks of an image, registered to a target.

    Args:
        image: The reference, (z, y, x).
        masks: Its masks, (K, z, y, x).
        target: (z, y, x), of any size.
        seen: (z, y, x) of the target, 0..1: probability of the structures from elsewhere, for one more
            position.
    """
    together = np.asarray(masks.any(axis=0))
    best = _best(image, together, target, seen) if together.any() else None
    probabilities = np.zeros((len(masks), *target.shape), np.float32)
    warped = target.copy()
    if best is None:
        return Carried(probabilities=probabilities, agreement=0.0, warped=warped)
    warped[best.window] = _warped(image, best.fixed, best.transform)
    for k, mask in enumerate(masks):
        probabilities[k][best.window] = _mask_carried(mask, best)
    return Carried(probabilities=probabilities, agreement=best.agreement, warped=warped)


def _best(
    image: Image,
    together: NDArray[np.bool_],
    target: Image,
    seen: Image | None,
    levels: Sequence[Level] = LEVELS,
) -> _Registered | None:
    """Return the best registration: over all positions first, then over rotations and sizes at the best."""
    part = _around(together, PATCH_MARGIN)
    tried = [_register(image, together, target, pose, levels) for pose in places(image, part, target)]
    if seen is not None and (centre := _centre_of(seen)) is not None:
        led = _register(image, together, target, on_centre(together, centre), levels)
        if led is not None and _overlap(_mask_carried(together, led), led.window, seen) >= LEAST_SEEN_OVERLAP:
            tried.append(led)  # otherwise the network has found another structure
    best = _highest(tried)
    if best is None:
        return None
    poses = turned(image, part, target, best.pose.offset)
    other = _highest([_register(image, together, target, pose, BRIEF_LEVELS) for pose in poses])
    return _highest([best, other and _register(image, together, target, other.pose, levels)])


def _highest(tried: Sequence[_Registered | None]) -> _Registered | None:
    """Return the registration with the best agreement; of equal ones the first."""
    return max((one for one in tried if one is not None), key=lambda one: one.agreement, default=None)


def _register(
    image: Image,
    together: NDArray[np.bool_],
    target: Image,
    pose: Pose,
    levels: Sequence[Level],
) -> _Registered | None:
    """Register the reference to the target from a pose; None where the target shows too little of it."""
    window = _moved(_around(together, WINDOW_MARGIN), pose, target.shape)
    if window is None:
        return None
    fixed = _cut(target, window)
    transform = _bent(fixed, _itk(image), pose.transform(), float(image.min()), levels)
    near = ndimage.binary_dilation(together, iterations=NEAR_VOXELS)
    agreement = _agreement(target[window], fixed, image, near, transform)
    return _Registered(pose=pose, window=window, fixed=fixed, transform=transform, agreement=agreement)


def _mask_carried(mask: NDArray[np.bool_], registered: _Registered) -> Image:
    moving = _itk(mask.astype(np.float32))
    return _array(sitk.Resample(moving, registered.fixed, registered.transform, sitk.sitkLinear, 0.0))


def carry_structures(
    references: Sequence[Reference],
    structures: Sequence[Structure],
    target: Image,
    *,
    seen: Image | None = None,
    progress: Progress | None = None,
) -> Carried:
    """Return the mean of several references' masks, registered to a target and refined to its boundaries.

    Each reference's masks are corrected by its image (`vote`). They are weighted by the agreement of the
    images, and by their agreement with the other masks. The mean is corrected by the target's intensities
    (`sharpen`). The
    agreement and the warped image are those of the reference that agrees best.

    Args:
        references: At least one.
        structures: K structures; a reference counts for those that it shows.
        target: (z, y, x).
        seen: As for `carry`.
        progress: Called with the number of references done and of all, before the first and after each.
    """
    answers: list[_Answer] = []
    best: tuple[float, Image] | None = None
    if progress is not None:
        progress(0, len(references))
    for done, reference in enumerate(references, start=1):
        answer, agreement, warped = _answer(reference, structures, target, seen)
        answers.append(answer)
        if best is None or agreement > best[0]:
            best = agreement, warped
        if progress is not None:
            progress(done, len(references))
    if best is None:
        raise ValueError("at least one reference is needed")
    together = _mean(_by_consensus(answers, target.shape), target.shape)
    answers.clear()
    sharp = sharpen(together, target)
    del together
    agreement, warped = best
    confidences = (
        confidence(probability, probability >= THRESHOLD, warped, target, agreement=agreement)
        for probability in sharp
    )
    return Carried(probabilities=sharp, agreement=agreement, warped=warped, confidences=tuple(confidences))


def _answer(
    reference: Reference, structures: Sequence[Structure], target: Image, seen: Image | None
) -> tuple[_Answer, float, Image]:
    """Return a reference's corrected masks, its agreement, and its image on the target's grid."""
    masks = np.stack([structure.mask(reference.labels) for structure in structures])
    carried = carry(reference.image, masks, target, seen=seen)
    weight = max(carried.agreement, 1e-3) ** AGREEMENT_POWER
    voted = vote(carried.probabilities, carried.warped, target)
    answer = _Answer.of(voted, np.asarray(masks.any(axis=(1, 2, 3))), weight)
    return answer, carried.agreement, carried.warped


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """Masks of K structures from one reference, each in the box that it reaches."""

    boxes: tuple[Window, ...]
    masks: tuple[Image, ...]
    """K arrays (z, y, x) of these boxes, 0..1."""
    shown: NDArray[np.bool_]
    """(K,): whether the reference shows each structure."""
    weight: float

    @classmethod
    def of(cls, masks: NDArray[np.float32], shown: NDArray[np.bool_], weight: float) -> _Answer:
        """Return masks (K, z, y, x), each cropped to the box that is not empty."""
        boxes = tuple(box_of_mask(mask != 0) or (slice(0, 0),) * 3 for mask in masks)
        cropped = tuple(mask[box].copy() for mask, box in zip(masks, boxes, strict=True))
        return cls(boxes=boxes, masks=cropped, shown=shown, weight=weight)


def _mean(answers: Sequence[_Answer], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the weighted mean (K, z, y, x); each reference counts for the structures that it shows."""
    sums = np.zeros((len(answers[0].shown), *shape), np.float32)
    weights = np.zeros(len(sums), np.float32)
    for answer in answers:
        weight = np.float32(answer.weight)
        for k in np.flatnonzero(answer.shown):
            sums[k][answer.boxes[k]] += weight * answer.masks[k]
        weights[answer.shown] += weight
    sums /= np.maximum(weights, np.float32(1e-6))[:, None, None, None]
    return sums


def _by_consensus(answers: Sequence[_Answer], shape: tuple[int, ...]) -> list[_Answer]:
    """Return the answers, weighted also by the mean Dice of their masks with the masks of all together.

    The most similar one keeps its weight; if no two answers overlap, no weight changes.
    """
    if len(answers) < 2:
        return list(answers)
    together = _mean(answers, shape) >= THRESHOLD
    sizes = together.sum(axis=(1, 2, 3))
    likenesses = []
    for answer in answers:
        dice = []
        for k in np.flatnonzero(answer.shown):
            own = answer.masks[k] >= THRESHOLD
            both = float((own & together[k][answer.boxes[k]]).sum())
            dice.append(2 * both / max(float(own.sum() + sizes[k]), 1.0))
        likenesses.append(max(float(np.mean(dice)) if dice else 0.0, 1e-3))
    parts = [(likeness / max(likenesses)) ** CONSENSUS_POWER for likeness in likenesses]
    return [replace(answer, weight=answer.weight * part) for answer, part in zip(answers, parts, strict=True)]


def _centre_of(seen: Image) -> tuple[float, float, float] | None:
    """Return the centre of mass of the voxels near the highest value; None if all are 0."""
    highest = float(seen.max())
    if highest <= 0:
        return None
    z, y, x = ndimage.center_of_mass(np.where(seen >= SEEN_FRACTION * highest, seen, 0.0))
    return float(z), float(y), float(x)


def _around(mask: NDArray[np.bool_], margin: float) -> Window:
    """Return the box of a mask that is not empty, with a margin relative to its length; inside the scan."""
    box = box_of_mask(mask)
    assert box is not None
    parts = []
    for part, size in zip(box, mask.shape, strict=True):
        more = max(_LEAST_MARGIN, round(margin * (part.stop - part.start)))
        parts.append(slice(max(0, part.start - more), min(size, part.stop + more)))
    return _window(parts)


def _moved(window: Window, pose: Pose, shape: tuple[int, ...]) -> Window | None:
    """Return the part of a reference's window inside the target at a pose; None if it is too small."""
    parts = []
    for part, step, side in zip(window, pose.offset, shape, strict=True):
        length = part.stop - part.start
        more = ceil(length * (max(pose.size, 1.0) - 1) / 2)
        moved = slice(max(0, part.start + step - more), min(side, part.stop + step + more))
        if moved.stop - moved.start < min(_LEAST_SIDE, side, length):
            return None
        parts.append(moved)
    return _window(parts)


def _window(parts: Sequence[slice]) -> Window:
    z, y, x = parts
    return z, y, x


def _bent(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, outside: float, levels: Sequence[Level]
) -> sitk.Transform:
    """Return the transform from a window of the target to the reference: a pose, then demons."""
    if min(fixed.GetSize()) < _LEAST_SIDE:
        return start
    moved = sitk.Resample(moving, fixed, start, sitk.sitkLinear, outside)
    matched = sitk.HistogramMatching(moved, fixed, 256, 12, True)
    field: sitk.Image | None = None
    for factor, sigma, iterations in _fitting(levels, fixed):
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
    return sitk.CompositeTransform([start, warp])


def _overlap(mask: Image, there: Window, seen: Image) -> float:
    """Return the Dice of a mask, in a window of the target, and the network's masks in the whole target."""
    drawn, own = mask >= THRESHOLD, seen >= THRESHOLD
    return 2 * float((drawn & own[there]).sum()) / max(float(drawn.sum() + own.sum()), 1.0)


def _fitting(levels: Sequence[Level], fixed: sitk.Image) -> Sequence[Level]:
    """Return the resolutions that are coarse enough for a window of this size; at least the coarsest."""
    voxels = float(np.prod([float(size) for size in fixed.GetSize()]))
    return [level for level in levels if voxels / level[0] ** 3 <= MAX_BENT_VOXELS] or levels[:1]


def _agreement(
    shown: Image, fixed: sitk.Image, image: Image, near: NDArray[np.bool_], transform: sitk.Transform
) -> float:
    warped = _warped(image, fixed, transform)
    inside = _itk(near.astype(np.float32))
    here = _array(sitk.Resample(inside, fixed, transform, sitk.sitkNearestNeighbor, 0.0)) > 0
    share = float(here.sum()) / float(near.sum())
    return correlation(shown[here], warped[here]) * min(1.0, share / LEAST_SHOWN)


def _warped(image: Image, fixed: sitk.Image, transform: sitk.Transform) -> Image:
    return _array(sitk.Resample(_itk(image), fixed, transform, sitk.sitkLinear, float(image.min())))


def _onto(field: Any, grid: sitk.Image) -> sitk.Image:
    return sitk.Resample(field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())


def _coarse(image: sitk.Image, factor: int, sigma: float) -> sitk.Image:
    smooth = sitk.SmoothingRecursiveGaussian(image, sigma) if sigma else image
    factors = [max(1, min(factor, size // (2 * _LEAST_SIDE))) for size in image.GetSize()]
    small: sitk.Image = sitk.Shrink(smooth, factors)
    return small


def _cut(image: Image, window: Window) -> sitk.Image:
    """Return a window as an ITK image, at its position in the scan."""
    cut = _itk(image[window])
    cut.SetOrigin([float(part.start) for part in window[::-1]])
    return cut


def _itk(array: Image) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))


def _array(image: sitk.Image) -> Image:
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)
