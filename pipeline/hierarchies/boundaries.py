"""Boundary evidence: the gradient magnitude of the smoothed intensities, summed over intensity windows.

    codes --window--> levels 0..1023 --Gaussian--> --central differences--> magnitude, summed over windows

All arithmetic is in integers. The Gaussian's weights are fixed-point numbers that sum to 2^10, and every pass
is rounded, so NumPy, Numba and CuPy give the same bits. With floating point the last bit could differ, and
with it the basin of a voxel.

Reads:  codes, int16 (z, y, x).
Writes: evidence, int32 (z, y, x), about 0..2,000; 0 where the intensity is constant.
Bounds: levels have 10 bits; a scale below 0.45 voxels is raised to that, which smooths very little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray, over_slabs

NUM_LEVELS = 1024
"""Number of levels of an intensity window."""

_LEVEL_BITS = 3
"""Fraction bits kept below a level while smoothing."""

_WEIGHT_BITS = 10
"""Fixed-point bits of the Gaussian's weights."""

_HIGHEST = (NUM_LEVELS - 1) << _LEVEL_BITS
"""The highest level, with its fraction bits."""

Window = tuple[float, float]
"""Lower and upper end of an intensity window, in the image's real units."""


def window_levels(
    codes: DeviceArray, *, scale: float, offset: float, window: Window, backend: Backend
) -> DeviceArray:
    """Return the levels 0..1023 of codes in an intensity window, with 3 fraction bits.

    Args:
        codes: int16 (z, y, x); real value = code * scale + offset.
        scale: Real units per code.
        offset: Real value of code 0.
        window: Ends of the window, in real units; values outside are clipped.
        backend: Backend that holds `codes`.

    Returns:
        int16 (z, y, x), level * 8, so 0..8,184, on the backend.
    """
    low, high = window
    values = np.arange(-(1 << 15), 1 << 15, dtype=np.float64) * scale + offset
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    table = np.rint(share * (NUM_LEVELS - 1)).astype(np.int16) << _LEVEL_BITS
    if backend.name == "cpu":
        return _levels_numba(codes, table)
    return backend.to_device(table)[codes.astype(backend.xp.int32) + (1 << 15)]


def gaussian_weights(sigma_voxels: float) -> NDArray[np.int32]:
    """Return the integer weights of a Gaussian that is cut at 3 sigma.

    Args:
        sigma_voxels: Standard deviation in voxels.

    Returns:
        int32 (2r + 1,), r = ceil(3 sigma) and at least 1; the sum is exactly 1,024.
    """
    radius = max(1, int(np.ceil(3 * sigma_voxels)))
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma_voxels) ** 2)
    fixed: NDArray[np.int32] = np.rint(weights / weights.sum() * (1 << _WEIGHT_BITS)).astype(np.int32)
    fixed[radius] += (1 << _WEIGHT_BITS) - fixed.sum()
    return fixed


def smooth(
    levels: DeviceArray, sigma_voxels_zyx: tuple[float, float, float], backend: Backend
) -> DeviceArray:
    """Smooth levels with a separable Gaussian; the edge voxels are repeated outwards.

    Args:
        levels: Integers (z, y, x) on the backend.
        sigma_voxels_zyx: Standard deviation along each axis, in voxels.
        backend: Backend that holds the levels.

    Returns:
        Smoothed levels (z, y, x), of the same dtype, on the backend.
    """
    return _smooth_planes(levels, sigma_voxels_zyx, (0, levels.shape[0]), backend)


def _smooth_planes(
    levels: DeviceArray,
    sigma_voxels_zyx: tuple[float, float, float],
    planes: tuple[int, int],
    backend: Backend,
) -> DeviceArray:
    """Return some planes of the smoothed levels; beyond the volume given, its edge planes are repeated."""
    for axis, sigma in enumerate(sigma_voxels_zyx):
        weights = gaussian_weights(sigma)
        if backend.name == "cpu":
            levels = _smooth_axis_numba(levels, weights, axis)
        elif backend.name == "gpu":
            levels = _smooth_axis_on_gpu(levels, weights, axis, backend)
        else:
            levels = _smooth_axis(levels, weights, axis, backend.xp)
        if axis == 0:
            levels = levels[planes[0] : planes[1]]
    return levels


def boundary_evidence(
    window_volumes: list[DeviceArray],
    *,
    sigma_mm: float,
    spacing_zyx_mm: tuple[float, float, float],
    backend: Backend,
) -> DeviceArray:
    """Return the gradient magnitude after smoothing, summed over intensity windows.

    Args:
        window_volumes: One volume per window, integers (z, y, x), as `window_levels` returns them.
        sigma_mm: Standard deviation of the Gaussian in mm; at least 0.45 voxels are used along each axis.
        spacing_zyx_mm: Voxel size in mm. Differences are scaled to the mean voxel edge.
        backend: Backend that holds the volumes.

    Returns:
        int32 (z, y, x), in levels per two voxels; 0 where the intensity is constant.
    """
    depth = window_volumes[0].shape[0]
    return _evidence_planes(window_volumes, sigma_mm, spacing_zyx_mm, (0, depth), backend)


def _evidence_planes(
    window_volumes: list[DeviceArray],
    sigma_mm: float,
    spacing_zyx_mm: tuple[float, float, float],
    planes: tuple[int, int],
    backend: Backend,
) -> DeviceArray:
    """Return some planes of the evidence, int32; beyond the volumes given, their edge planes are repeated."""
    xp = backend.xp
    sigma, ratio = voxel_sigmas(sigma_mm, spacing_zyx_mm), _step_ratio(spacing_zyx_mm)
    depth = window_volumes[0].shape[0]
    first, last = max(planes[0] - 1, 0), min(planes[1] + 1, depth)
    total = xp.zeros((last - first, *window_volumes[0].shape[1:]), dtype=xp.int32)
    for levels in window_volumes:
        smoothed = _smooth_planes(levels, sigma, (first, last), backend)
        if backend.name == "cpu":
            _magnitude_numba(smoothed, ratio, total)
        elif backend.name == "gpu":
            shape = [np.int32(n) for n in smoothed.shape]
            backend.launch("add_magnitude", smoothed.size, smoothed, *shape, backend.to_device(ratio), total)
        else:
            total += _magnitude(smoothed, ratio, xp)
    return total[planes[0] - first : planes[1] - first] >> _LEVEL_BITS


def voxel_sigmas(sigma_mm: float, spacing_zyx_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a scale in voxels along z, y, x; at least 0.45."""
    z, y, x = (max(0.45, sigma_mm / s) for s in spacing_zyx_mm)
    return z, y, x


def _step_ratio(spacing_zyx_mm: tuple[float, float, float]) -> NDArray[np.int64]:
    """Return int64 (3,) factors of squared differences along z, y, x: 256 (mean edge / spacing)^2."""
    edge = float(np.cbrt(np.prod(spacing_zyx_mm)))
    return np.array([round((edge / s) ** 2 * 256) for s in spacing_zyx_mm], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of a scan in its intensity windows; computed slab by slab when they are needed."""

    codes: DeviceArray
    """int16 (z, y, x) on the backend."""
    scale: float
    """Real units per code."""
    offset: float
    """Real value of code 0."""
    windows: tuple[Window, ...]
    """Ends of the W intensity windows, in real units."""
    spacing_zyx_mm: tuple[float, float, float]
    backend: Backend

    def smoothed(self, window: int, sigma_mm: float, planes: tuple[int, int]) -> DeviceArray:
        """Return some planes of a window's smoothed levels.

        Args:
            window: Index of the window.
            sigma_mm: Standard deviation of the Gaussian in mm.
            planes: First plane, and one past the last.

        Returns:
            int16 (planes, y, x), level * 8, on the backend.
        """
        sigma = voxel_sigmas(sigma_mm, self.spacing_zyx_mm)
        first, last = self._with_halo(planes, len(gaussian_weights(sigma[0])) // 2)
        levels = self._levels(window, first, last)
        return _smooth_planes(levels, sigma, (planes[0] - first, planes[1] - first), self.backend)

    def exceeded(self, window: int, sigma_mm: float, thresholds: NDArray[np.int64]) -> DeviceArray:
        """Return the number of thresholds that each voxel's smoothed level exceeds.

        Args:
            window: Index of the window.
            sigma_mm: Standard deviation of the Gaussian in mm.
            thresholds: int64 (K,), ascending, K <= 255, in level * 8.

        Returns:
            uint8 (z, y, x), 0..K, on the backend.
        """
        table = np.searchsorted(thresholds, np.arange(_HIGHEST + 1), side="left").astype(np.uint8)
        table = self.backend.to_device(table)
        out = self.backend.xp.empty(self.codes.shape, dtype=np.uint8)

        def fill(start: int, stop: int) -> None:
            # Plane by plane: NumPy first converts the levels to 64-bit indices, which take memory.
            for z, levels in enumerate(self.smoothed(window, sigma_mm, (start, stop)), start=start):
                out[z] = table[levels]

        over_slabs(fill, self.codes.shape, self.backend.volume_threads)
        return out

    def evidence(self, scales_mm: Sequence[float]) -> DeviceArray:
        """Return the boundary evidence at each scale.

        Args:
            scales_mm: K standard deviations of the Gaussian, in mm.

        Returns:
            (K, z, y, x) on the backend; uint16 if every possible value fits, else int32.
        """
        xp = self.backend.xp
        largest = int(np.sqrt(float(_step_ratio(self.spacing_zyx_mm).sum()) * _HIGHEST**2 / 256)) + 1
        fits_uint16 = len(self.windows) * largest >> _LEVEL_BITS < 1 << 16
        shape = (len(scales_mm), *self.codes.shape)
        out = xp.empty(shape, dtype=xp.uint16 if fits_uint16 else xp.int32)
        sigmas = [voxel_sigmas(scale, self.spacing_zyx_mm)[0] for scale in scales_mm]
        halo = max(len(gaussian_weights(sigma)) // 2 for sigma in sigmas) + 1

        def fill(start: int, stop: int) -> None:
            first, last = self._with_halo((start, stop), halo)
            levels = [self._levels(window, first, last) for window in range(len(self.windows))]
            for k, scale in enumerate(scales_mm):
                out[k, start:stop] = _evidence_planes(
                    levels, scale, self.spacing_zyx_mm, (start - first, stop - first), self.backend
                )

        over_slabs(fill, self.codes.shape, self.backend.volume_threads)
        return out

    def _with_halo(self, planes: tuple[int, int], halo: int) -> tuple[int, int]:
        return max(0, planes[0] - halo), min(self.codes.shape[0], planes[1] + halo)

    def _levels(self, window: int, first: int, last: int) -> DeviceArray:
        return window_levels(
            self.codes[first:last],
            scale=self.scale,
            offset=self.offset,
            window=self.windows[window],
            backend=self.backend,
        )


def _shifted(volume: DeviceArray, step: int, axis: int, xp: Any) -> DeviceArray:
    """Return the volume shifted by `step` voxels along an axis; edge voxels are repeated."""
    index = xp.clip(xp.arange(volume.shape[axis]) + step, 0, volume.shape[axis] - 1)
    return xp.take(volume, index, axis=axis)


def _smooth_axis_on_gpu(
    levels: DeviceArray, weights: NDArray[np.int32], axis: int, backend: Backend
) -> DeviceArray:
    out = backend.xp.empty(levels.shape, dtype=levels.dtype)
    shape = [np.int32(n) for n in levels.shape]
    taps = (backend.to_device(weights), np.int32(len(weights) // 2))
    backend.launch("smooth_axis", levels.size, levels, *shape, np.int32(axis), *taps, out)
    return out


def _smooth_axis(levels: DeviceArray, weights: NDArray[np.int32], axis: int, xp: Any) -> DeviceArray:
    radius = len(weights) // 2
    total = xp.full(levels.shape, 1 << (_WEIGHT_BITS - 1), dtype=xp.int32)
    for k, weight in enumerate(weights):
        total += _shifted(levels, k - radius, axis, xp).astype(xp.int32) * int(weight)
    return (total >> _WEIGHT_BITS).astype(levels.dtype)


def _magnitude(levels: DeviceArray, ratio: NDArray[np.int64], xp: Any) -> DeviceArray:
    squares = xp.zeros(levels.shape, dtype=xp.int64)
    for axis in range(3):
        step = (_shifted(levels, 1, axis, xp) - _shifted(levels, -1, axis, xp)).astype(xp.int64)
        squares += step * step * int(ratio[axis])
    # IEEE 754 demands a correctly rounded square root, so its floor is the same on every processor.
    return xp.sqrt((squares >> 8).astype(xp.float64)).astype(xp.int32)


@numba.njit(cache=True, nogil=True)
def _levels_numba(codes: NDArray[np.int16], table: NDArray[np.int16]) -> NDArray[np.int16]:
    out = np.empty(codes.shape, np.int16)
    flat, target = codes.ravel(), out.reshape(-1)
    for i in range(len(flat)):
        target[i] = table[np.int64(flat[i]) + 32768]
    return out


@numba.njit(cache=True, nogil=True)
def _smooth_axis_numba(levels: NDArray[Any], weights: NDArray[np.int32], axis: int) -> NDArray[Any]:
    """Do the same as `_smooth_axis`. The weights are symmetric: one multiplication serves two voxels."""
    num_z, num_y, num_x = levels.shape
    radius = len(weights) // 2
    out = np.empty_like(levels)
    row = np.empty(num_x + 2 * radius, np.int32)
    total = np.empty(num_x, np.int32)
    for z in range(num_z):
        for y in range(num_y):
            middle = levels[z, y]
            for x in range(num_x):
                total[x] = (1 << (_WEIGHT_BITS - 1)) + middle[x] * weights[radius]
            if axis == 2:
                row[:radius] = middle[0]
                row[radius : radius + num_x] = middle
                row[radius + num_x :] = middle[num_x - 1]
                for k in range(radius):
                    before, after = row[k : k + num_x], row[2 * radius - k : 2 * radius - k + num_x]
                    for x in range(num_x):
                        total[x] += (before[x] + after[x]) * weights[k]
            else:
                for k in range(radius):
                    step = radius - k
                    if axis == 0:
                        first, second = levels[max(z - step, 0), y], levels[min(z + step, num_z - 1), y]
                    else:
                        first, second = levels[z, max(y - step, 0)], levels[z, min(y + step, num_y - 1)]
                    for x in range(num_x):
                        total[x] += (first[x] + second[x]) * weights[k]
            target = out[z, y]
            for x in range(num_x):
                target[x] = total[x] >> _WEIGHT_BITS
    return out


@numba.njit(cache=True, nogil=True)
def _magnitude_numba(levels: NDArray[Any], ratio: NDArray[np.int64], total: NDArray[np.int32]) -> None:
    """Add the magnitude, as `_magnitude` computes it, to `total`."""
    num_z, num_y, num_x = levels.shape
    isotropic = ratio[0] == 256 and ratio[1] == 256 and ratio[2] == 256
    steps = np.empty(num_x, np.int32)
    for z in range(num_z):
        z0, z1 = max(z - 1, 0), min(z + 1, num_z - 1)
        for y in range(num_y):
            row, target = levels[z, y], total[z, y]
            above, below = levels[z1, y], levels[z0, y]
            behind, before = levels[z, min(y + 1, num_y - 1)], levels[z, max(y - 1, 0)]
            steps[0] = row[min(1, num_x - 1)] - row[0]
            steps[num_x - 1] = row[num_x - 1] - row[max(num_x - 2, 0)]
            for x in range(1, num_x - 1):
                steps[x] = row[x + 1] - row[x - 1]
            if isotropic:  # at most 3 * 8,184^2, which fits in 32 bits
                for x in range(num_x):
                    dz, dy, dx = np.int32(above[x] - below[x]), np.int32(behind[x] - before[x]), steps[x]
                    square = np.int32(dz * dz + dy * dy + dx * dx)
                    target[x] += np.int32(np.sqrt(np.float64(square)))
            else:
                for x in range(num_x):
                    dz, dy = np.int64(above[x]) - below[x], np.int64(behind[x]) - before[x]
                    dx = np.int64(steps[x])
                    square = (dz * dz * ratio[0] + dy * dy * ratio[1] + dx * dx * ratio[2]) >> 8
                    target[x] += np.int32(np.sqrt(np.float64(square)))
