"""Blurring of one region in blocks of voxels, and painting of the voxels where the blur exceeds 0.5.

Reads:  a partition, int32 (z, y, x), and the rank of the innermost chosen region of each of its leaves.
Writes: fractions of blocks, float32; ranks painted into a uint16 volume (z, y, x).
Bounds: compiled by Numba. Sums are float32 in a fixed order, so that results do not depend on threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def blur_of(sigma: float) -> Any:
    """Return (edge of the blocks in voxels, number of (1 2 1) / 4 passes) for a blur.

    A pass adds half a squared block edge to the variance; blocks and interpolation together add about a
    quarter. Edges of three and more are odd, so that every second voxel lies symmetrically about the middle.
    """
    stride = max(1, int(sigma / 0.75))
    if stride > 2:
        stride = max(3, int(sigma / 1.2) | 1)
    variance = sigma * sigma / (stride * stride) - (0.25 if stride > 1 else 0.0)
    passes = int(2.0 * variance + 0.5)
    return stride, max(passes, 1) if stride > 1 else passes


@numba.njit(cache=True, nogil=True)
def _steps(stride: int) -> Any:
    """Return the distance between samples of a block in voxels, and their number, along each axis."""
    step = 2 if stride > 2 else 1
    return step, (stride - 1) // step + 1


@numba.njit(cache=True, nogil=True)
def num_samples(stride: int) -> int:
    """Return the number of samples of a block."""
    _, side = _steps(stride)
    return int(side * side * side)


@numba.njit(cache=True, nogil=True)
def block_samples(
    labels: NDArray[np.int32], innermost: NDArray[np.uint16], stride: int
) -> NDArray[np.uint16]:
    """Return 1 + rank of the innermost region at samples of each block of stride^3, (samples, blocks).

    In blocks of three and more, every second voxel along each axis is a sample. Beyond the scan's edge its
    last voxels are repeated.
    """
    num_z, num_y, num_x = labels.shape
    step, side = _steps(stride)
    shape = ((num_z - 1) // stride + 1, (num_y - 1) // stride + 1, (num_x - 1) // stride + 1)
    out = np.empty((side * side * side, shape[0], shape[1], shape[2]), np.uint16)
    for a in range(shape[0]):
        for b in range(shape[1]):
            n = 0
            for i in range(side):
                z = min(a * stride + i * step, num_z - 1)
                for j in range(side):
                    row = labels[z, min(b * stride + j * step, num_y - 1)]
                    for k in range(side):
                        target = out[n, a, b]
                        for c in range(shape[2]):
                            target[c] = innermost[row[min(c * stride + k * step, num_x - 1)]]
                        n += 1
    return out


@numba.njit(cache=True, nogil=True)
def block_shares(
    samples: NDArray[np.uint16], box: Any, first: np.uint16, last: np.uint16
) -> NDArray[np.float32]:
    """Return the fraction of each block's samples inside the region, for the blocks of a box."""
    z0, y0, x0, z1, y1, x1 = box
    num, size = samples.shape[0], x1 - x0
    means = np.empty((z1 - z0, y1 - y0, size), np.float32)
    inside = np.empty(size, np.uint16)
    extent = np.uint16(last - first)
    for a in range(z0, z1):
        for b in range(y0, y1):
            inside[:] = 0
            for n in range(num):
                row = samples[n, a, b, x0:x1]
                for c in range(size):
                    inside[c] += np.uint16(np.uint16(row[c] - first) <= extent)
            for c in range(size):
                means[a - z0, b - y0, c] = np.float32(inside[c]) / np.float32(num)
    return means


@numba.njit(cache=True, nogil=True)
def binomial_pass(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur with (1 2 1) / 4 along each axis. Ends are repeated: a region continues past the scan's edge."""
    num_z, num_y, num_x = field.shape
    half, quarter = np.float32(0.5), np.float32(0.25)
    one, two, end = np.empty_like(field), np.empty_like(field), num_x - 1
    for z in range(num_z):
        for y in range(num_y):
            one[z, y, 0] = half * field[z, y, 0] + quarter * (field[z, y, 0] + field[z, y, min(1, end)])
            for x in range(1, end):
                one[z, y, x] = half * field[z, y, x] + quarter * (field[z, y, x - 1] + field[z, y, x + 1])
            before, here = field[z, y, max(end - 1, 0)], field[z, y, end]
            one[z, y, end] = half * here + quarter * (before + here)
    for z in range(num_z):
        for y in range(num_y):
            behind, ahead = max(y - 1, 0), min(y + 1, num_y - 1)
            for x in range(num_x):
                two[z, y, x] = half * one[z, y, x] + quarter * (one[z, behind, x] + one[z, ahead, x])
    for z in range(num_z):
        below, above = max(z - 1, 0), min(z + 1, num_z - 1)
        for y in range(num_y):
            for x in range(num_x):
                one[z, y, x] = half * two[z, y, x] + quarter * (two[below, y, x] + two[above, y, x])
    return one


@numba.njit(cache=True, nogil=True)
def paint_blurred(
    out: NDArray[np.uint16], box: Any, field: NDArray[np.float32], stride: int, around: np.uint16,
    value: np.uint16,
) -> None:  # fmt: skip
    """Paint the voxels of a box where the blur, trilinear between the middles of blocks, exceeds 0.5.

    Only voxels are painted whose innermost region so far is the surrounding one (`around`).
    """
    z0, y0, x0, z1, y1, x1 = box
    top = (field.shape[0] - 1, field.shape[1] - 1, field.shape[2] - 1)
    shares = _shares(z1 - z0, stride), _shares(y1 - y0, stride), _shares(x1 - x0, stride)
    above = np.empty(top[2] + 3, np.uint8)  # how many of four rows exceed, by block; ends are repeated
    for a in range(-1, top[0] + 1):
        za, zb = max(a, 0), min(a + 1, top[0])
        zs, ze = _between(a, stride, z1 - z0)
        for b in range(-1, top[1] + 1):
            ya, yb = max(b, 0), min(b + 1, top[1])
            ys, ye = _between(b, stride, y1 - y0)
            if not _count_above(field, za, zb, ya, yb, above):
                continue
            c = -1
            while c <= top[2]:
                stop = c + 1
                xs, xe = _between(c, stride, x1 - x0)
                if above[c + 1] == 4 and above[c + 2] == 4:  # together with those that follow
                    while stop <= top[2] and above[stop + 2] == 4:
                        stop += 1
                    _, xe = _between(stop - 1, stride, x1 - x0)
                    for z in range(z0 + zs, z0 + ze):
                        for y in range(y0 + ys, y0 + ye):
                            row = out[z, y, x0 + xs : x0 + xe]
                            for x in range(len(row)):
                                row[x] = value if row[x] == around else row[x]
                elif above[c + 1] or above[c + 2]:
                    xa, xb = max(c, 0), min(c + 1, top[2])
                    corners = (
                        field[za, ya, xa], field[za, ya, xb], field[za, yb, xa], field[za, yb, xb],
                        field[zb, ya, xa], field[zb, ya, xb], field[zb, yb, xa], field[zb, yb, xb],
                    )  # fmt: skip
                    _paint_between(
                        out, (z0, y0, x0), corners, shares, (zs, ys, xs), (ze, ye, xe), around, value
                    )
                c = stop


@numba.njit(cache=True, nogil=True)
def _count_above(
    field: NDArray[np.float32], za: int, zb: int, ya: int, yb: int, above: NDArray[np.uint8]
) -> bool:
    """Count, for each block of a row, how many of four rows exceed 0.5; return whether any does."""
    half, size, found = np.float32(0.5), field.shape[2], np.uint8(0)
    for x in range(size):
        above[x + 1] = (
            np.uint8(field[za, ya, x] > half) + np.uint8(field[za, yb, x] > half)
            + np.uint8(field[zb, ya, x] > half) + np.uint8(field[zb, yb, x] > half)
        )  # fmt: skip
        found |= above[x + 1]
    above[0], above[size + 1] = above[1], above[size]
    return bool(found > 0)


@numba.njit(cache=True, nogil=True)
def _shares(size: int, stride: int) -> NDArray[np.float32]:
    """Return (size,) position of each voxel between the middles of two blocks, 0..1: the second's weight."""
    shares = np.empty(size, np.float32)
    for block in range(-1, (size - 1) // stride + 1):
        start, stop = _between(block, stride, size)
        for x in range(start, stop):
            shares[x] = np.float32((x + 0.5) / stride - 0.5 - block)
    return shares


@numba.njit(cache=True, nogil=True)
def _paint_between(
    out: NDArray[np.uint16], origin: Any, corners: Any, shares: Any, starts: Any, stops: Any,
    around: np.uint16, value: np.uint16,
) -> None:  # fmt: skip
    """Paint between the middles of eight blocks; interpolation along x is shared by all y and z.

    Starts and stops are counted from the origin.
    """
    for x in range(starts[2], stops[2]):
        u = shares[2][x]
        one, two = _mixed(corners[0], corners[1], u), _mixed(corners[2], corners[3], u)
        three, four = _mixed(corners[4], corners[5], u), _mixed(corners[6], corners[7], u)
        for y in range(starts[1], stops[1]):
            v = shares[1][y]
            near, far = _mixed(one, two, v), _mixed(three, four, v)
            for z in range(starts[0], stops[0]):
                place = (origin[0] + z, origin[1] + y, origin[2] + x)
                if out[place] == around and _mixed(near, far, shares[0][z]) > np.float32(0.5):
                    out[place] = value


@numba.njit(cache=True, nogil=True)
def _mixed(first: Any, second: Any, share: Any) -> Any:
    return first + share * (second - first)


@numba.njit(cache=True, nogil=True)
def _between(block: int, stride: int, size: int) -> Any:
    """Return (start, stop) of the voxels whose centres lie between the middles of a block and of the next."""
    middle = block * stride + stride // 2  # first voxel at or past the middle of the block
    return max(0, middle), max(0, min(size, middle + stride))


@numba.njit(cache=True, nogil=True)
def overlap_and_volume(
    means: NDArray[np.float32], field: NDArray[np.float32], num: int
) -> tuple[float, float]:
    """Return the IoU of a region with its blurred form, and the fraction of its volume that is left.

    Both are counted in samples, `num` per block.
    """
    both, before, after = np.int64(0), np.int64(0), np.int64(0)
    inside, blurred = means.ravel(), field.ravel()
    for i in range(len(inside)):
        samples = np.int64(inside[i] * np.float32(num) + np.float32(0.5))
        before += samples
        if blurred[i] > np.float32(0.5):
            both += samples
            after += num
    return both / max(before + after - both, np.int64(1)), after / max(before, np.int64(1))


@numba.njit(cache=True, nogil=True)
def paint_members(
    out: NDArray[np.uint16], labels: NDArray[np.int32], innermost: NDArray[np.uint16],
    first: np.uint16, last: np.uint16, around: np.uint16, value: np.uint16,
) -> None:  # fmt: skip
    """Paint the region without blur, in voxels that so far belong to the region around it."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                rank = innermost[labels[z, y, x]]
                if first <= rank <= last and out[z, y, x] == around:
                    out[z, y, x] = value
