"""Resampling from the stored grid back to the input's own grid.

*Reads*: a label map or a probability (z, y, x) on the stored grid. *Writes*: the same on the source's own
array axes, shape and geometry: labels by nearest neighbour, probabilities by averaged linear interpolation;
0 outside the stored volume. Also writes arrays as image files, and checks that they are whole.
"""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.formats import text_of_path
from pipeline.volumes import (
    Grid,
    Turn,
    axis_maps,
    crop_grid,
    resample_image,
    resample_labels,
    turn_array,
    turn_grid,
    turn_to_ras,
)

Scalar = TypeVar("Scalar", bound=np.generic)

_NIFTI_HEADER_BYTES = 352
"""Before the voxels of an uncompressed NIfTI-1 file without extensions."""
_END_OF_HEADER = {".nii.gz": b"", ".nrrd": b"\n\n", ".mha": b"ElementDataFile = LOCAL\n"}
"""What stands before the compressed voxels, by suffix."""
_LONGEST_HEADER_BYTES = 65_536
_CHUNK_BYTES = 16_384
"""Of compressed data; it may grow to a thousand times this."""
_PROBE_BYTES = 1_048_576
"""Written to find out why a disk takes no more."""

Box: TypeAlias = tuple[slice, slice, slice]
"""Half-open box, in voxels along z, y, x."""


def to_source_grid(labels: NDArray[Scalar], grid: Grid, source_grid: Grid) -> NDArray[Scalar]:
    """Resample a label map to the source's own grid by nearest neighbour.

    Args:
        labels: (z, y, x) on `grid`.
        grid: The stored grid.
        source_grid: The grid of the input that the stored grid was made from.

    Returns:
        (z, y, x) of shape `source_grid.shape_zyx`, in the labels' dtype; 0 outside the stored volume.

    Raises:
        ValueError: The array is not on `grid`, or the grids have no parallel axes.
    """
    if labels.shape != grid.shape_zyx:
        raise ValueError(f"the labels must lie on the stored grid {grid.shape_zyx}, got {labels.shape}")
    out: NDArray[Scalar] = np.zeros(source_grid.shape_zyx, labels.dtype)
    taken: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * 3
    inside: list[slice] = []
    maps = axis_maps(grid, source_grid)
    for axis, along in enumerate(maps):
        nearest = along.nearest(source_grid.shape_zyx[axis])
        valid = np.flatnonzero((nearest >= 0) & (nearest < grid.shape_zyx[along.axis]))
        if valid.size == 0:
            return out
        inside.append(slice(int(valid[0]), int(valid[-1]) + 1))
        taken[along.axis] = nearest[inside[-1]]
    z, y, x = taken
    block = labels[z][:, y][:, :, x]
    out[tuple(inside)] = block.transpose([m.axis for m in maps])
    return out


def probability_to_source_grid(
    probability: NDArray[np.float32], grid: Grid, source_grid: Grid, *, above: float | None = None
) -> tuple[Box, NDArray[np.float32]] | None:
    """Resample a probability to the source's own grid, as far as the stored volume covers it.

    Args:
        probability: (z, y, x) on `grid`.
        grid: The stored grid.
        source_grid: The grid of the input that the stored grid was made from.
        above: Regions that are certainly below this are left out; values of at least this are unchanged.

    Returns:
        A box of `source_grid` and float32 (z, y, x) values in it; None if the box is empty.

    Raises:
        ValueError: The array is not on `grid`, or the grids have no parallel axes.
    """
    if probability.shape != grid.shape_zyx:
        raise ValueError(
            f"the probability must lie on the stored grid {grid.shape_zyx}, got {probability.shape}"
        )
    turn = turn_to_ras(source_grid)
    turned = turn_grid(source_grid, turn)
    if above is not None:
        part = _part_above(probability, above, grid, turned)
        if part is None:
            return None
        probability, grid = probability[part], crop_grid(grid, part)
    reach = []
    for length, along, size in zip(turned.shape_zyx, axis_maps(grid, turned), grid.shape_zyx, strict=True):
        nearest = along.nearest(length)
        valid = np.flatnonzero((nearest >= 0) & (nearest < size))
        if not valid.size:
            return None
        reach.append(slice(int(valid[0]), int(valid[-1]) + 1))
    box = (reach[0], reach[1], reach[2])
    values = resample_image(probability, grid, crop_grid(turned, box), floor=-np.inf)
    return _box_before_turn(box, turn, turned.shape_zyx), _turn_back(values, turn)


def _part_above(probability: NDArray[np.float32], above: float, grid: Grid, target: Grid) -> Box | None:
    """Return the box of all values of at least `above`, with a margin for interpolation; None if empty."""
    mask = probability >= above
    box = []
    for axis, (mine, other) in enumerate(zip(grid.spacing_zyx_mm, target.spacing_zyx_mm, strict=True)):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not where.size:
            return None
        margin = 2 + int(np.ceil(other / mine))
        box.append(slice(max(0, int(where[0]) - margin), min(mask.shape[axis], int(where[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _box_before_turn(box: Box, turn: Turn, turned_shape: tuple[int, int, int]) -> Box:
    """Return the box, before an array is turned, that becomes `box` when it is turned."""
    before = [slice(0)] * 3
    for part, axis, flip, size in zip(box, turn.axes, turn.flips, turned_shape, strict=True):
        before[axis] = slice(size - part.stop, size - part.start) if flip else part
    return before[0], before[1], before[2]


def _turn_back(array: NDArray[Scalar], turn: Turn) -> NDArray[Scalar]:
    """Return a view of a turned array with its axes as before."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in turn.flips)
    return array[steps].transpose(np.argsort(turn.axes))


def to_stored_grid(labels: NDArray[Scalar], source_grid: Grid, grid: Grid) -> NDArray[Scalar]:
    """Resample a label map from the source's own grid to the stored grid by nearest neighbour.

    Args:
        labels: (z, y, x) on `source_grid`.
        source_grid: The input's own grid.
        grid: The stored grid that was made from it.

    Returns:
        (z, y, x) of shape `grid.shape_zyx`, in the labels' dtype.
    """
    turn = turn_to_ras(source_grid)
    return resample_labels(turn_array(labels, turn), turn_grid(source_grid, turn), grid)


def write_image(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (z, y, x) on its grid as NIfTI, NRRD or MetaImage, by the path's suffix.

    NIfTI stores the geometry in single precision, the others in double. Bool arrays become uint8.

    Raises:
        ValueError: The array is not on `grid`.
        OSError: It could not be written whole, or its path is not UTF-8.
    """
    import SimpleITK

    sitk: Any = SimpleITK  # has no types
    if array.shape != grid.shape_zyx:
        raise ValueError(f"the array must lie on its grid {grid.shape_zyx}, got {array.shape}")
    place = text_of_path(path, shown=str(path))
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == np.bool_ else array)
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(grid.origin_xyz_mm)
    image.SetDirection(grid.direction)
    try:
        sitk.WriteImage(image, place, useCompression=True)
    except RuntimeError as error:
        if cause := _disk_error(path.parent):
            raise OSError(cause.errno, cause.strerror, place) from error
        raise
    if not _is_whole(path, array.size * image.GetSizeOfPixelComponent()):
        path.unlink(missing_ok=True)
        cause = _disk_error(path.parent) or OSError(errno.EIO, "only a part of it was written")
        raise OSError(cause.errno, cause.strerror, place)


def _is_whole(path: Path, num_bytes: int) -> bool:
    """Whether a file that was just written holds so many bytes of voxels; the library reports no short write.

    The checksum of a compressed stream is checked too. True for detached headers, which are not looked into.
    """
    name = path.name.lower()
    if name.endswith(".nii"):
        return path.stat().st_size == _NIFTI_HEADER_BYTES + num_bytes
    end = next((end for suffix, end in _END_OF_HEADER.items() if name.endswith(suffix)), None)
    if end is None:
        return True
    header_bytes = _NIFTI_HEADER_BYTES if not end else 0
    stream, length = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0  # gzip or zlib, by its first bytes
    with path.open("rb") as file:
        head, found, _ = file.read(_LONGEST_HEADER_BYTES).partition(end) if end else (b"", True, b"")
        if not found:
            return False
        file.seek(len(head) + len(end))
        try:
            while chunk := file.read(_CHUNK_BYTES):
                length += len(stream.decompress(chunk))
        except zlib.error:
            return False
    return stream.eof and length == header_bytes + num_bytes


def _disk_error(folder: Path) -> OSError | None:
    """Return the error that writing into a folder meets now, None if there is none."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for _ in range(_PROBE_BYTES // _CHUNK_BYTES):
                file.write(bytes(_CHUNK_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
