"""Turning, cropping and resampling of grids, and turning of arrays; no voxel value is computed here.

In the stored form, array axis z runs to the patient's head (S), y to the front (A), x to the right (R), each
along the scan's own axis that is closest. An oblique scan stays oblique: its axes are only permuted and
flipped, so labels are turned without interpolation, and `Grid` keeps the true directions.

Reads: nothing. Writes: nothing. Sheared axes are refused by `Grid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.volumes.grid import Grid, nine, triple

Scalar = TypeVar("Scalar", bound=np.generic)

_RAS_IN_WORLD = np.diag([-1.0, -1.0, 1.0])
"""Column j is the direction of stored axis j (x, y, z) in the ITK world (left, back, head): R, A, S."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A permutation of array axes followed by flips.

    Attributes:
        axes: Stored array axis i is axis axes[i] of the source array.
        flips: Whether stored array axis i runs against the source's.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def turn_to_ras(grid: Grid) -> Turn:
    """Return the turn that brings each axis as close to S, A, R as permutations and flips allow."""
    return turn_towards(grid, _RAS_IN_WORLD)


def turn_towards(grid: Grid, wanted: NDArray[np.float64]) -> Turn:
    """Return the turn that brings each axis as close to a wanted direction as permutations and flips allow.

    Args:
        grid: The grid to turn.
        wanted: 3x3; column j is the wanted direction of axis j (x, y, z) in the world.
    """
    towards = grid.matrix.T @ wanted  # [source axis x,y,z ; wanted axis x,y,z] cosine
    best = max(permutations(range(3)), key=lambda p: (sum(abs(towards[p[j], j]) for j in range(3)), p))
    axes = tuple(2 - best[2 - i] for i in range(3))
    flips = tuple(bool(towards[best[2 - i], 2 - i] < 0) for i in range(3))
    return Turn(axes=(axes[0], axes[1], axes[2]), flips=(flips[0], flips[1], flips[2]))


def turn_array(array: NDArray[Scalar], turn: Turn) -> NDArray[Scalar]:
    """Return a view of the array (z, y, x) with its axes turned."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in turn.flips)
    return array.transpose(turn.axes)[steps]


def turn_grid(grid: Grid, turn: Turn) -> Grid:
    """Return the grid of `turn_array(array, turn)`; each voxel keeps its world point."""
    shape = [grid.shape_zyx[axis] for axis in turn.axes]
    spacing, columns = [0.0] * 3, np.zeros((3, 3))
    corner = np.zeros(3)
    for i, (axis, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
        new, old = 2 - i, 2 - axis
        spacing[new] = grid.spacing_xyz_mm[old]
        columns[:, new] = grid.matrix[:, old] * (-1.0 if flip else 1.0)
        corner[old] = grid.shape_zyx[axis] - 1 if flip else 0
    return Grid(
        shape_zyx=(shape[0], shape[1], shape[2]),
        spacing_xyz_mm=triple(spacing),
        origin_xyz_mm=triple(grid.to_world(corner)),
        direction=nine(columns),
    )


def crop_grid(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """Return the grid of `array[box]`; the box has plain starts and stops inside the array."""
    z, y, x = box
    shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    origin = grid.to_world(np.array([x.start, y.start, z.start], dtype=np.float64))
    return Grid(
        shape_zyx=shape,
        spacing_xyz_mm=grid.spacing_xyz_mm,
        origin_xyz_mm=triple(origin),
        direction=grid.direction,
    )


def resampled_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Return the grid of isotropic voxels with the same axes and centre; its size is right to half a voxel.

    Args:
        grid: The grid to be resampled.
        spacing_mm: Edge of the new voxels in mm.
    """
    spacing = np.array(grid.spacing_zyx_mm)
    size = np.array(grid.shape_zyx)
    new = np.maximum(1, np.floor(size * spacing / spacing_mm + 0.5 + 1e-9)).astype(int)
    first = ((size - 1) * spacing - (new - 1) * spacing_mm) / 2  # mm from the old first voxel, by z, y, x
    origin = np.array(grid.origin_xyz_mm) + grid.matrix @ first[::-1]
    return Grid(
        shape_zyx=(int(new[0]), int(new[1]), int(new[2])),
        spacing_xyz_mm=(spacing_mm, spacing_mm, spacing_mm),
        origin_xyz_mm=triple(origin),
        direction=grid.direction,
    )


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """The relation of one array axis of a target grid to a source grid with parallel axes.

    Attributes:
        axis: The source array's axis (0 = z, 1 = y, 2 = x).
        start: Source index position of target index 0.
        step: Source index positions per target index; negative if the axes have opposite directions.
    """

    axis: int
    start: float
    step: float

    def positions(self, length: int) -> NDArray[np.float64]:
        """Return float64 (length,) source index positions of target indices 0, 1, ..."""
        return self.start + self.step * np.arange(length, dtype=np.float64)

    def nearest(self, length: int) -> NDArray[np.int64]:
        """Return int64 (length,) nearest source indices; a tie goes up, whatever the rounding error."""
        return np.floor(self.positions(length) + 0.5 + 1e-6).astype(np.int64)


def axis_maps(source: Grid, target: Grid) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Return the relation of the target's array axes z, y, x to the source's axes.

    Raises:
        ValueError: The two grids' axes are not parallel.
    """
    matrix = np.linalg.inv(source.affine) @ target.affine  # target index (x, y, z, 1) -> source index
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    # Distance along each source axis per step along each target axis.
    step_mm = np.abs(linear) * np.array(source.spacing_xyz_mm)[:, None]
    follows = step_mm.argmax(axis=0)
    rest = step_mm.copy()
    rest[follows, range(3)] = 0
    if len(set(follows.tolist())) != 3 or rest.max() > 1e-3 * step_mm.max():
        raise ValueError("the two grids have no parallel axes")
    maps = [
        AxisMap(axis=2 - int(follows[j]), start=float(offset[follows[j]]), step=float(linear[follows[j], j]))
        for j in (2, 1, 0)
    ]
    return (maps[0], maps[1], maps[2])


def whole(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Return the box of a whole (z, y, x) array, with plain starts and stops."""
    z, y, x = shape
    return (slice(0, z), slice(0, y), slice(0, x))
