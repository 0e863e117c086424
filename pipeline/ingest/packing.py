"""Masks of named structures as label maps: those that overlap go to further maps.

*Reads*: masks, bool (z, y, x), all of one shape, with their names. *Writes*: `PackedMap`: uint8 or uint16
(z, y, x), 0 is background. A mask goes to the first map in which it overlaps no other. So one map is enough
where no masks overlap, and no voxel is lost where some do. The same masks in the same order give the same
maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LabelMismatch

_MOST_STRUCTURES = 65535


@dataclass(frozen=True, kw_only=True)
class PackedMap:
    """Structures that share no voxel.

    Attributes:
        array: (z, y, x) uint8 or uint16; 0 is background.
        value_names: Name of each value. A structure without a voxel has a value in the first map.
    """

    array: NDArray[np.uint8] | NDArray[np.uint16]
    value_names: Mapping[int, str]


def pack(
    masks: Iterable[tuple[str, NDArray[np.bool_]]], shape_zyx: tuple[int, int, int]
) -> tuple[PackedMap, ...]:
    """Return label maps that hold every voxel of every mask.

    The n-th structure has the value n, from 1, in whichever map it is; otherwise as `pack_values`.

    Args:
        masks: (name, bool (z, y, x)) of each structure; names may occur twice.
        shape_zyx: Shape of all masks.

    Returns:
        At least one map; it is empty if there are no masks.

    Raises:
        LabelMismatch: There are more than 65,535 structures. `path` is None; the caller adds it.
        ValueError: A mask has another shape.
    """
    return pack_values(((value, name, mask) for value, (name, mask) in enumerate(masks, start=1)), shape_zyx)


def pack_values(
    masks: Iterable[tuple[int, str, NDArray[np.bool_]]], shape_zyx: tuple[int, int, int]
) -> tuple[PackedMap, ...]:
    """Return label maps that hold every voxel of every mask; masks are taken one at a time.

    So only the maps and one mask are held in memory.

    Args:
        masks: (value, name, bool (z, y, x)) of each structure; values rise.
        shape_zyx: Shape of all masks.

    Returns:
        At least one map; it is empty if there are no masks.

    Raises:
        LabelMismatch: There are more than 65,535 structures. `path` is None; the caller adds it.
        ValueError: A mask has another shape.
    """
    arrays: list[NDArray[np.uint8] | NDArray[np.uint16]] = [np.zeros(shape_zyx, np.uint8)]
    names: list[dict[int, str]] = [{}]
    for value, name, mask in masks:
        if mask.shape != shape_zyx:
            raise ValueError(f"masks must have the shape {shape_zyx}, {name!r} has {mask.shape}")
        if value > _MOST_STRUCTURES:
            raise LabelMismatch(
                f"there are more than {_MOST_STRUCTURES:,} structures",
                path=None,
                remedy="Split the masks into several label maps",
            )
        place = next((i for i, array in enumerate(arrays) if not array[mask].any()), len(arrays))
        if place == len(arrays):
            arrays.append(np.zeros(shape_zyx, np.uint8))
            names.append({})
        if value > 255 and arrays[place].dtype == np.uint8:
            arrays[place] = arrays[place].astype(np.uint16)
        arrays[place][mask] = value
        names[place][value] = name
    return tuple(PackedMap(array=a, value_names=n) for a, n in zip(arrays, names, strict=True))


def map_names(name: str, count: int) -> tuple[str, ...]:
    """Return the name of each of `count` maps that one label became: "seg", "seg_2", "seg_3"."""
    return tuple(name if i == 0 else f"{name}_{i + 1}" for i in range(count))
