"""Label maps on a target's own grid: voxels go to the most probable structure, the largest part is kept.

*Takes* arrays (z, y, x). Label maps are changed in place.
"""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray

from training.data import Size, box_of_mask


def claim(
    places: NDArray[np.uint16], best: NDArray[np.float32], probability: NDArray[np.float32], place: int
) -> None:
    """Give a structure the voxels where it reaches the threshold and exceeds all structures before it."""
    # ">=" for the first, so that a voxel at the threshold itself belongs to it.
    better = np.where(places == 0, probability >= best, probability > best)
    places[better] = place
    best[better] = probability[better]


def keep_largest(places: NDArray[np.uint16], place: int) -> None:
    """Keep the largest connected part of a structure only; of equally large ones the first in scan order."""
    mask = places == place
    box = box_of_mask(mask)
    if box is None:
        return
    mask = mask[box]
    parts = cc3d.connected_components(mask.astype(np.uint8), connectivity=26)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    places[box][mask & (parts != sizes.argmax())] = 0


def in_whole(
    placed: tuple[tuple[slice, slice, slice], NDArray[np.float32]] | None, shape: Size
) -> NDArray[np.float32]:
    """Return a float32 volume of `shape` with the values in their box, and 0 elsewhere."""
    whole = np.zeros(shape, np.float32)
    if placed:
        whole[placed[0]] = placed[1]
    return whole
