"""Grids: the position of an array's voxels in the patient.

World points are (x, y, z) in mm in the DICOM and ITK frame: x grows to the patient's left, y to the back,
z to the head. Arrays are (z, y, x). Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ORTHONORMAL_TOLERANCE = 1e-3
"""Largest entry of |D^T D - 1| that is accepted; headers in single precision are not exactly orthonormal."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular grid of voxels, checked when made.

    Attributes:
        shape_zyx: Number of voxels along the array's axes.
        spacing_xyz_mm: Distance between neighbouring voxels along the index axes x, y, z.
        origin_xyz_mm: World point of the centre of voxel (0, 0, 0).
        direction: 3x3 matrix by rows; column j is the unit vector of index axis j (x, y, z) in the world.
    """

    shape_zyx: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]

    def __post_init__(self) -> None:
        if len(self.shape_zyx) != 3 or min(self.shape_zyx) < 1:
            raise ValueError(
                f"a grid needs at least one voxel along each of three axes, got {self.shape_zyx}"
            )
        if not all(math.isfinite(s) and s > 0 for s in self.spacing_xyz_mm):
            raise ValueError(f"spacing must be positive, got {self.spacing_xyz_mm} mm")
        if not all(math.isfinite(v) for v in self.origin_xyz_mm):
            raise ValueError(f"the origin must be finite, got {self.origin_xyz_mm}")
        matrix = self.matrix
        if not np.abs(matrix.T @ matrix - np.eye(3)).max() < _ORTHONORMAL_TOLERANCE:
            raise ValueError(f"the axes must be at right angles, got {self.direction}")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3) direction matrix; column j is index axis j."""
        return np.array(self.direction, dtype=np.float64).reshape(3, 3)

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size along the array's axes, in mm."""
        x, y, z = self.spacing_xyz_mm
        return (z, y, x)

    @property
    def num_voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape_zyx)

    @property
    def extent_zyx_mm(self) -> tuple[float, float, float]:
        """Size of the volume along the array's axes, from outer face to outer face, in mm."""
        z, y, x = (n * s for n, s in zip(self.shape_zyx, self.spacing_zyx_mm, strict=True))
        return (z, y, x)

    @property
    def affine(self) -> NDArray[np.float64]:
        """float64 (4, 4) matrix from an index (x, y, z, 1) to a world point in mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.matrix * np.array(self.spacing_xyz_mm)
        affine[:3, 3] = self.origin_xyz_mm
        return affine

    def to_world(self, index_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return world points (..., 3) in mm from index positions (..., 3), both as x, y, z."""
        affine = self.affine
        return np.asarray(index_xyz @ affine[:3, :3].T + affine[:3, 3], dtype=np.float64)

    def to_index(self, world_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return index positions (..., 3) from world points (..., 3) in mm, both as x, y, z."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world_xyz @ inverse[:3, :3].T + inverse[:3, 3], dtype=np.float64)

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Return plain values to be written to a file; `from_dict` returns an equal grid."""
        return {
            "shape_zyx": list(self.shape_zyx),
            "spacing_xyz_mm": list(self.spacing_xyz_mm),
            "origin_xyz_mm": list(self.origin_xyz_mm),
            "direction": list(self.direction),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Return the grid from the values of `to_dict`."""
        z, y, x = (int(n) for n in values["shape_zyx"])
        return cls(
            shape_zyx=(z, y, x),
            spacing_xyz_mm=triple(values["spacing_xyz_mm"]),
            origin_xyz_mm=triple(values["origin_xyz_mm"]),
            direction=nine(values["direction"]),
        )


MAX_SHEAR_DEGREES = 1.0
"""Axes are put to right angles if they are off by at most this, in degrees."""


def rigid_grid(
    shape_zyx: tuple[int, int, int], spacing_xyz_mm: Any, origin_xyz_mm: Any, direction: Any
) -> tuple[Grid, str]:
    """Return the grid of a header, with its axes turned to right angles if they are nearly so.

    Args:
        shape_zyx: Number of voxels along the array's axes.
        spacing_xyz_mm: Three voxel sizes, in mm.
        origin_xyz_mm: World point of the centre of voxel (0, 0, 0), in mm.
        direction: 3x3 matrix; column j is the direction of index axis j, of length 1.

    Returns:
        The grid, and what was changed; the text is empty if nothing was. The nearest rotation is taken
        (singular value decomposition), about the volume's centre.

    Raises:
        ValueError: An axis is `MAX_SHEAR_DEGREES` or more off a right angle, or a number is impossible.
    """
    given = np.asarray(direction, dtype=np.float64).reshape(3, 3)
    spacing, origin = triple(spacing_xyz_mm), triple(origin_xyz_mm)
    products = given.T @ given
    if np.abs(products - np.eye(3)).max() < _ORTHONORMAL_TOLERANCE:
        return (
            Grid(shape_zyx=shape_zyx, spacing_xyz_mm=spacing, origin_xyz_mm=origin, direction=nine(given)),
            "",
        )
    if not np.abs(np.diag(products) - 1).max() < _ORTHONORMAL_TOLERANCE:
        raise ValueError(f"each axis must be a vector of length 1, got {nine(given)}")
    off = np.degrees(np.arcsin(np.clip(np.abs(products[np.triu_indices(3, 1)]), 0, 1))).max()
    if not off <= MAX_SHEAR_DEGREES:
        raise ValueError(f"up to {MAX_SHEAR_DEGREES:g} degree is put right, this is {off:.1f} degrees off")
    left, _, right = np.linalg.svd(given)
    rotation = left @ right
    steps, new_steps = given * np.array(spacing), rotation * np.array(spacing)
    middle = (np.array(shape_zyx[::-1]) - 1) / 2
    grid = Grid(
        shape_zyx=shape_zyx,
        spacing_xyz_mm=spacing,
        origin_xyz_mm=triple(np.array(origin) + (steps - new_steps) @ middle),
        direction=nine(rotation),
    )
    corners = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
    away = corners * np.array(shape_zyx[::-1]) @ (steps - new_steps).T
    change_mm = float(np.linalg.norm(away, axis=1).max())
    return grid, (
        f"the header's axes are {off:.2f} degrees off right angles: the nearest rotation was taken, "
        f"which moves the far corner by {change_mm:.2f} mm"
    )


def triple(values: Any) -> tuple[float, float, float]:
    """Return three values as plain floats."""
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def nine(values: Any) -> tuple[float, float, float, float, float, float, float, float, float]:
    """Return nine values as plain floats, by rows; negative zeros become zeros."""
    a, b, c, d, e, f, g, h, i = (float(v) + 0.0 for v in np.asarray(values, dtype=np.float64).ravel())
    return (a, b, c, d, e, f, g, h, i)


def corner_distance_mm(first: Grid, second: Grid) -> float:
    """Return the largest distance between equal outer corners of two grids of the same shape, in mm."""
    z, y, x = first.shape_zyx
    corners = np.array([[i, j, k] for i in (-0.5, x - 0.5) for j in (-0.5, y - 0.5) for k in (-0.5, z - 0.5)])
    gaps = np.linalg.norm(first.to_world(corners) - second.to_world(corners), axis=1)
    return float(gaps.max())
