"""RTSTRUCT contours to masks on the grid of the series that they were drawn on.

*Reads*: closed planar contours, world points in mm. *Writes*: a mask for each structure, bool (z, y, x) on
the series' grid, and notes.

Each contour must lie in the plane of a slice, of whatever direction. Contours of one plane are filled
together by the even-odd rule (`polygons`). A plane fills the nearest slice, which must lie within half a
slice; of several planes nearest to one slice the nearest is used, and a note gives the number of the others.
Slices between contours are not interpolated. Points and open contours enclose nothing and are noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from pipeline.errors import CorruptImage, LabelMismatch
from pipeline.formats import DAMAGED, find_number, find_text, quiet_pydicom
from pipeline.ingest.dicom.polygons import fill_polygons
from pipeline.volumes import Grid

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")

_FLAT_SLICES = 0.1
"""Largest distance of a contour's points from one plane parallel to the slices, in slices."""

_SAME_PLANE_SLICES = 0.01
"""Contours closer than this belong to one plane, in slices."""


_TIE_SLICES = 1e-3
"""A plane midway between two slices, within this tolerance, goes to the lower one."""


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """The contours of a structure in one plane.

    Attributes:
        z: Index coordinate of the plane along the slices.
        polygons: (N, 2) corners (x, y) of each contour, in voxels.
    """

    z: float
    polygons: tuple[NDArray[np.float64], ...]


def read_contours(path: Path, shown: str) -> dict[int, list[tuple[str, NDArray[np.float64]]]]:
    """Return type and points, (N, 3) x, y, z in mm, of each contour of every structure, by ROI number.

    Raises:
        CorruptImage: The file is damaged, or the numbers of a contour are no points.
        OSError: It cannot be read.
    """
    damaged = CorruptImage("the structure set is damaged", path=shown, remedy="Copy or export the file again")
    contours: dict[int, list[tuple[str, NDArray[np.float64]]]] = {}
    try:
        with quiet_pydicom():
            data: Any = pydicom.dcmread(path)
            for roi in data.get("ROIContourSequence") or ():
                number = int(find_number(roi, "ReferencedROINumber") or 0)
                for contour in roi.get("ContourSequence") or ():
                    kind = find_text(contour, "ContourGeometricType").upper()
                    values = np.asarray(contour.get("ContourData") or (), dtype=np.float64)
                    points = np.atleast_1d(values).reshape(-1, 3)
                    if not np.isfinite(points).all():
                        raise damaged
                    contours.setdefault(number, []).append((kind, points))
    except DAMAGED:
        raise damaged from None
    return contours


def structure_masks(
    contours: Mapping[int, Sequence[tuple[str, NDArray[np.float64]]]],
    structures: Sequence[tuple[int, str]],
    grid: Grid,
    *,
    notes: list[str],
    shown: str,
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield name and mask, bool (z, y, x), of each structure.

    Args:
        contours: As `read_contours` returns them.
        structures: (ROI number, name) of the wanted structures.
        grid: Grid of the series.
        notes: Notes are appended here.
        shown: Name of the file in error messages.

    Raises:
        LabelMismatch: A contour lies across the slices, or farther than half a slice from every slice.
    """
    for number, name in structures:
        found = contours.get(number, ())
        closed = [grid.to_index(points) for kind, points in found if kind in _CLOSED and len(points) >= 3]
        if len(closed) < len(found):
            notes.append(
                f"{len(found) - len(closed)} contours of {name} are points or open: they enclose nothing"
            )
        if not found:
            notes.append(f"{name} has no contour")
        chosen, unused = _by_slice(_planes(closed, name, shown), name, grid, shown)
        if unused:
            notes.append(
                f"{unused} contour planes of {name} lie between slices and were not used: "
                "another is nearer to the same slice"
            )
        gaps = max(chosen, default=0) - min(chosen, default=1) + 1 - len(chosen)
        if gaps > 0:
            notes.append(f"{name} has no contour on {gaps} slices between its first and its last")
        mask = np.zeros(grid.shape_zyx, np.bool_)
        for index, plane in chosen.items():
            mask[index] = fill_polygons(plane.polygons, grid.shape_zyx[1:])
        yield name, mask


def _planes(contours: Sequence[NDArray[np.float64]], name: str, shown: str) -> list[_Plane]:
    """Return the contours of a structure by plane, from the first slice on.

    Args:
        contours: (N, 3) x, y, z in voxels of each.
        name: Name of the structure.
        shown: Name of the file in error messages.
    """
    for points in contours:
        if np.ptp(points[:, 2]) > _FLAT_SLICES:
            raise LabelMismatch(
                f"contours must lie in the planes of the slices, one of {name} crosses "
                f"{np.ptp(points[:, 2]):.1f} slices",
                path=shown,
                remedy="Draw it on this series, or export the structures as a DICOM segmentation",
            )
    planes: list[_Plane] = []
    for points in sorted(contours, key=lambda p: float(p[:, 2].mean())):
        z, polygon = float(points[:, 2].mean()), points[:, :2]
        if planes and z - planes[-1].z < _SAME_PLANE_SLICES:
            planes[-1] = _Plane(z=planes[-1].z, polygons=(*planes[-1].polygons, polygon))
        else:
            planes.append(_Plane(z=z, polygons=(polygon,)))
    return planes


def _by_slice(planes: Sequence[_Plane], name: str, grid: Grid, shown: str) -> tuple[dict[int, _Plane], int]:
    """Return the plane that fills each slice, and the number of planes that fill none."""
    chosen: dict[int, _Plane] = {}
    for plane in planes:
        nearest = math.ceil(plane.z - 0.5 - _TIE_SLICES)
        index = min(max(nearest, 0), grid.shape_zyx[0] - 1)
        away = abs(plane.z - index)
        if away > 0.5 + _SAME_PLANE_SLICES:
            raise LabelMismatch(
                f"contours must lie within half a slice of a slice, one of {name} lies "
                f"{away * grid.spacing_xyz_mm[2]:.1f} mm from the nearest",
                path=shown,
                remedy="Add the missing slices of the series, or leave the structure set out",
            )
        if index not in chosen or away < abs(chosen[index].z - index):
            chosen[index] = plane
    return chosen, len(planes) - len(chosen)
