"""Boundary evidence: how fast the intensity changes at each voxel, at a scale, summed over intensity windows.

    codes --window--> levels 0..1023 --Gaussian--> --central differences--> magnitude, summed over windows

All in integers. The Gaussian has fixed-point weights that sum to 2^10 and every pass is rounded, so NumPy,
Numba and CuPy give the same bits; floating point would differ in the last one, and a basin begins where it
differs.

Reads:  codes, int16 (z, y, x).
Writes: evidence, int32 (z, y, x), about 0..2,000; 0 is flat.
Bounds: windows are cut to 10 bits; scales below half a voxel smooth next to nothing.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.backend import Backend

NUM_LEVELS = 1024
"""Steps of an intensity window."""

_LEVEL_BITS = 3
"""Fraction bits kept below a level while smoothing."""

_WEIGHT_BITS = 10
"""Fixed-point bits of the Gaussian's weights."""

Window = tuple[float, float]
"""Lower and upper end of an intensity window, in the image's real units."""


def window_levels(codes: Any, *, scale: float, offset: float, window: Window, backend: Backend) -> Any:
    """Levels 0..1023 of codes in a window, with 3 fraction bits below them.

    Args:
        codes: int16 (z, y, x); real value = code * scale + offset.
        scale: Real units a code.
        offset: Real value of code 0.
        window: Ends of the window, in real units; what lies outside is clipped.
        backend: Where `codes` are.

    Returns:
        int32 (z, y, x), 0..8,184, on the backend.
    """
    low, high = window
    values = np.arange(-(1 << 15), 1 << 15, dtype=np.float64) * scale + offset
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    table = np.rint(share * (NUM_LEVELS - 1)).astype(np.int32) << _LEVEL_BITS
    return backend.to_device(table)[codes.astype(backend.xp.int32) + (1 << 15)]


def gaussian_weights(sigma_voxels: float) -> NDArray[np.int32]:
    """Integer weights (2r+1,) of a Gaussian cut at 3 sigma, summing to 1,024 exactly."""
    radius = max(1, int(np.ceil(3 * sigma_voxels)))
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma_voxels) ** 2)
    fixed: NDArray[np.int32] = np.rint(weights / weights.sum() * (1 << _WEIGHT_BITS)).astype(np.int32)
    fixed[radius] += (1 << _WEIGHT_BITS) - fixed.sum()
    return fixed


def smooth(levels: Any, sigma_voxels_zyx: tuple[float, float, float], backend: Backend) -> Any:
    """Levels after a separable Gaussian with edge replication; int32 in and out, same shape."""
    for axis, sigma in enumerate(sigma_voxels_zyx):
        weights = gaussian_weights(sigma)
        if backend.name == "cpu":
            levels = _smooth_axis_numba(levels, weights, axis)
        else:
            levels = _smooth_axis(levels, weights, axis, backend.xp)
    return levels


def boundary_evidence(
    window_volumes: list[Any],
    *,
    sigma_mm: float,
    spacing_zyx_mm: tuple[float, float, float],
    backend: Backend,
) -> Any:
    """Gradient magnitude after smoothing, summed over intensity windows.

    Args:
        window_volumes: What `window_levels` gave, one a window.
        sigma_mm: Standard deviation of the Gaussian in mm; not less than 0.45 voxels along any axis.
        spacing_zyx_mm: Voxel size in mm; steps along each axis are taken per mean voxel edge.
        backend: Where the volumes are.

    Returns:
        int32 (z, y, x), levels a two voxel step.
    """
    xp = backend.xp
    edge = float(np.cbrt(np.prod(spacing_zyx_mm)))
    sigma = tuple(max(0.45, sigma_mm / s) for s in spacing_zyx_mm)
    ratio = np.array([round((edge / s) ** 2 * 256) for s in spacing_zyx_mm], dtype=np.int64)
    total: Any = None
    for levels in window_volumes:
        smoothed = smooth(levels, (sigma[0], sigma[1], sigma[2]), backend)
        if backend.name == "cpu":
            magnitude = _magnitude_numba(smoothed, ratio)
        else:
            magnitude = _magnitude(smoothed, ratio, xp)
        total = magnitude if total is None else total + magnitude
    return (total >> _LEVEL_BITS).astype(xp.int32)


def _shifted(volume: Any, step: int, axis: int, xp: Any) -> Any:
    """The volume moved by `step` voxels along an axis, edges repeated."""
    index = xp.clip(xp.arange(volume.shape[axis]) + step, 0, volume.shape[axis] - 1)
    return xp.take(volume, index, axis=axis)


def _smooth_axis(levels: Any, weights: NDArray[np.int32], axis: int, xp: Any) -> Any:
    radius = len(weights) // 2
    total = xp.full(levels.shape, 1 << (_WEIGHT_BITS - 1), dtype=xp.int32)
    for k, weight in enumerate(weights):
        total += _shifted(levels, k - radius, axis, xp) * int(weight)
    return total >> _WEIGHT_BITS


def _magnitude(levels: Any, ratio: NDArray[np.int64], xp: Any) -> Any:
    squares = xp.zeros(levels.shape, dtype=xp.int64)
    for axis in range(3):
        step = (_shifted(levels, 1, axis, xp) - _shifted(levels, -1, axis, xp)).astype(xp.int64)
        squares += step * step * int(ratio[axis])
    # A square root in double precision is correctly rounded everywhere (IEEE 754), so its floor is exact.
    return xp.sqrt((squares >> 8).astype(xp.float64)).astype(xp.int32)


@numba.njit(cache=True, nogil=True)
def _smooth_axis_numba(levels: NDArray[np.int32], weights: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    num_z, num_y, num_x = levels.shape
    radius = len(weights) // 2
    out = np.empty(levels.shape, np.int32)
    row = np.empty(num_x + 2 * radius, np.int32)
    total = np.empty(num_x, np.int32)
    for z in range(num_z):
        for y in range(num_y):
            total[:] = 1 << (_WEIGHT_BITS - 1)
            if axis == 2:
                row[:radius] = levels[z, y, 0]
                row[radius : radius + num_x] = levels[z, y]
                row[radius + num_x :] = levels[z, y, num_x - 1]
                for k in range(len(weights)):
                    for x in range(num_x):
                        total[x] += row[x + k] * weights[k]
            else:
                for k in range(len(weights)):
                    zz, yy = z, y
                    if axis == 0:
                        zz = min(max(z + k - radius, 0), num_z - 1)
                    else:
                        yy = min(max(y + k - radius, 0), num_y - 1)
                    for x in range(num_x):
                        total[x] += levels[zz, yy, x] * weights[k]
            for x in range(num_x):
                out[z, y, x] = total[x] >> _WEIGHT_BITS
    return out


@numba.njit(cache=True, nogil=True)
def _magnitude_numba(levels: NDArray[np.int32], ratio: NDArray[np.int64]) -> NDArray[np.int32]:
    num_z, num_y, num_x = levels.shape
    out = np.empty(levels.shape, np.int32)
    for z in range(num_z):
        z0, z1 = max(z - 1, 0), min(z + 1, num_z - 1)
        for y in range(num_y):
            y0, y1 = max(y - 1, 0), min(y + 1, num_y - 1)
            for x in range(num_x):
                dz = np.int64(levels[z1, y, x]) - levels[z0, y, x]
                dy = np.int64(levels[z, y1, x]) - levels[z, y0, x]
                dx = np.int64(levels[z, y, min(x + 1, num_x - 1)]) - levels[z, y, max(x - 1, 0)]
                square = (dz * dz * ratio[0] + dy * dy * ratio[1] + dx * dx * ratio[2]) >> 8
                out[z, y, x] = np.int32(np.sqrt(np.float64(square)))
    return out
