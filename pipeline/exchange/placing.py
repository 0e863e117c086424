"""Masks on a stored scan's grid, from arrays on any grid.

*Reads*: label values (z, y, x) on a grid of their own. *Writes*: `PlacedMask`: one mask each, on the stored
grid. Nearest neighbour throughout; 0 outside of the masks' own grid. On the stored grid itself voxels are
taken as they are. From the scan's own grid the result is that of `mass prepare` for a label map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import LabelMismatch
from pipeline.ingest import to_source_grid
from pipeline.volumes import Grid, corner_distance_mm, crop_grid, turn_array, turn_grid, turn_to_ras

Box: TypeAlias = tuple[slice, slice, slice]
"""Half-open box, in voxels along z, y, x."""

Axes: TypeAlias = Literal["auto", "zyx", "xyz"]
"""Order of the axes of arrays without geometry: as SimpleITK gives them (zyx) or as nibabel does (xyz)."""

GridChoice: TypeAlias = Literal["auto", "original", "stored"]
"""The grid of arrays without geometry: the scan's own, or that of the store."""

_SAME_GRID_VOXELS = 1e-3
"""Grids whose corners are no farther apart than this fraction of a voxel are one grid."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The grids of a stored scan, on which masks are placed."""

    scan_id: str
    stored: Grid
    """Grid of the stored scan."""
    original: Grid
    """Grid of the file that it was made from."""
    image: Callable[[], NDArray[np.float32]]
    """Returns the stored image, float32 (z, y, x); called only where an image decides the geometry."""
    grid: GridChoice = "auto"
    axes: Axes = "auto"

    def with_axes(self, axes: Axes) -> Target:
        """Return the target with a known order of axes."""
        return replace(self, axes=axes)

    def orient(
        self, shape: tuple[int | None, int, int], *, shown: str, slices: bool = False
    ) -> tuple[bool, Grid]:
        """Return whether the axes of an array without geometry are x, y, z, and its grid.

        Args:
            shape: Its three axes, in its own order; None for a number of slices that is not known.
            shown: Name of the file in messages.
            slices: Whether it is a stack of slices along the first axis, so that only the two axes of a slice
                may be exchanged.

        Raises:
            LabelMismatch: It fits neither grid, or it could be read in several ways.
        """
        grids = {"original": self.original, "stored": self.stored}
        if self.grid != "auto":
            grids = {self.grid: grids[self.grid]}
        elif same_grid(self.original, self.stored):
            del grids["original"]
        first, second, third = shape
        read_as = {"zyx": shape, "xyz": (first, third, second) if slices else (third, second, first)}
        fits = [
            (axes == "xyz", grid, f"--grid {name} --axes {axes}")
            for name, grid in grids.items()
            for axes in (("zyx", "xyz") if self.axes == "auto" else (self.axes,))
            if all(n in (None, m) for n, m in zip(read_as[axes], grid.shape_zyx, strict=True))
        ]
        if len(fits) == 1:
            return fits[0][:2]
        sizes = " x ".join("slices" if n is None else str(n) for n in shape)
        if not fits:
            known = " or ".join(
                f"{' x '.join(map(str, grid.shape_zyx))} ({name} grid)" for name, grid in grids.items()
            )
            raise LabelMismatch(
                f"masks without geometry must have the size of scan {self.scan_id}, (z, y, x) = {known}; "
                f"these have {sizes}",
                path=shown,
                remedy="Save them as NIfTI with the geometry of their image, or name the right scan",
            )
        raise LabelMismatch(
            f"masks of {sizes} voxels can be read in {len(fits)} ways: {'; '.join(f[2] for f in fits)}",
            path=shown,
            remedy="Say which: arrays from SimpleITK are zyx, arrays from nibabel xyz",
        )


@dataclass(frozen=True, kw_only=True)
class MaskVolume:
    """Masks that share a volume: every value but 0 is one."""

    values: NDArray[np.uint8] | NDArray[np.uint16]
    """(z, y, x); 0 is in no mask."""
    grid: Grid
    names: Mapping[int, str] = field(default_factory=dict)
    """Name of each value, where known."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Score of each value, higher is better, where known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedMask:
    """One mask on the stored grid."""

    name: str
    score: float | None
    """Higher is better; None where the file has none."""
    box: Box
    """Its bounding box."""
    bits: NDArray[np.uint8]
    """Its voxels in the box, eight per byte (`numpy.packbits`)."""
    num_voxels: int

    @property
    def voxels(self) -> NDArray[np.bool_]:
        """Its voxels in the box, bool (z, y, x)."""
        shape = tuple(part.stop - part.start for part in self.box)
        flat = np.unpackbits(self.bits, count=math.prod(shape))
        return flat.reshape(shape).view(np.bool_)

    @classmethod
    def of(cls, name: str, score: float | None, box: Box, voxels: NDArray[np.bool_]) -> PlacedMask:
        """Return the mask that has these voxels in a box."""
        return cls(
            name=name,
            score=score,
            box=box,
            bits=np.packbits(voxels),
            num_voxels=int(np.count_nonzero(voxels)),
        )


@dataclass(frozen=True, kw_only=True)
class PlacedMasks:
    """The masks of one scan and one source."""

    masks: tuple[PlacedMask, ...]
    """Masks that have at least one voxel."""
    empty: tuple[str, ...]
    """Names of masks without a voxel on the stored grid."""


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels at the same places."""
    if one.shape_zyx != other.shape_zyx:
        return False
    return corner_distance_mm(one, other) <= _SAME_GRID_VOXELS * min(other.spacing_xyz_mm)


def place(volumes: Iterable[MaskVolume], stored: Grid) -> PlacedMasks:
    """Return the masks of some volumes, in their order, resampled to the stored grid."""
    masks: list[PlacedMask] = []
    empty: list[str] = []
    for volume in volumes:
        wanted = [int(value) for value in np.flatnonzero(_counts(volume.values)) if value]
        boxes = _boxes(volume.values)
        if not wanted:
            empty.extend(volume.names.values())
            continue
        whole = _hull([boxes[value] for value in wanted])
        placed = put_on(volume.values[whole], crop_grid(volume.grid, whole), stored)
        found = _boxes(placed)
        for value in wanted:
            name = volume.names.get(value, str(value))
            if value in found:
                box = found[value]
                masks.append(PlacedMask.of(name, volume.scores.get(value), box, placed[box] == value))
            else:
                empty.append(name)
    return PlacedMasks(masks=tuple(masks), empty=tuple(empty))


def put_on(values: NDArray[Any], grid: Grid, target: Grid) -> NDArray[Any]:
    """Return values on another grid by nearest neighbour, 0 outside; the same array on the same grid.

    Args:
        values: (z, y, x) on `grid`.
        grid: Grid of the values.
        target: The wanted grid, with axes in any direction.
    """
    if same_grid(grid, target):
        return values
    # Turned first, as `mass prepare` does, so that ties between two voxels go the same way.
    turn = turn_to_ras(grid)
    values, grid = turn_array(values, turn), turn_grid(grid, turn)
    try:
        return to_source_grid(values, grid, target)
    except ValueError:  # the axes are not parallel
        return _nearest(values, grid, target)


def _nearest(values: NDArray[Any], grid: Grid, target: Grid) -> NDArray[Any]:
    """Return values on a grid with other directions of axes, slice by slice."""
    out = np.zeros(target.shape_zyx, values.dtype)
    matrix = np.linalg.inv(grid.affine) @ target.affine
    _, height, width = target.shape_zyx
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    sizes = np.array(values.shape[::-1])
    for z in range(target.shape_zyx[0]):
        at = np.stack([x, y, np.full_like(x, z)], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
        index = np.floor(at + 0.5 + 1e-6).astype(np.int64)
        inside = ((index >= 0) & (index < sizes)).all(axis=-1)
        i, j, k = index[inside].T
        out[z][inside] = values[k, j, i]
    return out


def _counts(values: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return for each value whether it occurs, bool (values,)."""
    seen = np.zeros(int(values.max()) + 1 if values.size else 1, dtype=np.bool_)
    for plane in values:
        seen[plane] = True
    return seen


def _boxes(values: NDArray[Any]) -> dict[int, Box]:
    """Return the smallest box around each value but 0."""
    if not values.any():
        return {}
    found = ndimage.find_objects(values)
    return {value: box for value, box in enumerate(found, start=1) if box is not None}


def _hull(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around some boxes."""
    z, y, x = (
        slice(min(part.start for part in along), max(part.stop for part in along))
        for along in zip(*boxes, strict=True)
    )
    return z, y, x
