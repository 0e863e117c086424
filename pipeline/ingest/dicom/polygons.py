"""Polygons to masks by the even-odd rule: a voxel is inside if its centre is in an odd number of polygons.

*Reads*: closed polygons in index coordinates. *Writes*: a mask, bool (y, x).

A polygon within a polygon is a hole, a third one in it an island; where two polygons overlap, the mask is
empty. The two edges of a keyhole (a cut to a hole) cancel. A centre exactly on an outline belongs to the side
of larger x (of larger y on horizontal edges), so polygons with a common edge share no voxel and leave no gap.
Coordinates are first rounded to a millionth of a voxel, so that rounding errors decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DECIMALS = 6
"""Decimals to which index coordinates are rounded."""


def fill_polygons(polygons: Sequence[NDArray[np.float64]], shape_yx: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of polygons under the even-odd rule.

    Args:
        polygons: (N, 2) corners (x, y) of each, in voxels; (0, 0) is the centre of the first voxel. The last
            corner is joined with the first.
        shape_yx: Rows and columns of the mask. Parts outside are cut off.

    Returns:
        bool (y, x).
    """
    height, width = shape_yx
    edges = [np.stack([p, np.roll(p, -1, axis=0)], axis=1) for p in polygons if len(p) >= 3]
    if not edges:
        return np.zeros(shape_yx, np.bool_)
    ends = np.round(np.concatenate(edges), _DECIMALS)  # (edges, 2, 2): two ends (x, y)
    flip = ends[:, 0, 1] > ends[:, 1, 1]  # upwards, so that both runs of a keyhole cross at one point
    ends[flip] = ends[flip][:, ::-1]
    (x0, y0), (x1, y1) = ends[:, 0].T, ends[:, 1].T
    first, stop = (np.clip(np.ceil(y), 0, height).astype(np.int64) for y in (y0, y1))
    counts = stop - first  # rows whose centres an edge crosses; half-open, so none is crossed twice
    edge = np.repeat(np.arange(len(ends)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    crossing = x0[edge] + (rows - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    crossings = np.zeros((height, width + 1), np.int64)
    columns = np.clip(np.ceil(np.round(crossing, _DECIMALS)), 0, width).astype(np.int64)
    np.add.at(crossings, (rows, columns), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :width] % 2 == 1)
