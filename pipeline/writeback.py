"""From the stored grid back onto the input's own grid.

*Reads*: a label map (z, y, x) on the stored grid. *Writes*: the same on the source's own array axes, shape
and geometry, by nearest neighbour; 0 where the stored volume does not reach. Also writes arrays as image
files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import axis_maps
from pipeline.volume import Grid

Scalar = TypeVar("Scalar", bound=np.generic)


def to_source_grid(labels: NDArray[Scalar], grid: Grid, source_grid: Grid) -> NDArray[Scalar]:
    """Label map on the source's own axes: `source_grid.shape_zyx`, the input's dtype.

    Args:
        labels: (z, y, x) on `grid`.
        grid: The stored grid.
        source_grid: The grid of the input that the stored grid was made from.

    Raises:
        ValueError: The array is not on `grid`, or the grids have no parallel axes.
    """
    if labels.shape != grid.shape_zyx:
        raise ValueError(f"the labels must lie on the stored grid {grid.shape_zyx}, got {labels.shape}")
    out: NDArray[Scalar] = np.zeros(source_grid.shape_zyx, labels.dtype)
    taken: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * 3
    inside: list[slice] = []
    maps = axis_maps(grid, source_grid)
    for axis, along in enumerate(maps):
        nearest = along.nearest(source_grid.shape_zyx[axis])
        valid = np.flatnonzero((nearest >= 0) & (nearest < grid.shape_zyx[along.axis]))
        if valid.size == 0:
            return out
        inside.append(slice(int(valid[0]), int(valid[-1]) + 1))
        taken[along.axis] = nearest[inside[-1]]
    z, y, x = taken
    block = labels[z][:, y][:, :, x]
    out[tuple(inside)] = block.transpose([m.axis for m in maps])
    return out


def write_image(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Writes (z, y, x) on its grid as NIfTI, NRRD or MetaImage, by the path's suffix.

    NIfTI keeps the geometry in single precision, the others in double.
    """
    import SimpleITK

    sitk: Any = SimpleITK  # carries no types
    if array.shape != grid.shape_zyx:
        raise ValueError(f"the array must lie on its grid {grid.shape_zyx}, got {array.shape}")
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == np.bool_ else array)
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(grid.origin_xyz_mm)
    image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(path), useCompression=True)
