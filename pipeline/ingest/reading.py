"""From a source's files to arrays in real units, on the scan's own axes.

*Reads*: single-file images (`image_files`), DICOM files, .npz sets. *Writes*: `RawScan`: image (z, y, x) on
the axes of the file, int16 or float32 in real units (rescale slope and intercept applied), its grid, and
label maps on the same grid. Every other input is refused with a `ScanError` that gives the reason; a message
contains no path, only the source's `location`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from pipeline.discovery import LabelSource, SetItem, Source
from pipeline.errors import (
    CorruptImage,
    DicomSeriesError,
    LabelMismatch,
    NoSuchFrame,
    NotVolumetric,
    ScanError,
)
from pipeline.formats import (
    check_readable,
    companions,
    order_slices,
    os_error,
    parse_modality,
    read_header,
    read_set_image,
    split_series,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.image_checks import REMEDY_EXPORT, check_spacing, plain
from pipeline.ingest.image_files import read_file
from pipeline.ingest.labels import RawLabel, check_label
from pipeline.volumes import Grid

sitk: Any = SimpleITK
"""SimpleITK without types."""


@dataclass(frozen=True, kw_only=True)
class RawScan:
    """A scan as its files hold it.

    Attributes:
        scan_id: Its id.
        location: Its name in messages.
        image: (z, y, x) int16 or float32 in real units, on the file's own axes.
        grid: Its grid.
        labels: Label maps on the same grid.
        modality: "ct", "mr", "pet"; "other" for a set; None if neither manifest nor DICOM declares it.
        modality_origin: "manifest", "dicom", "set", or "" if unknown.
        facts: Machine and acquisition from DICOM, as text; nothing about the patient.
        kept_whole: Whether it is not cropped, because the makers of a set have cropped it.
        notes: What was unusual in the files, and what was done about it.
    """

    scan_id: str
    location: str
    image: NDArray[np.int16] | NDArray[np.float32]
    grid: Grid
    labels: tuple[RawLabel, ...]
    modality: str | None
    modality_origin: str
    facts: tuple[tuple[str, str], ...] = ()
    kept_whole: bool = False
    notes: tuple[str, ...] = ()


def read_source(source: Source, config: IngestConfig) -> RawScan:
    """Read a scan and its labels.

    Raises:
        ScanError: The files are not a usable scan, or a label does not fit; the class is the kind of cause.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    where = source.location
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    if source.item is not None:
        return _read_item(source, source.item, config)
    modality, origin = source.modality, "manifest" if source.modality else ""
    if source.format == "dicom":
        image, grid, tag, facts = _read_dicom(source, config)
        if modality is None:
            modality = parse_modality(tag)
            origin = "dicom" if modality else ""
    else:
        frame = config.frame if source.frame is None else source.frame
        one = read_file(source.files, config, frame=frame, shown=where)
        image, grid, notes = one.array, one.grid, one.notes
    labels = tuple(_read_label(label, grid, config, shown=where) for label in source.labels)
    return RawScan(
        scan_id=source.scan_id,
        location=where,
        image=image,
        grid=grid,
        labels=labels,
        modality=modality,
        modality_origin=origin,
        facts=facts,
        notes=notes,
    )


def _read_item(source: Source, item: SetItem, config: IngestConfig) -> RawScan:
    """Read a scan of a set.

    Its axes are declared as head, front, right, as in the store, so nothing is turned.
    """
    where = source.location
    if min(item.shape_zyx) < config.min_size_voxels:
        raise NotVolumetric(
            f"a volume needs at least {config.min_size_voxels} voxels along three axes, this has "
            f"{' x '.join(map(str, item.shape_zyx))}",
            path=where,
            remedy="Take the set's 3D form",
        )
    array = read_set_image(source.files[0], item.array, item.index, shown=where)
    edge = config.set_spacing_mm or config.spacing_mm
    grid = Grid(
        shape_zyx=item.shape_zyx,
        spacing_xyz_mm=(edge, edge, edge),
        origin_xyz_mm=(0.0, 0.0, 0.0),
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    )
    return RawScan(
        scan_id=source.scan_id,
        location=where,
        image=plain(array),
        grid=grid,
        labels=(),
        modality="other",
        modality_origin="set",
        kept_whole=True,
    )


def estimate_voxels(source: Source) -> int | None:
    """Return the number of voxels of a scan from its header alone, or None if that is not possible."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if source.item is not None:
        return math.prod(source.item.shape_zyx)
    try:
        if source.format == "dicom":
            header = read_header(source.files[0])
            return header.rows * header.columns * max(header.num_frames, len(source.files))
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(source.files[0]))
        reader.ReadImageInformation()
    except (ScanError, OSError, RuntimeError):
        return None
    return math.prod(int(n) for n in reader.GetSize()[:3])


def _read_label(label: LabelSource, grid: Grid, config: IngestConfig, *, shown: str) -> RawLabel:
    """Read one label map; it must lie on the scan's grid and hold declared values only."""
    what = label.location or f"{shown} (label {label.name})"
    check_readable(label.path, shown=what, what="label file")
    try:
        one = read_file(companions(label.path), config, frame=None, shown=what)
    except NoSuchFrame as error:  # a frame can be chosen for the scan only
        raise LabelMismatch(
            error.reason, path=what, remedy="Save the volume that belongs to its scan as a 3D file"
        ) from None
    return check_label(one.array, one.grid, label=label, grid=grid, config=config, shown=what)


def _read_dicom(
    source: Source, config: IngestConfig
) -> tuple[NDArray[np.int16] | NDArray[np.float32], Grid, str, tuple[tuple[str, str], ...]]:
    """Return image (z, y, x), grid, modality tag and facts of a DICOM series."""
    where = source.location
    try:
        for path in source.files:
            check_readable(path, shown=where, what="DICOM file")
        headers = [read_header(path) for path in source.files]
        stacks = split_series(headers)
        if len(stacks) != 1:
            raise DicomSeriesError("the files are not one series any more", path=where, remedy="Run again")
        if stacks[0].problem is not None:
            raise stacks[0].problem
        slices = order_slices(headers, replace(config.series_rules, frame=source.frame))
    except ScanError as error:
        raise type(error)(error.reason, path=where, remedy=error.remedy) from None
    except OSError as error:
        raise os_error(error, shown=where) from None
    grid = slices.grid
    x, y, z = grid.shape_zyx[::-1]
    check_spacing(grid.spacing_xyz_mm, (x, y, z), config, where)
    array = _dicom_pixels([header.path for header in slices.headers], where)
    if slices.frame_order is not None and array.shape[0] >= len(slices.frame_order):
        array = array[list(slices.frame_order)]
    if array.shape != grid.shape_zyx:
        raise CorruptImage(
            f"the pixels make {array.shape} voxels, the headers say {grid.shape_zyx}",
            path=where,
            remedy=REMEDY_EXPORT,
        )
    return _plain_if_whole(array), grid, headers[0].modality, headers[0].facts


def _dicom_pixels(paths: Sequence[Path], shown: str) -> NDArray[np.float32]:
    """Return float32 (z, y, x) with every slice's own rescale slope and intercept applied."""
    reader = sitk.ImageSeriesReader() if len(paths) > 1 else sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    if len(paths) > 1:
        reader.SetFileNames([str(path) for path in paths])
    else:
        reader.SetFileName(str(paths[0]))
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


def _plain_if_whole(array: NDArray[np.float32]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return int16 if every value is a whole number in its range (CT), to halve the memory."""
    if not (array.min() >= -32768 and array.max() <= 32767):
        return array
    whole = array.astype(np.int16)
    return whole if np.array_equal(whole, array) else array
