"""Sliding windows over a volume: their positions, and the weight of each voxel of a window.

Reads:  shapes and boxes in voxels, masks bool (z, y, x).
Writes: boxes as three slices (z, y, x), weights float32 (z, y, x).
Bounds: the network halves a volume four times, so every window is a multiple of 16 voxels along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Size: TypeAlias = tuple[int, int, int]
"""Voxels along z, y, x."""

Slices: TypeAlias = tuple[slice, slice, slice]
"""Half-open box in voxels along z, y, x; may extend beyond the volume, also below 0, which needs padding."""

Kind = TypeVar("Kind", bound=np.generic)

STRIDE_VOXELS = 16
"""Voxels per axis that one voxel of the network's deepest stage stands for."""

_CARD_VOXELS = 4 * 128**3
"""Voxels of the windows that a CUDA card takes in one batch: the batch of the published training."""

_CARD_WINDOWS = 64
"""Most windows in one batch, however small they are."""


def round_up(size: int) -> int:
    """Return the next multiple of 16 that is at least `size`."""
    return -(-size // STRIDE_VOXELS) * STRIDE_VOXELS


def fit_window(shape: Size, window: Size) -> Size:
    """Return the window size for a volume: no longer than needed, and a multiple of 16 along each axis.

    Args:
        shape: Voxels of the volume.
        window: Largest size of a window, multiples of 16.

    Raises:
        ValueError: The largest size is not a positive multiple of 16 along each axis.
    """
    if any(size < STRIDE_VOXELS or size % STRIDE_VOXELS for size in window):
        raise ValueError(f"a window must be a positive multiple of {STRIDE_VOXELS} voxels, got {window}")
    z, y, x = (min(most, round_up(size)) for size, most in zip(shape, window, strict=True))
    return z, y, x


def windows_at_once(wanted: int, window: Size, *, on_card: bool) -> int:
    """Return how many windows a network computes in one batch: as wanted, and more on a CUDA card.

    On a CPU a batch takes memory and saves no time.
    """
    if not on_card:
        return wanted
    z, y, x = window
    return max(wanted, min(_CARD_VOXELS // (z * y * x), _CARD_WINDOWS))


def window_boxes(shape: Size, window: Size, overlap_fraction: float) -> tuple[Slices, ...]:
    """Return evenly spaced windows that cover a volume; x varies fastest.

    Where an axis is shorter than the window, one window is centred on it and extends beyond it on both sides.

    Args:
        shape: Voxels of the volume.
        window: Voxels of a window, see `fit_window`.
        overlap_fraction: Smallest overlap of neighbouring windows along an axis, as a fraction of the
            window's length, in [0, 1).

    Raises:
        ValueError: The overlap is not in [0, 1).
    """
    if not 0 <= overlap_fraction < 1:
        raise ValueError(f"overlap_fraction must be in [0, 1), got {overlap_fraction}")
    starts = [_starts(size, wide, overlap_fraction) for size, wide in zip(shape, window, strict=True)]
    return tuple(_box(corner, window) for corner in product(*starts))


def _starts(size: int, window: int, overlap_fraction: float) -> list[int]:
    """Return the first voxels of the windows along one axis."""
    if size <= window:
        return [-((window - size) // 2)]
    step = max(1, math.floor(window * (1 - overlap_fraction)))
    num_steps = -(-(size - window) // step)
    return [(size - window) * k // num_steps for k in range(num_steps + 1)]


def window_weights(window: Size, sigma_fraction: float = 0.125) -> NDArray[np.float32]:
    """Return the Gaussian weight of each voxel of a window, (z, y, x), largest in its middle.

    As in nnU-Net (Isensee et al., 2021). The largest weight is 1 and the smallest at least 1/1000, so that
    every voxel of a volume has some weight.

    Args:
        window: Voxels of the window.
        sigma_fraction: Standard deviation as a fraction of the window's edge.
    """
    axes = [np.arange(size) - (size - 1) / 2 for size in window]
    bells = [
        np.exp(-0.5 * (axis / (sigma_fraction * size)) ** 2) for axis, size in zip(axes, window, strict=True)
    ]
    weights = bells[0][:, None, None] * bells[1][:, None] * bells[2]
    return np.asarray(np.maximum(weights / weights.max(), 1e-3), dtype=np.float32)


def box_of_mask(mask: NDArray[np.bool_]) -> Slices | None:
    """Return the smallest box that contains a mask (z, y, x), or None if the mask is empty."""
    parts = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(inside):
            return None
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return parts[0], parts[1], parts[2]


def join_boxes(boxes: Sequence[Slices], window: Size) -> tuple[tuple[int, ...], ...]:
    """Group boxes so that one window can contain all boxes of a group; each joins the first group it fits.

    A box larger than the window is a group by itself.

    Args:
        boxes: At least one.
        window: Voxels of a window.

    Returns:
        The indices of the boxes of each group.
    """
    groups: list[list[int]] = []
    hulls: list[Slices] = []
    for index, box in enumerate(boxes):
        for group, hull in enumerate(hulls):
            joined = hull_of(hull, box)
            if all(part.stop - part.start <= size for part, size in zip(joined, window, strict=True)):
                groups[group].append(index)
                hulls[group] = joined
                break
        else:
            groups.append([index])
            hulls.append(box)
    return tuple(tuple(group) for group in groups)


def hull_of(*boxes: Slices) -> Slices:
    """Return the smallest box that contains all of these boxes."""
    z, y, x = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
    return z, y, x


def boxes_over(inner: Slices, window: Size, shape: Size) -> tuple[Slices, ...]:
    """Return windows that cover a box: one centred on it if it fits into a window, else as many as needed.

    A window that extends beyond the volume is shifted inside, where the volume is large enough.

    Args:
        inner: The box to cover, inside the volume.
        window: Voxels of a window.
        shape: Voxels of the volume.
    """
    extent = (
        inner[0].stop - inner[0].start,
        inner[1].stop - inner[1].start,
        inner[2].stop - inner[2].start,
    )
    corners: dict[Size, None] = {}  # a dict, because shifted windows may coincide
    for box in window_boxes(extent, window, 0.0):
        z, y, x = (
            _inside(part.start + outer.start, size, limit)
            for part, outer, size, limit in zip(box, inner, window, shape, strict=True)
        )
        corners[z, y, x] = None
    return tuple(_box(corner, window) for corner in corners)


def _inside(start: int, window: int, size: int) -> int:
    """Return the start shifted so that the window lies in the volume, or centred if it is longer."""
    if size <= window:
        return -((window - size) // 2)
    return min(max(start, 0), size - window)


def _box(corner: Sequence[int], window: Size) -> Slices:
    z, y, x = (slice(start, start + size) for start, size in zip(corner, window, strict=True))
    return z, y, x


def take(volume: NDArray[Kind], box: Slices, *, fill: float) -> NDArray[Kind]:
    """Return the part of a volume (..., z, y, x) that lies in a box, padded outside the volume.

    Args:
        volume: The last three axes are (z, y, x).
        box: Half-open, voxels; intersects the volume and may extend beyond it.
        fill: Value outside the volume.
    """
    shape = volume.shape[-3:]
    inside = [slice(max(part.start, 0), min(part.stop, size)) for part, size in zip(box, shape, strict=True)]
    around = [(own.start - part.start, part.stop - own.stop) for own, part in zip(inside, box, strict=True)]
    part = volume[..., inside[0], inside[1], inside[2]]
    if not any(low or high for low, high in around):
        return part
    widths = [(0, 0)] * (volume.ndim - 3) + around
    return np.pad(part, widths, mode="constant", constant_values=fill)


def take_image(image: NDArray[np.float32], box: Slices) -> NDArray[np.float32]:
    """Return the part of an image (z, y, x) in a box, padded with the image's minimum, as in training.

    The minimum of a prepared scan is the lower clip bound (air in CT, background otherwise). The padding
    value matters, because the network normalises each window, and a scan smaller than the window had padding
    on all sides in every training sample.
    """
    inside = all(part.start >= 0 and part.stop <= size for part, size in zip(box, image.shape, strict=True))
    return take(image, box, fill=0.0 if inside else float(image.min()))
