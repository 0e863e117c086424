"""Body mask of a scan, and the box around the body.

*Reads*: an image (z, y, x) in real units with its spacing. *Writes*: a mask, or a box (three slices). The
rules use intensities only, never labels, and keep too much rather than too little: they take every component
of the foreground that is not small relative to the largest (two legs, two arms), at a resolution of a few
millimetres. If the object is darker than its surroundings, nearly everything is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_WORKING_MM = 3.0
"""Distance of the sampled voxels in mm; enough for the outline of a body."""

_SMALL_FRACTION_CT = 0.02
"""CT components with fewer voxels than this fraction of the largest are left out (table, cables)."""

_SMALL_FRACTION = 0.002
"""The same for MR and PET, where the body consists of many bright components and only noise is small."""


def body_box(
    image: NDArray[Any],
    spacing_zyx_mm: tuple[float, float, float],
    *,
    threshold: float | None,
    margin_mm: float,
) -> tuple[slice, slice, slice] | None:
    """Return the box of the foreground with its margin, or None if there is no foreground.

    Args:
        image: (z, y, x), any number type.
        spacing_zyx_mm: Voxel size along each axis, in mm.
        threshold: Voxels above it are foreground; None to find one between background and body.
        margin_mm: Margin around the foreground on each side, in mm, as far as the image reaches.

    Returns:
        Slices along z, y, x, in voxels.
    """
    strides = tuple(max(1, round(_WORKING_MM / s)) for s in spacing_zyx_mm)
    sample = image[tuple(slice(None, None, k) for k in strides)]
    small = _SMALL_FRACTION_CT if threshold is not None else _SMALL_FRACTION
    level = background_threshold(sample) if threshold is None else threshold
    mask = main_components(sample > level, small)
    if not mask.any():
        return None
    box = []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        where = np.flatnonzero(mask.any(axis=others))
        margin = int(np.ceil(margin_mm / spacing_zyx_mm[axis])) + strides[axis] - 1
        start = max(0, int(where[0]) * strides[axis] - margin)
        stop = min(image.shape[axis], int(where[-1]) * strides[axis] + 1 + margin)
        box.append(slice(start, stop))
    return (box[0], box[1], box[2])


def background_threshold(sample: NDArray[Any]) -> float:
    """Return a threshold between air and body for MR and PET: Otsu's on the logarithm of intensity.

    On the plain intensities, Otsu separates bright tissue (fat, a tumour's uptake) from the rest. With the
    logarithm, the step from noise to the darkest tissue is the larger one.

    Args:
        sample: Intensities in any shape, any number type.
    """
    values = sample.astype(np.float32, copy=False).ravel()
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.5)))
    if high <= low:
        high = float(values.max())
    if high <= low:
        return low
    logarithms = np.log1p(255 * np.clip((values - low) / (high - low), 0, 1))
    return low + (high - low) * float(np.expm1(otsu_threshold(logarithms))) / 255


def working_sample(
    image: NDArray[Any], spacing_zyx_mm: tuple[float, float, float]
) -> tuple[NDArray[Any], tuple[int, int, int], float]:
    """Return the image sampled about every 3 mm, the strides, and the fraction for small components."""
    z, y, x = (max(1, round(_WORKING_MM / s)) for s in spacing_zyx_mm)
    return image[::z, ::y, ::x], (z, y, x), _SMALL_FRACTION


def main_components(mask: NDArray[np.bool_], small_fraction: float) -> NDArray[np.bool_]:
    """Return the mask without thin bridges and without components that are small relative to the largest.

    Args:
        mask: bool (z, y, x) at working resolution.
        small_fraction: Components with fewer voxels than this fraction of the largest are small.
    """
    opened = ndimage.binary_opening(mask, ndimage.generate_binary_structure(3, 1))
    if opened.sum() < 0.25 * mask.sum():  # the body is a few voxels thick: opening would remove it
        opened = mask
    parts, num_parts = ndimage.label(opened)
    if num_parts <= 1:
        return np.asarray(opened, dtype=np.bool_)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= small_fraction * sizes.max())[parts] & opened, dtype=np.bool_)


def body_mask(
    image: NDArray[Any],
    spacing_zyx_mm: tuple[float, float, float],
    *,
    threshold: float | None,
    most: float,
) -> NDArray[np.bool_]:
    """Return the mask of the body, with holes filled and a rim of a few millimetres; bool (z, y, x).

    Computed at a resolution of 3 mm. Lungs and bowel belong to the body, since holes are filled slice by
    slice along each axis. Table, air and streaks outside do not belong to it.

    Args:
        image: (z, y, x), any number type.
        spacing_zyx_mm: Voxel size along each axis, in mm.
        threshold: Voxels above it are body; None to find one between background and body.
        most: Upper limit of a threshold that is found, so that dark tissue stays body.
    """
    strides = tuple(max(1, round(_WORKING_MM / s)) for s in spacing_zyx_mm)
    sample = image[tuple(slice(None, None, k) for k in strides)]
    small = _SMALL_FRACTION_CT if threshold is not None else _SMALL_FRACTION
    level = min(background_threshold(sample), most) if threshold is None else threshold
    mask = main_components(sample > level, small)
    for axis in range(3):
        for part in np.moveaxis(mask, axis, 0):
            ndimage.binary_fill_holes(part, output=part)
    mask = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 1))
    index = [
        np.minimum(np.arange(n) // k, m - 1) for n, k, m in zip(image.shape, strides, mask.shape, strict=True)
    ]
    return np.asarray(mask[np.ix_(*index)], dtype=np.bool_)


def otsu_threshold(values: NDArray[np.floating[Any]]) -> float:
    """Return the threshold with the largest variance between the two classes of values (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * gap**2)
    return float(edges[int(between.argmax()) + 1])
