"""Refinement of registered masks to the target's own boundaries.

    vote        each voxel takes the mean of nearby masks, weighted by the similarity of the two images there
    confidence  agreement of a mask with both images, as an estimate of its Dice
    sharpen     expectation-maximisation: the masks are the prior, the target's intensities the likelihood,
                with a histogram per structure and one for the background; neighbouring voxels are coupled

*Takes* and *gives* arrays (z, y, x) of one voxel size; nothing is learned and nothing is random.
Bounds: a structure as bright as its surroundings stays where it is. Neither step finds structures that the
        registration has missed: a mask gets no voxel farther than `BAND_VOXELS` from the placed masks. Memory
        holds the masks and the result per structure, and three float32 volumes of the box around each.

vote: Coupe et al. 2011, "Patch-based segmentation using expert priors", here with one registered reference.
sharpen: Van Leemput et al. 1999, "Automated model-based tissue classification of MR images of the brain",
with histograms in place of normal distributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.data import box_of_mask
from training.inference.confidence import expected_dice

Image: TypeAlias = NDArray[np.float32]
Window: TypeAlias = tuple[slice, slice, slice]

SEARCH_VOXELS = 2
"""Largest distance, along each axis, between a voxel and the voxels whose masks vote for its value."""
PATCH_VOXELS = 3
"""Edge of the cubes whose intensities are compared."""
LIKENESS = 0.5
"""Root mean square difference of two cubes, in standard deviations of the target near the masks, at which a
vote counts 1/e."""
MAX_VOTED_VOXELS = 2_000_000
"""In larger windows there is no vote: it takes a second per 200,000 voxels."""
BAND_VOXELS = 4
"""Largest distance from the placed masks to which a structure may grow."""
PRIOR_SIGMA = 1.0
"""Smoothing of the placed masks in voxels: the usual error of a registration."""
PRIOR_SIGMA_RADIUS = 1 / 8
"""Largest smoothing, as a fraction of a structure's radius: a small structure would be smoothed away."""
LIKELIHOOD_POWER = 1.25
"""Weight of the intensities against the prior (docs/results.md)."""
COUPLING = 1.0
"""Weight of the neighbours against both."""
COUPLING_SIGMA = 0.8
"""Standard deviation in voxels of the weights of neighbours."""
CONFIDENCE_VOXELS = 3
"""Width of the margin around a structure in which the two images are compared."""
DETAIL_SIGMA = 4
"""Standard deviation in voxels of the blur that is subtracted to leave fine detail."""
ITERATIONS = 5
NUM_BINS = 32
_BIN_SIGMA = 1.5
_LEAST_PRIOR = 1e-4
_LEAST_PLACED = 0.02
_LEAST_VARIANCE = 1e-9
"""Variance of z-scores below which an image is constant, but for rounding."""
_NOWHERE: Window = (slice(0, 0), slice(0, 0), slice(0, 0))
_PLACED = 0.3
"""Sum of the masks from which a voxel counts as placed."""


def vote(masks: Image, warped: Image, target: Image) -> Image:
    """Return masks (K, z, y, x), 0..1, corrected by up to `SEARCH_VOXELS` where the images differ.

    Args:
        masks: The reference's masks on the target's grid, (K, z, y, x).
        warped: The reference's image on the target's grid, (z, y, x).
        target: (z, y, x).
    """
    window = _window_of(masks, SEARCH_VOXELS + PATCH_VOXELS)
    if window is None or _volume(window) > MAX_VOTED_VOXELS:
        return masks
    here, there, own = target[window], warped[window], masks[(slice(None), *window)]
    near = ndimage.binary_dilation(own.sum(axis=0) > _PLACED, iterations=BAND_VOXELS)
    spread = float(here[near].std()) if near.any() else 0.0
    if spread <= 0:
        return masks
    boxes = [_window_of(mask[None], SEARCH_VOXELS) or _NOWHERE for mask in own]
    sums = [np.zeros_like(mask[box]) for mask, box in zip(own, boxes, strict=True)]
    weights = np.zeros(here.shape, np.float32)
    for shift in _shifts():
        squares = ((here - _shifted(there, shift)) / np.float32(spread)) ** 2
        mean = ndimage.uniform_filter(squares, PATCH_VOXELS, mode="nearest")
        distance = sum(step * step for step in shift) / (2 * SEARCH_VOXELS**2)
        weight = np.exp(-mean / np.float32(LIKENESS**2) - np.float32(distance)) + np.float32(1e-8)
        weights += weight
        for voices, mask, box in zip(sums, own, boxes, strict=True):
            voices += weight[box] * _shifted(mask[box], shift)
    voted = masks.copy()
    voted[(slice(None), *window)] = 0
    for k, (voices, box) in enumerate(zip(sums, boxes, strict=True)):
        voted[k][window][box] = voices / weights[box]
    return voted


def sharpen(masks: Image, target: Image) -> Image:
    """Return the probability (K, z, y, x) of each structure, 0..1, from masks and the target's intensities.

    It is p / (p + q), where q is the probability of the next best class, which may be the background. Above
    0.5 a structure is the most probable class.

    Args:
        masks: Registered masks of the structures, (K, z, y, x), 0..1.
        target: (z, y, x).
    """
    window = _window_of(masks, BAND_VOXELS + 2)
    if window is None:
        return np.zeros_like(masks)
    own = masks[(slice(None), *window)]
    near = ndimage.binary_dilation(own.sum(axis=0) > _PLACED, iterations=BAND_VOXELS)
    if not near.any():
        return masks
    codes = _codes(target[window], near)
    priors = _priors(own, near)
    posteriors = [prior.values for prior in priors]
    for _ in range(ITERATIONS):
        evidence = [
            _Part(prior.box, prior.values * _likelihood(posterior, codes[prior.box], near[prior.box]))
            for prior, posterior in zip(priors, posteriors, strict=True)
        ]
        posteriors.clear()
        posteriors = _coupled(evidence, near)
        evidence.clear()
    boxes = [prior.box for prior in priors]
    priors.clear()
    sharp = np.zeros_like(masks)
    for k, (box, posterior) in enumerate(zip(boxes[1:], posteriors[1:], strict=True)):
        sharp[k][window][box] = posterior
    surrounding = np.ones(target.shape, np.float32)
    surrounding[window] = posteriors[0]
    posteriors.clear()
    return _beside_the_next_best(sharp, surrounding)


def confidence(
    probability: Image, drawn: NDArray[np.bool_], warped: Image, target: Image, *, agreement: float = 1.0
) -> float:
    """Return an estimate of a structure's Dice, 0..1; docs/results.md gives its error.

    It is the expected Dice of the mask under the probabilities, times the geometric mean of three
    correlations of the two images: in and around the structure, of their fine detail there, and around all
    structures. If the structure is absent, demons make the images similar, but not their detail, and not
    everywhere.

    Args:
        probability: Probability of the structure, (z, y, x).
        drawn: Its voxels.
        warped: The reference's image on the target's grid.
        target: (z, y, x).
        agreement: The correlation around all structures, -1..1.
    """
    window = _window_of(drawn[None].astype(np.float32), 2 * DETAIL_SIGMA)
    if window is None:
        return 0.0
    here, there, own = drawn[window], warped[window], target[window]
    expected = expected_dice(probability, drawn)
    near = ndimage.binary_dilation(here, iterations=CONFIDENCE_VOXELS)
    whole = correlation(there[near], own[near])
    fine = correlation(_detail(there)[near], _detail(own)[near])
    return expected * float(np.cbrt(max(0.0, whole) * max(0.0, fine) * max(0.0, agreement)))


def _detail(image: Image) -> Image:
    return np.asarray(image - ndimage.gaussian_filter(image, DETAIL_SIGMA))


def correlation(first: Image, second: Image) -> float:
    """Return Pearson's correlation of two images, in float64; 0 if one of them is almost constant."""
    if len(first) < 2:
        return 0.0
    a, b = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > _LEAST_VARIANCE * len(first) else 0.0


def _beside_the_next_best(probabilities: Image, surrounding: Image) -> Image:
    """Return p / (p + q), q that of the next best class, in the memory of the probabilities."""
    first, second = surrounding.copy(), np.zeros_like(surrounding)
    for probability in probabilities:
        np.maximum(second, np.minimum(first, probability), out=second)
        np.maximum(first, probability, out=first)
    for probability in probabilities:  # in place
        next_best = np.where(probability >= first, second, first)
        np.divide(probability, probability + next_best, out=probability, where=probability > 0)
    return probabilities


@dataclass(frozen=True, eq=False)
class _Part:
    """A class in the box that it may reach; the first class is the background."""

    box: Window
    values: Image


def _priors(masks: Image, near: NDArray[np.bool_]) -> list[_Part]:
    """Return the classes' priors, which sum to 1 at each voxel near the masks and are 0 elsewhere."""
    smooth = [ndimage.gaussian_filter(mask, _prior_sigma(mask)) for mask in masks]
    rest = np.clip(1 - sum(smooth, np.zeros(near.shape, np.float32)), _LEAST_PRIOR, 1)
    parts = [_Part(_whole(near.shape), rest)]
    smooth.reverse()
    while smooth:
        mask = smooth.pop()
        box = _window_of(mask[None], BAND_VOXELS) or _NOWHERE
        parts.append(_Part(box, np.where(near[box], np.maximum(mask[box], _LEAST_PRIOR), 0)))
    boxes, values = [part.box for part in parts], [part.values for part in parts]
    _normalize(values, boxes, near.shape)
    return [_Part(box, one) for box, one in zip(boxes, values, strict=True)]


def _prior_sigma(mask: Image) -> float:
    """Return the standard deviation for smoothing a mask, from the radius of a ball of the same volume."""
    radius = (3 * float(mask.sum(dtype=np.float64)) / (4 * np.pi)) ** (1 / 3)
    return float(min(PRIOR_SIGMA, PRIOR_SIGMA_RADIUS * radius))


def _coupled(evidence: list[_Part], near: NDArray[np.bool_]) -> list[Image]:
    """Return posteriors of the classes: the evidence, after two rounds of coupling between neighbours."""
    boxes = [part.box for part in evidence]
    posteriors = [part.values.copy() for part in evidence]
    _normalize(posteriors, boxes, near.shape)
    for _ in range(2):
        for k, part in enumerate(evidence):
            smooth = ndimage.gaussian_filter(posteriors[k], COUPLING_SIGMA)
            posteriors[k] = part.values * np.exp(2 * COUPLING * smooth)
        _normalize(posteriors, boxes, near.shape)
    return posteriors


def _normalize(values: Sequence[Image], boxes: Sequence[Window], shape: tuple[int, ...]) -> None:
    """Divide the classes' values, each in its box, by their sum at each voxel, in place."""
    total = np.full(shape, 1e-12, np.float32)
    for one, box in zip(values, boxes, strict=True):
        total[box] += one
    for one, box in zip(values, boxes, strict=True):
        one /= total[box]


def _likelihood(posterior: Image, codes: NDArray[np.intp], near: NDArray[np.bool_]) -> Image:
    """Return the likelihood of each voxel's intensity in a class, from its present smoothed histogram."""
    counts = np.bincount(codes[near], weights=posterior[near], minlength=NUM_BINS)
    counts = ndimage.gaussian_filter1d(counts, _BIN_SIGMA, mode="nearest")
    total = counts.sum()
    rates = (counts + 1e-3 * total / NUM_BINS) / (1.001 * total + 1e-9)
    return np.asarray((rates**LIKELIHOOD_POWER).astype(np.float32)[codes])


def _codes(image: Image, near: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the bin of each voxel's intensity, 0..NUM_BINS - 1."""
    low, high = np.percentile(image[near], (0.5, 99.5))
    scaled = (image - low) * (NUM_BINS / max(float(high - low), 1e-6))
    return np.asarray(np.clip(scaled, 0, NUM_BINS - 1), dtype=np.intp)


def _window_of(masks: Image, margin: int) -> Window | None:
    """Return the box of the placed masks with a margin, inside the scan; None if all are empty."""
    box = box_of_mask(np.asarray((masks > _LEAST_PLACED).any(axis=0)))
    if box is None:
        return None
    z, y, x = (
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, size in zip(box, masks.shape[1:], strict=True)
    )
    return z, y, x


def _whole(shape: tuple[int, ...]) -> Window:
    z, y, x = (slice(0, size) for size in shape)
    return z, y, x


def _volume(window: Window) -> int:
    z, y, x = (part.stop - part.start for part in window)
    return int(z * y * x)


def _shifts() -> Iterator[tuple[int, int, int]]:
    """Yield the steps (z, y, x) inside a ball."""
    steps = range(-SEARCH_VOXELS, SEARCH_VOXELS + 1)
    for z, y, x in product(steps, steps, steps):
        if z * z + y * y + x * x <= SEARCH_VOXELS**2:
            yield z, y, x


def _shifted(image: Image, shift: tuple[int, int, int]) -> Image:
    """Return the image moved by a step; the outermost slice is repeated where no voxel moves in."""
    rows = [
        np.clip(np.arange(size) - step, 0, size - 1) for size, step in zip(image.shape, shift, strict=True)
    ]
    return np.asarray(image[np.ix_(*rows)])
