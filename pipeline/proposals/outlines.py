"""Smooth outlines for regions that are unions of supervoxels: the shape of an organ, not of noise.

Supervoxels meet along the noise of the image, and a union of them inherits their ragged outline. Each region
is therefore blurred, and kept where the blur exceeds a half: bumps of a few voxels go, dents fill, and the
volume hardly changes. Two disjoint regions cannot both exceed a half of the same blur, and of two nested ones
the outer exceeds it wherever the inner does, so nesting survives one width of blur. Where widths differ, a
region is cut to the one around it and to what its earlier siblings have left; so that little is cut, the
regions of a tree with a wide blur, a narrow one and none are painted apart (`Outlines.widths`).

A blur wears thin regions away. Where it would leave too little of one, half the passes are taken; where these
would still change it too much, or the region is of a few hundred voxels only, it stays as it is.

    ranks of a tree's chosen regions --outermost first: count in blocks, blur, interpolate--> painted

Reads:  a partition, int32 (z, y, x); the chosen regions of one tree over it, as ranks of its leaves.
Writes: uint16 (z, y, x): 1 + rank of the innermost region at each voxel, 0 where there is none.
Bounds: fewer than 65,535 regions; isotropic voxels. Blurs are sums of float32 in a fixed order: the same
        labels whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.compute import HOST, Backend

_BLOCKS_A_THREAD = 32
"""Of the GPU: so that sums of many blocks cost one atomic."""

_SAMPLED_STRIDE = 3
"""From this width of blocks on, regions are large: the whole partition is sampled once for all of them."""

_LEAST_SIGMA = 0.75
"""In voxels: narrower blurs would cut corners off regions of a few hundred voxels, and are left out."""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """How much the outlines of regions are smoothed."""

    fraction: float
    """Standard deviation of the blur, as a fraction of the cube root of the region's volume."""
    max_sigma_voxels: float
    """The widest blur."""
    apart: float = 0.5
    """Wider blurs than this fraction of the widest are painted apart from narrower ones; 1 for together."""
    least_iou: float = 0.6
    """A region that its blur would change more than this (a sheet, a net of vessels) stays as it is."""
    least_volume: float = 0.85
    """A thin region, of which its blur would leave less than this share, is blurred half as often."""

    def sigmas(self, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N,) width of the blur of regions of these volumes, in voxels; 0 where they stay as they are."""
        sigmas = np.minimum(self.fraction * np.cbrt(voxels), self.max_sigma_voxels)
        return np.where(sigmas < _LEAST_SIGMA, 0.0, sigmas)

    def widths(self, voxels: NDArray[np.int64]) -> NDArray[np.int8]:
        """(N,) 0 for no blur, 1 for one up to `apart`, 2 for wider ones: each is painted apart."""
        sigmas = self.sigmas(voxels)
        return (sigmas > 0).astype(np.int8) + (sigmas > self.apart * self.max_sigma_voxels)


def paint_smoothed(
    labels: Any,
    innermost: NDArray[np.uint16],
    parent: NDArray[np.int64],
    last: NDArray[np.int64],
    sigmas: NDArray[np.float64],
    boxes: NDArray[np.int64],
    outlines: Outlines,
    backend: Backend = HOST,
) -> Any:
    """The innermost smoothed region at each voxel.

    Args:
        labels: (z, y, x) leaf of each voxel, on the backend.
        innermost: (R,) 1 + rank of the smallest region around each leaf, 0 where there is none.
        parent: (N,) rank of the smallest region around each region, -1 where there is none; below its own.
        last: (N,) rank of the last region inside each.
        sigmas: (N,) width of the blur of each, in voxels.
        boxes: (N, 6) z0, y0, x0, z1, y1, x1 of each, half open.
        outlines: Which regions are blurred less, or not.
        backend: Where it runs.

    Returns:
        uint16 (z, y, x) on the backend: 1 + rank, 0 for none.
    """
    least = outlines.least_iou, outlines.least_volume
    if backend.name == "gpu":
        return _paint_on_gpu(labels, innermost, parent, last, sigmas, boxes, least, backend)
    return _paint_numba(labels, innermost, parent, last, sigmas, boxes, least)


def _paint_on_gpu(
    labels: Any,
    innermost: NDArray[np.uint16],
    parent: NDArray[np.int64],
    last: NDArray[np.int64],
    sigmas: NDArray[np.float64],
    boxes: NDArray[np.int64],
    least: tuple[float, float],
    backend: Backend,
) -> Any:
    """As `_paint_numba`: a few kernels a region, without waiting for any of them."""
    xp = backend.xp
    ranks = backend.to_device(innermost)[labels]
    out = xp.zeros(labels.shape, dtype=xp.uint16)
    rows, num_blocks = _regions_for_gpu(labels.shape, parent, last, sigmas, boxes)
    regions, room = backend.to_device(rows), int(num_blocks.max())
    counts = xp.empty(room, dtype=xp.uint16)
    fields = [xp.empty(room, dtype=xp.float32) for _ in range(3)]
    overlaps = [xp.zeros((len(rows), 3), dtype=xp.uint64) for _ in range(2)]
    shape = [np.int32(n) for n in labels.shape]
    for rank, (row, blocks) in enumerate(zip(rows, num_blocks.tolist(), strict=True)):
        region, passes = (regions, np.int32(rank)), int(row[7])
        field, half, other = fields
        if passes:
            backend.launch("count_blocks", blocks, ranks, *shape, *region, counts, field)
            for done in range(passes):
                if done == passes // 2:
                    field, half = half, field
                    backend.launch("blur_blocks", blocks, *region, half, field)
                else:
                    backend.launch("blur_blocks", blocks, *region, field, other)
                    field, other = other, field
            threads = -(-blocks // _BLOCKS_A_THREAD)
            for blurred, overlap in zip((field, half), overlaps, strict=True):
                backend.launch(
                    "overlap_blocks", threads, *region, counts, blurred, np.int32(threads), overlap
                )
        voxels = int(np.prod(row[3:6] - row[:3], dtype=np.int64))
        limits = [np.float64(value) for value in least]
        backend.launch("paint", voxels, ranks, *shape[1:], *region, field, half, *overlaps, *limits, out)
    return out


@numba.njit(cache=True, nogil=True)
def _regions_for_gpu(
    shape: Any, parent: NDArray[np.int64], last: NDArray[np.int64], sigmas: NDArray[np.float64],
    boxes: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:  # fmt: skip
    """(N, 11) rows of `Region` in `kernels.cu`, (N,) blocks in the box of each."""
    rows, num_blocks = np.empty((len(parent), 11), np.int32), np.ones(len(parent), np.int64)
    for rank in range(len(parent)):
        stride, passes = _blur_of(sigmas[rank])
        box = _box_of_blocks(boxes[rank], stride, passes, shape)
        rows[rank, :6] = box
        rows[rank, 6:8] = stride, passes
        rows[rank, 8:10] = rank + 1, last[rank] + 1
        rows[rank, 10] = parent[rank] + 1
        for d in range(3):
            num_blocks[rank] *= (box[d + 3] - box[d] - 1) // stride + 1
    return rows, num_blocks


@numba.njit(cache=True, nogil=True)
def _box_of_blocks(box: NDArray[np.int64], stride: int, passes: int, shape: Any) -> NDArray[np.int64]:
    """What a blur of the region in a box may reach, from edge to edge of a block, or of the scan."""
    margin = stride * (passes + 1) if passes else 0
    out = np.empty(6, np.int64)
    for d in range(3):
        out[d] = max(0, box[d] - margin) // stride * stride
        out[d + 3] = min(shape[d], ((box[d + 3] + margin - 1) // stride + 1) * stride)
    return out


@numba.njit(cache=True, nogil=True)
def _paint_numba(
    labels: NDArray[np.int32], innermost: NDArray[np.uint16], parent: NDArray[np.int64],
    last: NDArray[np.int64], sigmas: NDArray[np.float64], boxes: NDArray[np.int64],
    least: tuple[float, float],
) -> NDArray[np.uint16]:  # fmt: skip
    """As `paint_smoothed`, on the CPU; `least` are the IoU and the volume that a blur must leave."""
    shape, (least_iou, least_volume) = labels.shape, least
    out = np.zeros(shape, np.uint16)
    samples = np.empty((0, 0, 0, 0), np.uint16)
    sampled = 0
    for rank in range(len(parent)):
        stride, passes = _blur_of(sigmas[rank])
        z0, y0, x0, z1, y1, x1 = _box_of_blocks(boxes[rank], stride, passes, shape)
        first, final = np.uint16(rank + 1), np.uint16(last[rank] + 1)
        around, value = np.uint16(parent[rank] + 1), np.uint16(rank + 1)
        if passes:
            blocks = (
                z0 // stride, y0 // stride, x0 // stride,
                (z1 - 1) // stride + 1, (y1 - 1) // stride + 1, (x1 - 1) // stride + 1,
            )  # fmt: skip
            if stride < _SAMPLED_STRIDE:
                there = _samples(labels[z0:z1, y0:y1, x0:x1], innermost, stride)
                whole = (0, 0, 0, blocks[3] - blocks[0], blocks[4] - blocks[1], blocks[5] - blocks[2])
                means = _counted(there, whole, first, final)
            else:
                if stride != sampled:  # once for nearly all regions: few widths of blur are that wide
                    samples, sampled = _samples(labels, innermost, stride), stride
                means = _counted(samples, blocks, first, final)
            field = half = means
            for done in range(passes):
                if done == passes // 2:
                    half = field
                field = _binomial(field)
            iou, volume = _overlap(means, field, _num_samples(stride))
            if iou < least_iou or volume < least_volume:
                field = half
                iou, _ = _overlap(means, field, _num_samples(stride))
            if iou >= least_iou:
                _paint_blurred(out, (z0, y0, x0, z1, y1, x1), field, stride, around, value)
                continue
        target = out[z0:z1, y0:y1, x0:x1]
        _paint_members(target, labels[z0:z1, y0:y1, x0:x1], innermost, first, final, around, value)
    return out


@numba.njit(cache=True, nogil=True)
def region_boxes(
    leaf_boxes: NDArray[np.int32], innermost: NDArray[np.uint16], parent: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N, 6) boxes of the regions from those of their leaves (R, 6)."""
    boxes = np.empty((len(parent), 6), np.int64)
    boxes[:, :3] = np.iinfo(np.int32).max
    boxes[:, 3:] = 0
    for leaf in range(len(innermost)):
        if innermost[leaf]:
            _extend(boxes[innermost[leaf] - 1], leaf_boxes[leaf])
    for rank in range(len(parent) - 1, -1, -1):
        if parent[rank] >= 0:
            _extend(boxes[parent[rank]], boxes[rank])
    return boxes


@numba.njit(cache=True, nogil=True)
def _extend(box: NDArray[np.int64], other: Any) -> None:
    for d in range(3):
        box[d] = min(box[d], other[d])
        box[d + 3] = max(box[d + 3], other[d + 3])


@numba.njit(cache=True, nogil=True)
def _blur_of(sigma: float) -> Any:
    """(stride, passes): blocks of `stride` voxels, then so many (1 2 1) / 4 passes, blur about as wide.

    A pass adds half a block squared to the variance; blocks and interpolation add about a quarter together.
    From three on blocks are odd: every second voxel of them lies evenly about their middle.
    """
    stride = max(1, int(sigma / 0.75))
    if stride > 2:
        stride = max(3, int(sigma / 1.2) | 1)
    variance = sigma * sigma / (stride * stride) - (0.25 if stride > 1 else 0.0)
    passes = int(2.0 * variance + 0.5)
    return stride, max(passes, 1) if stride > 1 else passes


@numba.njit(cache=True, nogil=True)
def _steps(stride: int) -> Any:
    """Voxels from one sample of a block to the next, and how many there are, along each axis."""
    step = 2 if stride > 2 else 1
    return step, (stride - 1) // step + 1


@numba.njit(cache=True, nogil=True)
def _num_samples(stride: int) -> int:
    """Samples of a block."""
    _, side = _steps(stride)
    return int(side * side * side)


@numba.njit(cache=True, nogil=True)
def _samples(labels: NDArray[np.int32], innermost: NDArray[np.uint16], stride: int) -> NDArray[np.uint16]:
    """1 + rank of the innermost region at some voxels of each block of stride^3, (samples, blocks).

    Of odd blocks from three on, every second voxel along each axis. Past the scan's edge its last voxels are
    repeated.
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
def _counted(samples: NDArray[np.uint16], box: Any, first: np.uint16, last: np.uint16) -> NDArray[np.float32]:
    """Share of each block's samples that lie in the region, for the blocks of a box."""
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
def _binomial(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1 2 1) / 4 along each axis; the ends are repeated, as a region cut by the scan's edge goes on."""
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
def _paint_blurred(
    out: NDArray[np.uint16], box: Any, field: NDArray[np.float32], stride: int, around: np.uint16,
    value: np.uint16,
) -> None:  # fmt: skip
    """Paint in a box where the blur, trilinear between the middles of the blocks, exceeds a half.

    Only voxels that so far belong to the region around, and to none inside it, are painted.
    """
    z0, y0, x0, z1, y1, x1 = box
    top = (field.shape[0] - 1, field.shape[1] - 1, field.shape[2] - 1)
    shares = _shares(z1 - z0, stride), _shares(y1 - y0, stride), _shares(x1 - x0, stride)
    above = np.empty(top[2] + 3, np.uint8)  # how many of the four rows around, by block; the ends repeated
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
                if above[c + 1] == 4 and above[c + 2] == 4:  # as one, with those that follow
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
    """Count, for each block of a row, which of four rows exceed a half; whether any does anywhere."""
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
    """(size,) how far each voxel lies from the middle of the block before it towards that of the next."""
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
    """Paint between the middles of eight blocks: what they give along x serves all y and z.

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
    """(start, stop): the voxels whose middle lies between the middles of a block and of the next."""
    middle = block * stride + stride // 2  # first voxel at or past the middle of the block
    return max(0, middle), max(0, min(size, middle + stride))


@numba.njit(cache=True, nogil=True)
def _overlap(means: NDArray[np.float32], field: NDArray[np.float32], num: int) -> tuple[float, float]:
    """IoU of the region with what its blur leaves of it, and the share of its volume that is left.

    In samples, of which a block has `num`: exact.
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
def _paint_members(
    out: NDArray[np.uint16], labels: NDArray[np.int32], innermost: NDArray[np.uint16],
    first: np.uint16, last: np.uint16, around: np.uint16, value: np.uint16,
) -> None:  # fmt: skip
    """Paint the region as its leaves are, where voxels so far belong to the region around."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                rank = innermost[labels[z, y, x]]
                if first <= rank <= last and out[z, y, x] == around:
                    out[z, y, x] = value
