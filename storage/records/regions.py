"""Boxes of voxels, and the chunks that they touch: integer arithmetic, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypeAlias

from storage.errors import InvalidSelection

Region: TypeAlias = tuple[slice, ...]
"""One slice per axis (z, y, x), step 1; a missing end is the scan's own."""


def parse_region(region: Sequence[slice] | None, shape: Sequence[int], *, where: str) -> Region:
    """Return `region` with all ends filled in.

    Args:
        region: One slice per axis, or None for everything.
        shape: Voxels along each axis.
        where: Name of the array in an error message.

    Raises:
        InvalidSelection: It is not one slice per axis, has a step, or leaves the array. Regions are never
            clipped: the caller pads a crop beyond the border.
    """
    if region is None:
        return tuple(slice(0, size) for size in shape)
    region = tuple(region)
    if len(region) != len(shape) or not all(isinstance(part, slice) for part in region):
        raise InvalidSelection(f"{where}: a region is {len(shape)} slices (z, y, x), got {region!r}")
    parsed = []
    for part, size in zip(region, shape, strict=True):
        start = 0 if part.start is None else int(part.start)
        stop = size if part.stop is None else int(part.stop)
        if part.step not in (None, 1) or not 0 <= start <= stop <= size:
            raise InvalidSelection(
                f"{where}: region {region!r} leaves the array of shape {tuple(shape)} or has a step; "
                "crop it to the scan first"
            )
        parsed.append(slice(start, stop))
    return tuple(parsed)


def region_shape(region: Region) -> tuple[int, ...]:
    """Return the voxels along each axis of a parsed region."""
    return tuple(part.stop - part.start for part in region)


def touched_chunks(
    region: Region, chunk_shape: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Region, Region]]:
    """Yield the chunks that a parsed region touches.

    Yields:
        The chunk's index along each axis; the part of the chunk inside the region, relative to the chunk's
        corner; the same part relative to the region's corner.
    """
    if 0 in region_shape(region):
        return
    axes = []
    for part, size in zip(region, chunk_shape, strict=True):
        spans = []
        for index in range(part.start // size, (part.stop - 1) // size + 1):
            start, stop = max(part.start, index * size), min(part.stop, (index + 1) * size)
            inside = slice(start - index * size, stop - index * size)
            spans.append((index, inside, slice(start - part.start, stop - part.start)))
        axes.append(spans)
    for chosen in product(*axes):
        indices, inside, target = zip(*chosen, strict=True)
        yield indices, inside, target
