"""Graph segmentation after Felzenszwalb and Huttenlocher (IJCV 59, 2004), in 3D: a baseline for proposals.

    image --blur--> intensity steps between face neighbours --weakest first--> joined while both sides are
    as uneven inside as the step between them, plus k / their size --small ones join their neighbour--> labels

scikit-image's is for 2D images (it says so and treats z as channels), higra has none: hence this one. Each k
is a segmentation of its own, as each number of segments is for SLIC. The steps are sorted once for all k.

Reads:  image (z, y, x) integer codes.
Writes: labels (z, y, x) int32, 0.., a volume each k, coarsest first.
Bounds: one thread, about 0.7 seconds a million voxels for five k; 50 bytes a voxel. Steps have 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.quality.stored_scan import IntArray

_NUM_STEPS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class FelzenszwalbConfig:
    """Settings of the baseline."""

    scales: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1)
    """k of each segmentation, in intensities scaled to 0..1 times voxels; larger gives larger segments."""
    sigma_voxels: float = 0.8
    """Of the blur before, the value of the paper and of scikit-image."""


def felzenszwalb_scales(
    image: IntArray, *, min_voxels: int, config: FelzenszwalbConfig
) -> Iterator[NDArray[np.int32]]:
    """Label volumes (z, y, x) at each scale, labels 0.. in scan order.

    Args:
        image: (z, y, x) codes, already clipped to the intensity window; scaled here to 0..1.
        min_voxels: Smaller segments join the neighbour over the weakest step.
        config: Scales and blur.
    """
    low, high = float(image.min()), float(image.max())
    unit = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    unit = ndimage.gaussian_filter(unit, config.sigma_voxels, mode="nearest")
    steps, order = _sorted_edges(np.ascontiguousarray(unit))
    for scale in config.scales:
        flat = _segment(steps, order, unit.shape, scale, min_voxels)
        yield flat.reshape(unit.shape)


@numba.njit(cache=True, nogil=True)
def _sorted_edges(unit: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The step along each axis from each voxel, (3 * V,), and the edges by rising step, ties in scan order.

    Edge 3 * v + d goes from voxel v to the next along axis d; those that would leave the scan are left out.
    """
    shape = unit.shape
    steps = np.zeros(3 * unit.size, np.uint16)
    counts = np.zeros(_NUM_STEPS + 1, np.int64)
    for filling in range(2):
        if filling == 1:
            counts = np.cumsum(counts)  # where the edges of each step begin
            order = np.empty(counts[-1], np.int64)
        v = 0
        for z in range(shape[0]):
            for y in range(shape[1]):
                for x in range(shape[2]):
                    for d in range(3):
                        nz, ny, nx = z + (d == 0), y + (d == 1), x + (d == 2)
                        if nz < shape[0] and ny < shape[1] and nx < shape[2]:
                            edge = 3 * v + d
                            if filling == 0:
                                step = abs(unit[nz, ny, nx] - unit[z, y, x])
                                steps[edge] = np.uint16(min(step, 1.0) * (_NUM_STEPS - 1))
                                counts[np.int64(steps[edge]) + 1] += 1
                            else:
                                order[counts[steps[edge]]] = edge
                                counts[steps[edge]] += 1
                    v += 1
    return steps, order


@numba.njit(cache=True, nogil=True)
def _find(parent: NDArray[np.int32], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True, nogil=True)
def _segment(
    steps: NDArray[np.uint16], order: NDArray[np.int64], shape: tuple[int, int, int], scale: float,
    min_voxels: int,
) -> NDArray[np.int32]:  # fmt: skip
    num_voxels = shape[0] * shape[1] * shape[2]
    stride = (shape[1] * shape[2], shape[2], 1)
    parent = np.arange(num_voxels).astype(np.int32)
    size = np.ones(num_voxels, np.int32)
    bound = np.full(num_voxels, np.float32(scale))  # largest step inside plus k / size
    for round_ in range(2):  # the second joins the small ones
        for i in range(len(order)):
            edge = order[i]
            v = edge // 3
            a = _find(parent, v)
            b = _find(parent, v + stride[edge - 3 * v])
            if a == b:
                continue
            step = np.float32(steps[edge]) / np.float32(_NUM_STEPS - 1)
            if round_ == 0:
                wanted = step <= bound[a] and step <= bound[b]
            else:
                wanted = size[a] < min_voxels or size[b] < min_voxels
            if wanted:
                if size[a] < size[b]:
                    a, b = b, a
                parent[b] = a
                size[a] += size[b]
                bound[a] = step + np.float32(scale) / size[a]
    labels = np.empty(num_voxels, np.int32)
    number = np.full(num_voxels, -1, np.int32)
    used = 0
    for v in range(num_voxels):
        root = _find(parent, v)
        if number[root] < 0:
            number[root] = used
            used += 1
        labels[v] = number[root]
    return labels
