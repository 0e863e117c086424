"""Levels of a scan: their number and size, and how a coarse level is computed from a finer one. No I/O.

A level is identified by its factors: how many voxels of level 0 one of its voxels spans along z, y, x, each a
power of two. A step halves some axes. An axis of odd length is extended by repeating its last slice, so that
n voxels become ceil(n / 2), and the last of them stands for one slice. Coarse voxel i spans the fine voxels
i * f to i * f + f - 1, and its centre is their mean: world = (i * f + (f - 1) / 2) * spacing.

    the image    mean of each block in whole numbers, halves to the even code; each level from the one before
    label maps   the most frequent of the 8 (4, 2) ids around the block's centre, of several the lowest; each
                 level from level 0. Never a mean of ids

The most frequent id of the whole block is not used: a proposal consists of many small atoms, and would lose
the block to one larger atom next to it (docs/decisions/0002). A level beyond the planned ones is computed
from the last planned level.

*Reads* int16 codes or uint8/uint16 ids, (z, y, x). *Writes* arrays of the same type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.layout import LEVEL_WINDOW_VOXELS
from storage.records.regions import Region

Triple: TypeAlias = tuple[int, int, int]
LabelType = TypeVar("LabelType", np.uint8, np.uint16)

FULL: Triple = (1, 1, 1)
"""Factors of level 0."""

_SLAB_VOXELS = 2**21
"""Fine voxels processed at a time, to keep the working memory of a step small."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of a scan."""

    factors_zyx: Triple
    """Voxels of level 0 that one voxel spans along each axis; powers of two."""
    shape_zyx: Triple
    """Voxels along each axis."""
    spacing_zyx_mm: tuple[float, float, float]
    """Voxel size along each axis, in mm."""
    index: int | None = None
    """Index of the level in the scan; None for a level that `level_for` has added for a window."""

    @property
    def origin_zyx_mm(self) -> tuple[float, float, float]:
        """Centre of its first voxel relative to the centre of level 0's first voxel, in mm."""
        z, y, x = (
            spacing * (factor - 1) / (2 * factor)
            for spacing, factor in zip(self.spacing_zyx_mm, self.factors_zyx, strict=True)
        )
        return z, y, x


def plan_levels(
    shape: Sequence[int], window: Sequence[int] = (LEVEL_WINDOW_VOXELS,) * 3
) -> tuple[Triple, ...]:
    """Return the factors of all levels from 0 on, until the whole array fits into the window.

    Each level halves the axes that are still longer than the window.

    Args:
        shape: Voxels along z, y, x.
        window: The most voxels of the last level along each axis, >= 1.
    """
    if len(shape) != 3 or len(window) != 3 or min(*shape, *window) < 1:
        raise ValueError(f"needs three sizes >= 1 each, got shape {shape}, window {window}")
    plan = [FULL]
    while True:
        sizes = coarse_shape(shape, plan[-1])
        z, y, x = (
            factor * (2 if size > most else 1)
            for factor, size, most in zip(plan[-1], sizes, window, strict=True)
        )
        if (z, y, x) == plan[-1]:
            return tuple(plan)
        plan.append((z, y, x))


def coarse_shape(shape: Sequence[int], factors: Triple) -> Triple:
    """Return the voxels along each axis of the level with these factors."""
    z, y, x = (-(-size // factor) for size, factor in zip(shape, factors, strict=True))
    return z, y, x


def make_level(
    shape: Sequence[int], spacing_zyx_mm: Sequence[float], factors: Triple, index: int | None
) -> Level:
    """Return the level with these factors, for a scan with this shape and spacing (mm)."""
    z, y, x = (size * factor for size, factor in zip(spacing_zyx_mm, factors, strict=True))
    return Level(
        index=index,
        factors_zyx=factors,
        shape_zyx=coarse_shape(shape, factors),
        spacing_zyx_mm=(z, y, x),
    )


def divides(finer: Triple, coarser: Triple) -> bool:
    """Return whether a level can be computed from a finer one: no factor of the finer one is larger."""
    return all(small <= large for small, large in zip(finer, coarser, strict=True))


def steps_to(
    target: Triple, plan: Sequence[Triple], available: Sequence[Triple], *, averaged: bool
) -> tuple[Triple, ...]:
    """Return the levels through which a level is computed: the first can be read, the last is the target.

    The steps are planned levels, so that the result does not depend on which levels are stored.

    Args:
        target: Factors of the wanted level.
        plan: Factors of the scan's levels, from `plan_levels`.
        available: Factors of the levels that can be read; level 0 is one of them.
        averaged: True for the image, which passes through every planned level; False for a label map, which
            goes from level 0 to the last planned level in one step.
    """
    planned = [factors for factors in plan if divides(factors, target)]
    path = planned if averaged else list(dict.fromkeys((FULL, planned[-1])))
    first = max(i for i, factors in enumerate(path) if factors in available)
    return (*path[first:], *([] if path[-1] == target else [target]))


def fine_region(region: Region, factors: Triple, shape: Sequence[int]) -> Region:
    """Return the box in a finer array that a box of a level spans.

    Args:
        region: Box of the coarse level, in its voxels.
        factors: Fine voxels per coarse voxel along each axis.
        shape: Shape of the finer array.
    """
    return tuple(
        slice(part.start * factor, max(part.start * factor, min(part.stop * factor, size)))
        for part, factor, size in zip(region, factors, shape, strict=True)
    )


def coarse_boxes(boxes: NDArray[np.int32], factors: Triple) -> NDArray[np.int32]:
    """Return boxes of level 0 in voxels of a coarser level, rounded outwards.

    Args:
        boxes: int32 (K, 6) z0, y0, x0, z1, y1, x1, half-open.
        factors: Factors of the level.
    """
    by = np.array(factors, dtype=np.int32)
    return np.concatenate([boxes[:, :3] // by, -(-boxes[:, 3:] // by)], axis=1)


def ratio(finer: Triple, coarser: Triple) -> Triple:
    """Return the number of voxels of the finer level per voxel of the coarser one, along each axis."""
    z, y, x = (large // small for small, large in zip(finer, coarser, strict=True))
    return z, y, x


def downsample_image(codes: NDArray[np.int16], factors: Triple) -> NDArray[np.int16]:
    """Return the means of blocks of codes, int16 (z, y, x), in steps of 2 along all axes that need it."""
    for step in _halvings(factors):
        codes = _halve(codes, step)
    return codes


def downsample_labels(labels: NDArray[LabelType], factors: Triple) -> NDArray[LabelType]:
    """Return the most frequent id around the centre of each block, (z, y, x); of several the lowest.

    Along an axis with factor f > 1, the voxels f / 2 - 1 and f / 2 of the block are around the centre; those
    beyond the array are replaced by its last.
    """
    _check(factors)
    axes = [
        [np.minimum(np.arange(0, size, factor) + offset, size - 1) for offset in _central(factor)]
        for size, factor in zip(labels.shape, factors, strict=True)
    ]
    result = np.empty(coarse_shape(labels.shape, factors), dtype=labels.dtype)
    thickness = max(1, _SLAB_VOXELS // (8 * max(1, result.shape[1] * result.shape[2])))
    for first in range(0, len(result), thickness):
        slab = slice(first, first + thickness)
        members = [labels[np.ix_(z[slab], y, x)] for z, y, x in product(*axes)]
        result[slab] = _mode(members)
    return result


def _central(factor: int) -> tuple[int, ...]:
    return (0,) if factor == 1 else (factor // 2 - 1, factor // 2)


def _check(factors: Triple) -> None:
    if min(factors) < 1 or any(factor & (factor - 1) for factor in factors):
        raise ValueError(f"factors must be powers of two, got {factors}")


def _halvings(factors: Triple) -> Iterator[Triple]:
    """Yield steps of 1 or 2 along each axis whose product is `factors`."""
    _check(factors)
    left = list(factors)
    while max(left) > 1:
        z, y, x = (min(factor, 2) for factor in left)
        yield z, y, x
        left = [max(factor // 2, 1) for factor in left]


def _halve(codes: NDArray[np.int16], step: Triple) -> NDArray[np.int16]:
    """Return the means of blocks of `step` voxels, slab by slab along z."""
    result = np.empty(coarse_shape(codes.shape, step), dtype=np.int16)
    thickness = max(1, _SLAB_VOXELS // max(1, step[0] * codes.shape[1] * codes.shape[2]))
    for first in range(0, len(result), thickness):
        last = min(first + thickness, len(result))
        slab = codes[first * step[0] : last * step[0]]
        # Repeat the last slice of an odd axis, so that all blocks are complete.
        missing = [(0, -size % part) for size, part in zip(slab.shape, step, strict=True)]
        slab = np.pad(slab, missing, mode="edge") if np.any(missing) else slab
        members = [
            slab[tuple(slice(offset, None, part) for offset, part in zip(offsets, step, strict=True))]
            for offsets in product(*(range(part) for part in step))
        ]
        result[first:last] = _mean(members)
    return result


def _mean(members: list[NDArray[np.int16]]) -> NDArray[np.int32]:
    """Return the mean of 2, 4 or 8 arrays, rounded to nearest, halves to even."""
    total = members[0].astype(np.int32)
    for member in members[1:]:
        total += member
    half = len(members) // 2
    mean = (total + half) >> (len(members).bit_length() - 1)
    mean -= (total & (len(members) - 1) == half) & mean & 1
    return mean


def _mode(members: list[NDArray[Any]]) -> NDArray[np.uint16]:
    """Return, for each voxel, the most frequent of 1, 2, 4 or 8 arrays of ids; of several the lowest."""
    members = [np.ascontiguousarray(member, dtype=np.uint16) for member in members]
    votes = [np.zeros(members[0].shape, dtype=np.uint8) for _ in members]
    for first, second in combinations(range(len(members)), 2):
        same = (members[first] == members[second]).view(np.uint8)
        votes[first] += same
        votes[second] += same
    # One number that orders by votes, then by the lower id.
    best = np.zeros(members[0].shape, dtype=np.uint32)
    for count, member in zip(votes, members, strict=True):
        np.maximum(best, (count.astype(np.uint32) << 16) | np.bitwise_not(member), out=best)
    return np.bitwise_not(best.astype(np.uint16))
