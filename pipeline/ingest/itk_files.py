"""Single-file images that SimpleITK reads: NIfTI-1, NRRD, MetaImage.

*Reads*: a file whose format and length are checked. *Writes*: `FileImage`. The library's (x, y, z) order
becomes (z, y, x) here; its messages, which hold paths, are replaced by ours.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import SimpleITK

from pipeline.errors import BadGeometry, BadSpacing, CorruptImage, ScanError
from pipeline.formats import colour_error, complex_error, text_of_path
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.image_checks import (
    REMEDY_EXPORT,
    FileImage,
    Frames,
    check_size,
    check_spacing,
    choose_frame,
    damaged,
    grid_of_header,
    out_of_memory,
    plain,
    sheared,
    too_many_axes,
)

sitk: Any = SimpleITK
"""SimpleITK without types."""

_COLOURS = {3: "three bytes per voxel", 4: "four bytes per voxel"}


class NotOrthonormal(BadGeometry):
    """SimpleITK refuses the orientation in a header; another reader may correct it."""


def read_with_itk(
    path: Path, reader_name: str, config: IngestConfig, frame: int | None, shown: str
) -> FileImage:
    """Return the voxels and the grid of a file; arguments and errors as in `image_files.read_file`.

    Args:
        path: The file.
        reader_name: SimpleITK's name of the reader.
        config: Limits of size and voxel size.
        frame: Index of the frame to take.
        shown: Name of the file in error messages.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(text_of_path(path, shown=shown))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _library_error(error, path, shown) from None
    component = _choose_frame(reader, config, frame, shown)
    check_spacing(reader.GetSpacing()[:3], reader.GetSize()[:3], config, shown)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise _library_error(error, path, shown) from None
    if component is not None:
        image = sitk.VectorIndexSelectionCast(image, component)
    x, y, z = image.GetSize()
    grid, notes = grid_of_header(
        (z, y, x), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), shown
    )
    view = sitk.GetArrayViewFromImage(image)  # not copied twice: it lives as long as the image
    array = plain(view)
    return FileImage(array=view.copy() if array is view else array, grid=grid, notes=notes)


def header_with_itk(
    path: Path, config: IngestConfig, frame: int | None, shown: str
) -> tuple[tuple[int, int, int], tuple[float, float, float]] | None:
    """Return (x, y, z) voxels of a frame and their size in mm; None for a file that SimpleITK does not open.

    Raises:
        ScanError: The header shows that the file cannot be used; an uncompressed file may be cut short.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(text_of_path(path, shown=shown))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    _choose_frame(reader, config, frame, shown)
    size, spacing = reader.GetSize(), reader.GetSpacing()
    check_spacing(spacing[:3], size[:3], config, shown)
    voxel = sitk.Image([1, 1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    needed = math.prod(size) * voxel.GetNumberOfComponentsPerPixel() * voxel.GetSizeOfPixelComponent()
    if path.suffix.lower() == ".nii" and path.stat().st_size < needed:
        raise CorruptImage(
            f"the header says {needed:,} bytes of voxels, the file has {path.stat().st_size:,}",
            path=shown,
            remedy=REMEDY_EXPORT,
        )
    return (size[0], size[1], size[2]), (spacing[0], spacing[1], spacing[2])


def _choose_frame(reader: Any, config: IngestConfig, frame: int | None, shown: str) -> int | None:
    """Make the reader extract one 3D frame; return the component to take of a vector image, or None."""
    size = list(reader.GetSize())
    num_components = reader.GetNumberOfComponents()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise complex_error(shown)
    if frame is None and num_components in _COLOURS and "8-bit unsigned" in kind:
        raise colour_error(_COLOURS[num_components], shown)
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    frames = size[3:]
    if len(size) < 3 or min(size[:3]) < config.min_size_voxels:
        check_size(reader.GetSize(), config, shown)
    if len(frames) > 1 or (frames and num_components > 1):
        raise too_many_axes(reader.GetSize(), num_components, shown)
    if not frames and num_components == 1:
        _extract(reader, 0)
        return None
    if frames:
        _extract(reader, choose_frame(Frames(kind="4D", count=frames[0]), frame, shown))
        return None
    _extract(reader, 0)
    return choose_frame(Frames(kind="a vector image", count=num_components), frame, shown)


def _extract(reader: Any, frame: int) -> None:
    """Make the reader drop the axes after the third."""
    size = list(reader.GetSize())
    if len(size) > 3:
        reader.SetExtractIndex([0, 0, 0, frame, *[0] * (len(size) - 4)])
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])


def _library_error(error: Exception, path: Path, shown: str) -> ScanError:
    """Return our error for one of the image library, whose messages contain paths."""
    text = str(error).replace(str(path), "").lower()
    if "orthonormal" in text or "determinant" in text:
        sheared_error = sheared(
            "the header's orientation is sheared, or its sform and qform are no rotation", shown
        )
        return NotOrthonormal(sheared_error.reason, path=shown, remedy=sheared_error.remedy)
    if isinstance(error, MemoryError) or "memory" in text or "allocat" in text:
        return out_of_memory(shown)
    if "spacing" in text:
        return BadSpacing(
            "the voxel size must be positive, the header says otherwise",
            path=shown,
            remedy="Correct the header or export the file again",
        )
    return damaged(shown)
