"""Voxels that are NaN or infinite: which are padding, which lie inside the body, and values for both.

*Reads*: an image (z, y, x) in real units with its spacing. *Writes*: a copy without such voxels. The rules
use intensities only, and the same image gives the same bytes.

Padding is what touches the border of the volume (voxels joined by faces), and what lies outside of the body.
It takes the lowest value of the image. A voxel inside the body takes the value of the nearest one that is a
number. The body is found at a distance of 3 mm; gaps of up to 12 mm are closed, holes filled plane by plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.volumes.foreground import background_threshold, main_components, working_sample

_CLOSING_STEPS = 2
"""Steps by which gaps in the body are closed, in sampled voxels of 3 mm."""


@dataclass(frozen=True, kw_only=True)
class FilledImage:
    """An image without NaN and infinite voxels.

    Attributes:
        image: (z, y, x) float32, a copy.
        padding: bool (z, y, x): voxels that took the lowest value.
        num_inside: Voxels inside the body that took the value of the nearest one.
        fraction_of_body: Fraction of the body's voxels that are NaN or infinite, padding or not.
    """

    image: NDArray[np.float32]
    padding: NDArray[np.bool_]
    num_inside: int
    fraction_of_body: float


def fill_not_finite(
    image: NDArray[np.float32], spacing_zyx_mm: tuple[float, float, float]
) -> FilledImage | None:
    """Return the image with a number in every voxel; None if no voxel is a number.

    Args:
        image: (z, y, x) with NaN or infinite voxels.
        spacing_zyx_mm: Voxel size along each axis, in mm.
    """
    missing = ~np.isfinite(image)
    if missing.all():
        return None
    filled = np.where(missing, image[~missing].min(), image)
    body = _body(filled, spacing_zyx_mm)
    padding = missing & ~body
    padding |= _joined_to_border(missing)
    inside = missing & ~padding
    _fill_from_nearest(filled, missing, inside, spacing_zyx_mm)
    return FilledImage(
        image=filled,
        padding=padding,
        num_inside=int(inside.sum()),
        fraction_of_body=float((missing & body).sum() / max(1, int(body.sum()))),
    )


def _body(image: NDArray[np.float32], spacing_zyx_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Return bool (z, y, x): the foreground without small parts, its gaps closed and its holes filled."""
    sample, strides, small = working_sample(image, spacing_zyx_mm)
    mask = np.pad(main_components(sample > background_threshold(sample), small), _CLOSING_STEPS)
    cross = ndimage.generate_binary_structure(3, 1)
    closed = ndimage.binary_closing(mask, cross, iterations=_CLOSING_STEPS)
    for axis in range(3):
        for plane in np.moveaxis(closed, axis, 0):
            ndimage.binary_fill_holes(plane, output=plane)
    inner = slice(_CLOSING_STEPS, -_CLOSING_STEPS)
    body = closed[inner, inner, inner]
    index = [
        np.minimum(np.arange(n) // k, m - 1) for n, k, m in zip(image.shape, strides, body.shape, strict=True)
    ]
    return np.asarray(body[np.ix_(*index)], dtype=np.bool_)


def _joined_to_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the parts of a mask that reach a face of the volume."""
    parts, num_parts = ndimage.label(mask)
    reaching = np.zeros(num_parts + 1, np.bool_)
    for axis in range(3):
        for end in (0, -1):
            reaching[np.unique(np.take(parts, end, axis=axis))] = True
    reaching[0] = False
    return np.asarray(reaching[parts], dtype=np.bool_)


def _fill_from_nearest(
    image: NDArray[np.float32],
    missing: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    spacing_zyx_mm: tuple[float, float, float],
) -> None:
    """Give the voxels `inside`, in place, the value of the nearest voxel that is not `missing`."""
    if not inside.any():
        return
    box = []
    for axis in range(3):
        where = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2))  # none is at the border
    part = (box[0], box[1], box[2])
    nearest = ndimage.distance_transform_edt(
        missing[part], sampling=spacing_zyx_mm, return_distances=False, return_indices=True
    )
    values: NDArray[Any] = image[part]
    values[inside[part]] = values[tuple(axis[inside[part]] for axis in nearest)]
