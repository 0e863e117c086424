"""Label maps on their scan's grid: checked, turned or resampled onto it, with declared values only.

*Reads*: an array as the file holds it. *Writes*: uint8 or uint16 (z, y, x) on the scan's grid; 0 is
background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.discovery import LabelSource
from pipeline.errors import LabelMismatch, LooksLikeLabel
from pipeline.ingest.config import IngestConfig
from pipeline.volumes import (
    Grid,
    corner_distance_mm,
    labels_on_grid,
    turn_array,
    turn_grid,
    turn_towards,
)

_MAX_DISTINCT = 256
"""Images with more distinct values than this are not label maps."""

_MAX_VALUE = 65535


_ROUNDING = 1e-3
"""Largest distance of a label value from a whole number that is taken for rounding."""


class OtherGrid(LabelMismatch):
    """A label map lies on another grid than its scan; a label that several scans share may do so."""


@dataclass(frozen=True, kw_only=True)
class RawLabel:
    """A label map on its scan's own grid.

    Attributes:
        name: Name of the map in the store.
        array: (z, y, x) uint8 or uint16; 0 is background.
        grid: The scan's grid.
        value_names: Name of each value, if declared.
        notes: What was unusual, and what was done about it.
    """

    name: str
    array: NDArray[np.uint8] | NDArray[np.uint16]
    grid: Grid
    value_names: Mapping[int, str] | None
    notes: tuple[str, ...] = ()


def check_label(
    array: NDArray[Any], own: Grid, *, label: LabelSource, grid: Grid, config: IngestConfig, shown: str
) -> RawLabel:
    """Return the label map on its scan's grid, in the smallest integer type that fits.

    A map on the same grid whose axes are in another order or direction is turned, which is exact. One on
    another grid is refused, or resampled by nearest neighbour with `resample_labels`.

    Args:
        array: (z, y, x), any number type.
        own: Grid of the label file.
        label: Where it comes from, with its declared values.
        grid: Grid of the scan.
        config: Has the tolerance between the two grids, and whether maps are resampled.
        shown: Name of the file in error messages.

    Raises:
        LabelMismatch: The map lies elsewhere than the scan; values are not whole numbers from 0 to 65,535; or
            values are not declared.
    """
    turn = None if _same_grid(own, grid, config) else turn_towards(own, grid.matrix)
    turned = own if turn is None else turn_grid(own, turn)
    fits = turn is None or _same_grid(turned, grid, config)
    if not fits and not config.resample_labels:
        raise _elsewhere(turned, grid, config, shown)
    array, rounded = _rounded(array)
    typed = _typed(array, label, shown)
    notes = [rounded] if rounded else []
    if turn is not None and fits:
        typed = np.ascontiguousarray(turn_array(typed, turn))
        notes.append("its axes have another order or direction than the image's: turned")
    elif turn is not None:
        moved: tuple[Any, float | None] = labels_on_grid(typed, own, grid)
        typed, outside = moved
        if outside == 1:
            raise LabelMismatch(
                "a label must lie on its image, no labelled voxel of this lies within the image",
                path=shown,
                remedy="Pair the right files, or correct the position in one of the headers",
            )
        notes.append(
            f"it lies on another grid than the image ({' x '.join(map(str, own.shape_zyx[::-1]))} voxels): "
            f"resampled by nearest neighbour; {100 * (outside or 0):.1f} % of its labelled voxels lie "
            "outside of the image"
        )
    return RawLabel(
        name=label.name,
        array=typed,
        grid=grid,
        value_names=label.value_names,
        notes=tuple(f"label {label.name}: {note}" for note in notes),
    )


def _same_grid(own: Grid, grid: Grid, config: IngestConfig) -> bool:
    return own.shape_zyx == grid.shape_zyx and corner_distance_mm(own, grid) <= _allowed_mm(grid, config)


def _allowed_mm(grid: Grid, config: IngestConfig) -> float:
    return config.label_tolerance_voxels * min(grid.spacing_xyz_mm)


def _elsewhere(turned: Grid, grid: Grid, config: IngestConfig, shown: str) -> OtherGrid:
    """Return the error of a label on another grid, which is turned towards the image's as far as possible."""
    if turned.shape_zyx != grid.shape_zyx:
        found = f"its shape (z, y, x) is {turned.shape_zyx}, the image's {grid.shape_zyx}"
    else:
        found = (
            f"its corners lie up to {corner_distance_mm(turned, grid):.2f} mm away "
            f"({_allowed_mm(grid, config):.2f} mm are allowed)"
        )
    return OtherGrid(
        f"a label must lie on its image's grid, {found}",
        path=shown,
        remedy="Pair the right files, or let it be resampled: [ingest] resample_labels = true "
        "(mass segment: --resample-mask)",
    )


def _rounded(array: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Return floats that are nearly whole as whole numbers, with a note; other arrays as they are."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        return array, ""
    whole = np.rint(array)
    away = float(np.abs(array - whole).max())
    if not 0 < away <= _ROUNDING:
        return array, ""
    return whole + 0.0, f"its values are up to {away:.1g} off whole numbers: rounded"


def _typed(array: NDArray[Any], label: LabelSource, shown: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the label map in the smallest integer type that fits, after a check of its values."""
    values = _values(array)
    invalid = (
        [v for v in values if v != int(v) or not 0 <= v <= _MAX_VALUE]
        if np.isfinite(values).all()
        else [np.nan]
    )
    if invalid:
        raise LabelMismatch(
            f"label values must be whole numbers from 0 to {_MAX_VALUE}, got "
            f"{', '.join(f'{v:g}' for v in invalid[:5])}",
            path=shown,
            remedy="Save the label map with integer values (a probability map is no label)",
        )
    if label.value_names is not None:
        undeclared = [int(v) for v in values if v != 0 and int(v) not in label.value_names]
        if undeclared:
            listed = ", ".join(map(str, undeclared[:10])) + (", ..." if len(undeclared) > 10 else "")
            raise LabelMismatch(
                f"label values must be among the {len(label.value_names)} declared, these are not: {listed}",
                path=shown,
                remedy="Add their names to the JSON file of label names, or correct the label map",
            )
    return array.astype(np.uint16) if bool(values.max() > 255) else array.astype(np.uint8)


def _values(array: NDArray[Any]) -> NDArray[Any]:
    """Return the distinct values, sorted."""
    if array.dtype.kind in "iu" and int(array.max()) - int(array.min()) <= 1:
        return np.unique([array.min(), array.max()])  # a mask of 0 and 1
    if array.dtype == np.int16:
        seen = np.zeros(65536, np.bool_)
        for plane in array:  # a plane at a time: no wide copy of the volume
            seen[plane.astype(np.int32) + 32768] = True
        return np.flatnonzero(seen) - 32768
    return np.unique(array)


_GIVE_MODALITY = (
    "Pair it with its scan by name (X with X_seg) or by manifest; if it is a scan, give its modality there"
)


def refuse_label_as_scan(image: NDArray[Any], *, shown: str, remedy: str = _GIVE_MODALITY) -> None:
    """Check that an image is not a label map: few whole values in large areas of one value.

    Args:
        image: (z, y, x), any number type.
        shown: Name of the file in error messages.
        remedy: What to do about it.

    Raises:
        LooksLikeLabel: It is a label map.
    """
    step = max(1, int(np.ceil(image.shape[0] / 64)))
    planes = image[::step]
    values = np.unique(planes)
    if values.size > _MAX_DISTINCT or values[0] < 0 or not np.array_equal(values, np.rint(values)):
        return
    left, right = planes[:, :, :-1], planes[:, :, 1:]
    inside = (left != 0) & (right != 0)
    num_inside = int(inside.sum())
    if num_inside < 20 or float(((left == right) & inside).sum()) / num_inside < 0.8:
        return
    raise LooksLikeLabel(
        f"a scan is wanted, this looks like a label map ({values.size} whole values in large patches)",
        path=shown,
        remedy=remedy,
    )
