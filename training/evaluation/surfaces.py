"""How far the surfaces of two masks lie apart, in mm: HD95 and ASD, as MONAI measures them.

*Reads* masks bool (z, y, x) and the voxel size. *Writes* two numbers. A surface is the voxels of a mask that
have a face neighbour outside, the faces of the volume counting as outside; distances run between voxel
centres. HD95 is the larger of the two directions' 95th percentiles. ASD is the symmetric one: the mean over
the surface voxels of both masks of the distance to the other's surface. A mask without a voxel has no
surface: both are NaN then.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import box_of_mask


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Of two masks; NaN where one is empty."""

    hd95_mm: float
    """95th percentile of the Hausdorff distance."""
    asd_mm: float
    """Average symmetric surface distance."""


UNKNOWN = SurfaceDistances(hd95_mm=math.nan, asd_mm=math.nan)
"""Not measured, or not defined."""


def surface_distances(
    drawn: NDArray[np.bool_], expected: NDArray[np.bool_], spacing_zyx_mm: tuple[float, float, float]
) -> SurfaceDistances:
    """Return how far two masks' surfaces lie apart.

    Args:
        drawn: (z, y, x)
        expected: (z, y, x)
        spacing_zyx_mm: Voxel size along each axis.
    """
    if not (drawn.any() and expected.any()):
        return UNKNOWN
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    box = box_of_mask(drawn | expected)
    assert box is not None
    # One voxel more on each side: a mask's voxels at the volume's face are its surface all the same.
    one, other = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (drawn, expected))
    spacing = list(spacing_zyx_mm)
    with warnings.catch_warnings():
        # MONAI 1.6 calls itself with an argument that it has deprecated.
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        hausdorff = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, spacing=spacing
        )
        average = compute_average_surface_distance(
            one, other, include_background=True, symmetric=True, spacing=spacing
        )
    return SurfaceDistances(hd95_mm=float(hausdorff), asd_mm=float(average))
