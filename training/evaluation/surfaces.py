"""Surface distances of two masks in mm: HD95 and ASD, as MONAI defines them.

*Reads* masks bool (z, y, x) and the voxel size. *Writes* two numbers. The surface of a mask is its voxels
with a face neighbour outside the mask; voxels beyond the volume are outside. Distances are between voxel
centres. HD95 is the larger of the 95th percentiles of both directions. ASD is symmetric: the mean, over the
surface voxels of both masks, of the distance to the other surface. If a mask is empty, both are NaN.
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
    """Surface distances of two masks; NaN if one mask is empty."""

    hd95_mm: float
    """95th percentile of the Hausdorff distance."""
    asd_mm: float
    """Average symmetric surface distance."""


UNKNOWN = SurfaceDistances(hd95_mm=math.nan, asd_mm=math.nan)
"""Distances that were not measured, or are not defined."""


def surface_distances(
    predicted: NDArray[np.bool_], expected: NDArray[np.bool_], spacing_zyx_mm: tuple[float, float, float]
) -> SurfaceDistances:
    """Return the surface distances of two masks.

    Args:
        predicted: (z, y, x).
        expected: (z, y, x).
        spacing_zyx_mm: Voxel size along each axis.
    """
    if not (predicted.any() and expected.any()):
        return UNKNOWN
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    box = box_of_mask(predicted | expected)
    assert box is not None
    # Padded by one voxel on each side, so that voxels at the faces of the volume count as surface.
    first, second = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (predicted, expected))
    spacing = list(spacing_zyx_mm)
    with warnings.catch_warnings():
        # MONAI 1.6 internally uses an argument that it has deprecated.
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        hausdorff = compute_hausdorff_distance(
            first, second, include_background=True, percentile=95, spacing=spacing
        )
        average = compute_average_surface_distance(
            first, second, include_background=True, symmetric=True, spacing=spacing
        )
    return SurfaceDistances(hd95_mm=float(hausdorff), asd_mm=float(average))
