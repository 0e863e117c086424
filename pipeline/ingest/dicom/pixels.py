"""From the files of a DICOM series to one volume in real units.

*Reads*: DICOM slices, or one multi-frame file. *Writes*: the ordered slices with their grid, and int16 or
float32 (z, y, x) with each slice's, or each frame's, own rescale slope and intercept applied.

Pixels are decoded by the image library (GDCM), which knows the compressed forms. It scales all frames of a
file by the slope and intercept of the first; where they differ, this is undone and each frame scaled by its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement

from pipeline.discovery import Source
from pipeline.errors import CorruptImage, DicomSeriesError, ScanError
from pipeline.formats import (
    DAMAGED,
    Frame,
    Header,
    SeriesRules,
    Slices,
    check_readable,
    order_slices,
    os_error,
    quiet_pydicom,
    read_header,
    split_series,
    text_of_path,
)

sitk: Any = SimpleITK
"""SimpleITK without types."""


_HIGHEST_RATIO = 10_000
"""Most pixels per byte of a compressed file; empty frames reach this."""


_LONG_BYTES = 256
"""Longer tags are skipped when the length of a file is checked."""

_UNDEFINED = 0xFFFFFFFF
"""Length of a tag that ends with a delimiter."""


def read_slices(source: Source, rules: SeriesRules) -> Slices:
    """Return the ordered slices of a source, with their grid; no pixel is read.

    Raises:
        ScanError: They are not a regular volume any more, or cannot be read.
    """
    where = source.location
    try:
        for path in source.files:
            check_readable(path, shown=where, what="DICOM file")
        headers = [read_header(path) for path in source.files]
        for header in headers:
            _check_length(header)
        stacks = split_series(headers)
        if (source.stack or 0) >= len(stacks) or (source.stack is None and len(stacks) != 1):
            raise DicomSeriesError("the files are not one series any more", path=where, remedy="Run again")
        stack = stacks[source.stack or 0]
        if stack.problem is not None:
            raise stack.problem
        return order_slices(stack.headers, replace(rules, frame=source.frame))
    except ScanError as error:
        raise type(error)(error.reason, path=where, remedy=error.remedy) from None
    except OSError as error:
        raise os_error(error, shown=where) from None


def _check_length(header: Header) -> None:
    """Refuse a file that is shorter than its own tags say, before the library takes memory for them."""
    size = header.path.stat().st_size
    ratio = _HIGHEST_RATIO if header.compressed else 1
    short = header.rows * header.columns * header.num_frames // ratio > size
    if not short and not header.compressed:
        try:
            with quiet_pydicom():
                elements = list(pydicom.dcmread(header.path, defer_size=_LONG_BYTES).values())
        except DAMAGED:
            elements = []  # the library that reads the pixels reports the error
        raw = (element for element in elements if isinstance(element, RawDataElement))
        short = any(0 <= e.length < _UNDEFINED and e.value_tell + e.length > size for e in raw)
    if short:
        raise CorruptImage(
            "the file is cut short or damaged: it is shorter than its own header says",
            path=None,
            remedy="Copy or export the file again",
        )


def read_values(slices: Slices, shown: str) -> NDArray[np.float32]:
    """Return the voxels of a volume in real units, float32 (z, y, x).

    Raises:
        CorruptImage: The pixels cannot be decoded, or are not as many as the headers say.
    """
    array = _decode([header.path for header in slices.headers], shown)
    if slices.frames is not None and len(array) > max(frame.number for frame in slices.frames):
        array = array[[frame.number for frame in slices.frames]]
        _rescale(array, slices.headers[0].first_rescale, slices.frames)
    if array.shape != slices.grid.shape_zyx:
        raise CorruptImage(
            f"the pixels make {array.shape} voxels, the headers say {slices.grid.shape_zyx}",
            path=shown,
            remedy="Copy or export the file again",
        )
    return array


def _rescale(array: NDArray[np.float32], first: tuple[float, float], frames: Sequence[Frame]) -> None:
    """Scale each frame by its own slope and intercept, in place.

    Args:
        array: (z, y, x), all scaled by slope and intercept of the file's first frame.
        first: These; the library refuses a slope of 0.
        frames: The frame of each slice.
    """
    slope, intercept = first
    if all(frame.rescale == first for frame in frames):
        return
    for plane, frame in zip(array, frames, strict=True):
        stored = np.rint((plane.astype(np.float64) - intercept) / slope)
        plane[:] = stored * frame.rescale[0] + frame.rescale[1]


def _decode(paths: Sequence[Path], shown: str) -> NDArray[np.float32]:
    """Return float32 (z, y, x): one slice per file, or all frames of one file."""
    reader = sitk.ImageSeriesReader() if len(paths) > 1 else sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    if len(paths) > 1:
        reader.SetFileNames([text_of_path(path, shown=shown) for path in paths])
    else:
        reader.SetFileName(text_of_path(paths[0], shown=shown))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except (RuntimeError, MemoryError):
        raise CorruptImage(
            "the pixels of the DICOM series cannot be decoded: a file is cut short, "
            "damaged or oddly compressed",
            path=shown,
            remedy="Export the series again, uncompressed",
        ) from None
    return np.asarray(array, dtype=np.float32)


def plain_if_whole(array: NDArray[np.float32]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return int16 if every value is a whole number in its range (CT), to halve the memory."""
    if not (array.min() >= -32768 and array.max() <= 32767):
        return array
    whole = array.astype(np.int16)
    return whole if np.array_equal(whole, array) else array
