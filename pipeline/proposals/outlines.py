"""Smooth outlines for regions that are unions of supervoxels.

The borders of supervoxels follow the noise of the image, so a union of them has a ragged outline. Therefore
each region is blurred, and kept where the blur exceeds 0.5: bumps of a few voxels are removed, dents are
filled, and the volume hardly changes. With one width of blur, two disjoint regions cannot both exceed 0.5 at
a voxel, and of two nested regions the outer one exceeds it wherever the inner one does: so regions stay
nested. With several widths, a region is cut to the surrounding region and to the voxels that its earlier
siblings have left. To cut little, regions with a wide blur, with a narrow one and with none are painted
separately (`Outlines.widths`).

A blur shrinks thin regions. A region that would lose too much is blurred with half the passes. A region that
would still change too much, or that has a few hundred voxels only, stays unchanged.

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

from pipeline.compute import HOST, Backend, DeviceArray
from pipeline.proposals.blurring import (
    binomial_pass,
    block_samples,
    block_shares,
    blur_of,
    num_samples,
    overlap_and_volume,
    paint_blurred,
    paint_members,
)

_BLOCKS_A_THREAD = 32
"""Blocks whose sums a GPU thread adds up: they cost one atomic operation."""

_SAMPLED_STRIDE = 3
"""For blocks at least this wide, the whole partition is sampled once for all regions."""

_LEAST_SIGMA = 0.75
"""Narrower blurs, in voxels, are left out: they would cut corners off regions of a few hundred voxels."""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """How much the outlines of regions are smoothed."""

    fraction: float
    """Standard deviation of the blur, as a fraction of the cube root of the region's volume."""
    max_sigma_voxels: float
    """The widest blur."""
    apart: float = 0.5
    """Blurs wider than this fraction of the widest are painted apart from narrower ones; 1: all together."""
    least_iou: float = 0.6
    """A region that its blur would change more than this (a sheet, a net of vessels) stays as it is."""
    least_volume: float = 0.85
    """A region of which the blur would leave less than this fraction is blurred with half the passes."""

    def sigmas(self, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (N,) width of the blur of regions of these volumes, in voxels; 0 for unchanged regions."""
        sigmas = np.minimum(self.fraction * np.cbrt(voxels), self.max_sigma_voxels)
        return np.where(sigmas < _LEAST_SIGMA, 0.0, sigmas)

    def widths(self, voxels: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return (N,) 0 for no blur, 1 for one up to `apart`, 2 for wider ones; painted separately."""
        sigmas = self.sigmas(voxels)
        return (sigmas > 0).astype(np.int8) + (sigmas > self.apart * self.max_sigma_voxels)


def paint_smoothed(
    labels: DeviceArray,
    innermost: NDArray[np.uint16],
    parent: NDArray[np.int64],
    last: NDArray[np.int64],
    sigmas: NDArray[np.float64],
    boxes: NDArray[np.int64],
    outlines: Outlines,
    backend: Backend = HOST,
) -> DeviceArray:
    """Return the innermost smoothed region at each voxel.

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
    labels: DeviceArray,
    innermost: NDArray[np.uint16],
    parent: NDArray[np.int64],
    last: NDArray[np.int64],
    sigmas: NDArray[np.float64],
    boxes: NDArray[np.int64],
    least: tuple[float, float],
    backend: Backend,
) -> DeviceArray:
    """Do the same as `_paint_numba`: a few kernels per region, without waiting for any of them."""
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
    """Return (N, 11) rows of `Region` in `kernels.cu`, and (N,) blocks in the box of each."""
    rows, num_blocks = np.empty((len(parent), 11), np.int32), np.ones(len(parent), np.int64)
    for rank in range(len(parent)):
        stride, passes = blur_of(sigmas[rank])
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
    """Return the box that the blur of a region may reach, from edge to edge of blocks or of the scan."""
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
    """Do the same as `paint_smoothed`, on the CPU; `least`: IoU and volume that a blur must leave."""
    shape, (least_iou, least_volume) = labels.shape, least
    out = np.zeros(shape, np.uint16)
    samples = np.empty((0, 0, 0, 0), np.uint16)
    sampled = 0
    for rank in range(len(parent)):
        stride, passes = blur_of(sigmas[rank])
        z0, y0, x0, z1, y1, x1 = _box_of_blocks(boxes[rank], stride, passes, shape)
        first, final = np.uint16(rank + 1), np.uint16(last[rank] + 1)
        around, value = np.uint16(parent[rank] + 1), np.uint16(rank + 1)
        if passes:
            blocks = (
                z0 // stride, y0 // stride, x0 // stride,
                (z1 - 1) // stride + 1, (y1 - 1) // stride + 1, (x1 - 1) // stride + 1,
            )  # fmt: skip
            if stride < _SAMPLED_STRIDE:
                there = block_samples(labels[z0:z1, y0:y1, x0:x1], innermost, stride)
                whole = (0, 0, 0, blocks[3] - blocks[0], blocks[4] - blocks[1], blocks[5] - blocks[2])
                means = block_shares(there, whole, first, final)
            else:
                if stride != sampled:  # once for nearly all regions: there are few blurs that wide
                    samples, sampled = block_samples(labels, innermost, stride), stride
                means = block_shares(samples, blocks, first, final)
            field = half = means
            for done in range(passes):
                if done == passes // 2:
                    half = field
                field = binomial_pass(field)
            iou, volume = overlap_and_volume(means, field, num_samples(stride))
            if iou < least_iou or volume < least_volume:
                field = half
                iou, _ = overlap_and_volume(means, field, num_samples(stride))
            if iou >= least_iou:
                paint_blurred(out, (z0, y0, x0, z1, y1, x1), field, stride, around, value)
                continue
        target = out[z0:z1, y0:y1, x0:x1]
        paint_members(target, labels[z0:z1, y0:y1, x0:x1], innermost, first, final, around, value)
    return out


@numba.njit(cache=True, nogil=True)
def region_boxes(
    leaf_boxes: NDArray[np.int32], innermost: NDArray[np.uint16], parent: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return (N, 6) boxes of the regions from those of their leaves (R, 6)."""
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
