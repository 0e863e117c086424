"""Checks of label maps: they must fit their scan and hold declared values only.

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
from pipeline.volumes import Grid, corner_distance_mm

_MAX_DISTINCT = 256
"""Images with more distinct values than this are not label maps."""

_MAX_VALUE = 65535


@dataclass(frozen=True, kw_only=True)
class RawLabel:
    """A label map on its scan's own grid.

    Attributes:
        name: Name of the map in the store.
        array: (z, y, x) uint8 or uint16; 0 is background.
        grid: The scan's grid.
        value_names: Name of each value, if declared.
    """

    name: str
    array: NDArray[np.uint8] | NDArray[np.uint16]
    grid: Grid
    value_names: Mapping[int, str] | None


def check_label(
    array: NDArray[Any], own: Grid, *, label: LabelSource, grid: Grid, config: IngestConfig, shown: str
) -> RawLabel:
    """Return the label map in the smallest integer type that fits.

    Args:
        array: (z, y, x), any number type.
        own: Grid of the label file.
        label: Where it comes from, with its declared values.
        grid: Grid of the scan.
        config: Has the tolerance between the two grids.
        shown: Name of the file in error messages.

    Raises:
        LabelMismatch: The shape or position differs from the scan's; values are not whole numbers from 0 to
            65,535; or values are not declared.
    """
    _check_grid(own, grid, config, shown)
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
    wide = bool(values.max() > 255)
    typed: NDArray[np.uint8] | NDArray[np.uint16] = (
        array.astype(np.uint16) if wide else array.astype(np.uint8)
    )
    return RawLabel(name=label.name, array=typed, grid=grid, value_names=label.value_names)


def _check_grid(own: Grid, grid: Grid, config: IngestConfig, shown: str) -> None:
    """Refuse a label whose shape or position differs from its image's."""
    remedy = "Resample the label map onto its image (nearest neighbour), or pair the right files"
    if own.shape_zyx != grid.shape_zyx:
        raise LabelMismatch(
            f"a label must lie on its image's grid, its shape (z, y, x) is {own.shape_zyx}, "
            f"the image's {grid.shape_zyx}",
            path=shown,
            remedy=remedy,
        )
    distance, allowed = (
        corner_distance_mm(own, grid),
        config.label_tolerance_voxels * min(grid.spacing_xyz_mm),
    )
    if distance > allowed:
        raise LabelMismatch(
            f"a label must lie on its image's grid, its corners lie up to {distance:.2f} mm away "
            f"({allowed:.2f} mm are allowed)",
            path=shown,
            remedy=remedy,
        )


def _values(array: NDArray[Any]) -> NDArray[Any]:
    """Return the distinct values, sorted."""
    if array.dtype == np.int16:
        seen = np.zeros(65536, np.bool_)
        for plane in array:  # a plane at a time: no wide copy of the volume
            seen[plane.astype(np.int32) + 32768] = True
        return np.flatnonzero(seen) - 32768
    return np.unique(array)


def refuse_label_as_scan(image: NDArray[Any], *, shown: str) -> None:
    """Check that an image is not a label map: few whole values in large areas of one value.

    Args:
        image: (z, y, x), any number type.
        shown: Name of the file in error messages.

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
        remedy="Pair it with its scan by name (X with X_seg) or by manifest; if it is a "
        "scan, give its modality there",
    )
