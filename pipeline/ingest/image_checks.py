"""Checks shared by all readers of single-file images: sizes, frames, voxel sizes, number types.

Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadGeometry, BadSpacing, CorruptImage, NoSuchFrame, NotVolumetric, ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.volumes import Grid, rigid_grid

REMEDY_EXPORT = "Copy or export the file again"


@dataclass(frozen=True, kw_only=True)
class FileImage:
    """A volume as its file holds it.

    Attributes:
        array: (z, y, x) int16 or float32 in real units, on the file's own axes.
        grid: Its grid.
        notes: What was unusual, and what was done about it.
    """

    array: NDArray[np.int16] | NDArray[np.float32]
    grid: Grid
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Volumes in a file: frames along a fourth axis, or components of a vector image.

    Attributes:
        kind: "4D", or "a vector image".
        count: How many there are.
    """

    kind: str
    count: int


def check_size(size: Sequence[int], config: IngestConfig, shown: str) -> None:
    """Refuse an image whose first three axes (any order) are no volume."""
    if len(size) < 3 or min(size[:3]) < config.min_size_voxels:
        raise NotVolumetric(
            f"a volume needs at least {config.min_size_voxels} voxels along three axes, this has "
            f"{' x '.join(map(str, size))}",
            path=shown,
            remedy="Remove it, or export the whole series as one 3D file",
        )


def too_many_axes(size: Sequence[int], num_components: int, shown: str) -> ScanError:
    """Return the error of an image with more than four axes."""
    return NotVolumetric(
        f"a scan must be 3D or 4D, this is {' x '.join(map(str, size))}"
        + (f" with {num_components} values per voxel" if num_components > 1 else ""),
        path=shown,
        remedy="Split it into one file per volume",
    )


def choose_frame(frames: Frames, frame: int | None, shown: str) -> int:
    """Return the index of the frame to take.

    Raises:
        NoSuchFrame: None is chosen, or there is no such frame.
    """
    if frame is not None and frame < frames.count:
        return frame
    request = "" if frame is None else f", and frame {frame} was asked for"
    raise NoSuchFrame(
        f"the file is {frames.kind} with {frames.count} volumes{request}",
        path=shown,
        remedy=f"Choose one with frame = 0 to {frames.count - 1} (manifest column `frame`, or "
        "the ingest setting)",
    )


def check_spacing(spacing: Sequence[float], size: Sequence[int], config: IngestConfig, shown: str) -> None:
    """Refuse voxel sizes that no scanner produces."""
    listed = " x ".join(f"{s:.6g}" for s in spacing)
    extent = max(n * s for n, s in zip(size, spacing, strict=True))
    if not all(config.min_spacing_mm <= s <= config.max_spacing_mm for s in spacing):
        reason = (
            f"a voxel must measure {config.min_spacing_mm:g} to {config.max_spacing_mm:g} mm, the header "
            f"says {listed}"
        )
    elif extent > config.max_extent_mm:
        reason = (
            f"a scan may reach {config.max_extent_mm:g} mm, this would be {extent:.0f} mm long (voxels of "
            f"{listed})"
        )
    else:
        return
    raise BadSpacing(
        reason,
        path=shown,
        remedy="Correct the header (the unit must be mm), or widen the limits in the ingest settings",
    )


def grid_of_header(
    shape_zyx: tuple[int, int, int], spacing_xyz_mm: Any, origin_xyz_mm: Any, direction: Any, shown: str
) -> tuple[Grid, tuple[str, ...]]:
    """Return the grid of a header, and a note if its axes were put to right angles.

    Raises:
        BadGeometry: They are too far off right angles to be corrected.
    """
    try:
        grid, note = rigid_grid(shape_zyx, spacing_xyz_mm, origin_xyz_mm, direction)
    except ValueError as error:
        raise sheared(str(error), shown) from None
    return grid, (note,) if note else ()


def sheared(detail: str, shown: str) -> ScanError:
    """Return the error of axes that are not at right angles."""
    return BadGeometry(
        f"the axes must be at right angles to each other ({detail})",
        path=shown,
        remedy="Resample the image onto a rectangular grid, or correct the orientation in its header",
    )


def out_of_memory(shown: str) -> ScanError:
    """Return the error of an image that does not fit into memory."""
    return CorruptImage(
        "there is not enough memory for the size in the header",
        path=shown,
        remedy="Check the header; a real scan of this size needs more memory",
    )


def damaged(shown: str) -> ScanError:
    """Return the error of voxels that cannot be read."""
    return CorruptImage(
        "the file is cut short or damaged: its voxels cannot be read", path=shown, remedy=REMEDY_EXPORT
    )


def plain(array: NDArray[Any]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return the array as int16 if that holds every value exactly, else as float32."""
    if array.dtype == np.int16 or array.dtype == np.float32:
        return array
    if np.issubdtype(array.dtype, np.integer) and array.size:
        info = np.iinfo(np.int16)
        if info.min <= int(array.min()) and int(array.max()) <= info.max:
            return array.astype(np.int16)
    with np.errstate(over="ignore"):  # values that overflow become infinite and are refused later
        return array.astype(np.float32)
