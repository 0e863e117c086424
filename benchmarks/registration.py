"""What a user with one labelled scan has for nothing: copying its labels, or registering it to the next scan.

Each method maps references (image, labels) and a target image to labels on the target's grid: arrays
(z, y, x) of one voxel size, images z-scores, labels by nearest neighbour. One thread, some seconds a pair.
`METHODS` beyond "located + demons" are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from training.inference.prompts import Reference, Structure
from training.inference.registration import carry, carry_structures

Image: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.uint16]
Shown: TypeAlias = tuple[Image, Labels]
OneShot: TypeAlias = Callable[[Image, Labels, Image], Labels]
Method: TypeAlias = Callable[[Sequence[Shown], Image], Labels]

LEVELS = ((4, 2.0), (2, 1.0), (1, 0.0))
"""Shrink factor and Gaussian sigma (voxels) of each resolution, coarse to fine."""
DEMONS_ITERATIONS = (60, 40, 20)
"""At each resolution."""
_SHORTEST = 16
"""An axis is not shrunk below so many voxels."""


def copied(reference: Image, labels: Labels, target: Image) -> Labels:
    """Return the reference's labels at the same place, the middles of both scans on each other."""
    result = np.zeros(target.shape, np.uint16)
    from_, to = [], []
    for own, other in zip(labels.shape, target.shape, strict=True):
        size = min(own, other)
        from_.append(slice((own - size) // 2, (own - size) // 2 + size))
        to.append(slice((other - size) // 2, (other - size) // 2 + size))
    result[tuple(to)] = labels[tuple(from_)]
    return result


def affine(reference: Image, labels: Labels, target: Image) -> Labels:
    """Return the reference's labels after an affine registration (Mattes mutual information)."""
    fixed, moving = _image(target), _image(reference)
    return _carried(labels, fixed, _affine(fixed, moving))


def affine_demons(reference: Image, labels: Labels, target: Image) -> Labels:
    """Return the reference's labels after an affine registration and symmetric forces demons."""
    fixed, moving = _image(target), _image(reference)
    first = _affine(fixed, moving)
    matched = sitk.HistogramMatching(
        sitk.Resample(moving, fixed, first, sitk.sitkLinear, float(reference.min())), fixed, 256, 12, True
    )
    field: sitk.Image | None = None
    for (factor, sigma), iterations in zip(LEVELS, DEMONS_ITERATIONS, strict=True):
        small, other = _coarse(fixed, factor, sigma), _coarse(matched, factor, sigma)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(1.2)
        demons.SetNumberOfThreads(1)
        if field is None:
            field = demons.Execute(small, other)
        else:
            start = sitk.Resample(field, small, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = demons.Execute(small, other, start)
    assert field is not None
    field = sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
    warp = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    return _carried(labels, fixed, sitk.CompositeTransform([first, warp]))


def located(reference: Image, labels: Labels, target: Image) -> Labels:
    """Return the labels where demons carry them from the place that agrees best, and nothing after that."""
    values = np.unique(labels[labels > 0])
    found = carry(reference, np.stack([labels == value for value in values]), target).probabilities
    return _most_probable(found, values)


def refined(shown: Sequence[Shown], target: Image, *, seen: Image | None = None) -> Labels:
    """Return what `mass segment --by registration` draws (`--by both`: with `seen`)."""
    references = [Reference(image=image, labels=labels) for image, labels in shown]
    values = np.unique(np.concatenate([np.unique(labels[labels > 0]) for _, labels in shown]))
    structures = [Structure(name=str(value), values=(int(value),)) for value in values]
    return _most_probable(carry_structures(references, structures, target, seen=seen).probabilities, values)


def voted(method: OneShot) -> Method:
    """Return a method that asks another one with each reference alone, and takes the majority."""

    def answer(shown: Sequence[Shown], target: Image) -> Labels:
        return majority([method(image, labels, target) for image, labels in shown])

    return answer


METHODS: dict[str, Method] = {
    "copied": voted(copied),
    "affine": voted(affine),
    "affine + demons": voted(affine_demons),
    "located + demons": voted(located),
    "located + demons + refined": refined,
}


def _most_probable(probabilities: Image, values: Labels) -> Labels:
    best = probabilities.argmax(axis=0)
    return np.where(probabilities.max(axis=0) >= 0.5, values[best], 0).astype(np.uint16)


def majority(answers: list[Labels]) -> Labels:
    """Return the most frequent label of each voxel, of several the lowest."""
    if len(answers) == 1:
        return answers[0]
    values = np.unique(np.concatenate([np.unique(answer) for answer in answers]))
    votes = np.stack([sum((answer == value).astype(np.int16) for answer in answers) for value in values])
    return values[votes.argmax(axis=0)].astype(np.uint16)


def _image(array: Image) -> sitk.Image:
    return sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))


def _affine(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([_factor(fixed, factor) for factor, _ in LEVELS])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in LEVELS])
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(start, inPlace=False)
    found: sitk.Transform = method.Execute(fixed, moving)
    return found


def _factor(image: sitk.Image, factor: int) -> int:
    """The factor, or less where the shortest axis allows no more."""
    return max(1, min(factor, min(image.GetSize()) // _SHORTEST))


def _coarse(image: sitk.Image, factor: int, sigma: float) -> sitk.Image:
    smooth = sitk.SmoothingRecursiveGaussian(image, sigma) if sigma else image
    return sitk.Shrink(smooth, [max(1, min(factor, size // _SHORTEST)) for size in image.GetSize()])


def _carried(labels: Labels, onto: sitk.Image, transform: sitk.Transform) -> Labels:
    moving = sitk.GetImageFromArray(labels.astype(np.uint16))
    found = sitk.Resample(moving, onto, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt16)
    return np.asarray(sitk.GetArrayFromImage(found), dtype=np.uint16)
