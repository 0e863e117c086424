"""From a source's files to arrays in real units, on the scan's own axes.

*Reads*: NIfTI, NRRD, MetaImage and DICOM files, .npz sets. *Writes*: `RawScan`: image (z, y, x) on the axes
of the file, int16 or float32 in real units (rescale slope and intercept applied), its grid, and label maps
on the same grid. Every other input is refused with a `ScanError` that gives the reason; a message contains no
path, only the source's `location`. The image library's (x, y, z) order becomes (z, y, x) here and nowhere
else. If a NIfTI header holds two orientations, the sform is used if it is the scanner's (code 1), else the
qform; without either, the axes are assumed to run to the left, back and head, as in the image library.
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
    BadGeometry,
    BadSpacing,
    CorruptImage,
    DicomSeriesError,
    LabelMismatch,
    NoSuchFrame,
    NotVolumetric,
    ScanError,
)
from pipeline.formats import (
    check_readable,
    identify,
    order_slices,
    os_error,
    parse_modality,
    read_header,
    read_set_image,
    split_series,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.labels import RawLabel, check_label
from pipeline.volumes import Grid, nine, triple

sitk: Any = SimpleITK
"""SimpleITK without types."""

_REMEDY_EXPORT = "Copy or export the file again"


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


def read_source(source: Source, config: IngestConfig) -> RawScan:
    """Read a scan and its labels.

    Raises:
        ScanError: The files are not a usable scan, or a label does not fit; the class is the kind of cause.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    where = source.location
    facts: tuple[tuple[str, str], ...] = ()
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
        image, grid = _read_file(source.files, config, frame=frame, shown=where)
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
        image=_plain(array),
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
        array, own = _read_file((label.path,), config, frame=None, shown=what)
    except NoSuchFrame as error:  # a frame can be chosen for the scan only
        raise LabelMismatch(
            error.reason, path=what, remedy="Save the volume that belongs to its scan as a 3D file"
        ) from None
    return check_label(array, own, label=label, grid=grid, config=config, shown=what)


def _read_file(
    files: Sequence[Path], config: IngestConfig, *, frame: int | None, shown: str
) -> tuple[NDArray[np.int16] | NDArray[np.float32], Grid]:
    """Return image (z, y, x) and grid of a single-file image."""
    for path in files:
        check_readable(
            path, shown=shown, what="file" if path == files[0] else "data file named by the header"
        )
    try:
        image_format = identify(files[0], shown=shown, frame=frame)
    except ScanError:
        raise
    except OSError as error:
        raise os_error(error, shown=shown) from None
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_format.reader)
    reader.SetFileName(str(files[0]))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _library_error(error, shown) from None
    component = _choose_frame(reader, config, frame, shown)
    _check_spacing(reader.GetSpacing()[:3], reader.GetSize()[:3], config, shown)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise _library_error(error, shown) from None
    if component is not None:
        image = sitk.VectorIndexSelectionCast(image, component)
    grid = _grid_of(image, shown)
    array = sitk.GetArrayFromImage(image)
    return _plain(array), grid


def _choose_frame(reader: Any, config: IngestConfig, frame: int | None, shown: str) -> int | None:
    """Make the reader extract one 3D frame; return the component to take of a vector image, or None."""
    size = list(reader.GetSize())
    num_components = reader.GetNumberOfComponents()
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    frames = size[3:]
    if len(size) < 3 or min(size[:3]) < config.min_size_voxels:
        raise NotVolumetric(
            f"a volume needs at least {config.min_size_voxels} voxels along three axes, this has "
            f"{' x '.join(map(str, reader.GetSize()))}",
            path=shown,
            remedy="Remove it, or export the whole series as one 3D file",
        )
    if len(frames) > 1 or (frames and num_components > 1):
        raise NotVolumetric(
            f"a scan must be 3D or 4D, this is {' x '.join(map(str, reader.GetSize()))}"
            + (f" with {num_components} values per voxel" if num_components > 1 else ""),
            path=shown,
            remedy="Split it into one file per volume",
        )
    if not frames and num_components == 1:
        _extract(reader, 0)
        return None
    count = frames[0] if frames else num_components
    if frame is None or frame >= count:
        kind = "4D" if frames else "a vector or colour image"
        request = "" if frame is None else f", and frame {frame} was asked for"
        raise NoSuchFrame(
            f"the file is {kind} with {count} volumes{request}",
            path=shown,
            remedy=f"Choose one with frame = 0 to {count - 1} (manifest column `frame`, or "
            "the ingest setting)",
        )
    _extract(reader, frame if frames else 0)
    return None if frames else frame


def _extract(reader: Any, frame: int) -> None:
    """Make the reader drop the axes after the third."""
    size = list(reader.GetSize())
    if len(size) > 3:
        reader.SetExtractIndex([0, 0, 0, frame, *[0] * (len(size) - 4)])
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])


def _check_spacing(spacing: Sequence[float], size: Sequence[int], config: IngestConfig, shown: str) -> None:
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


def _grid_of(image: Any, shown: str) -> Grid:
    x, y, z = image.GetSize()
    try:
        return Grid(
            shape_zyx=(z, y, x),
            spacing_xyz_mm=triple(image.GetSpacing()),
            origin_xyz_mm=triple(image.GetOrigin()),
            direction=nine(image.GetDirection()),
        )
    except ValueError as error:
        raise _sheared(str(error), shown) from None


def _sheared(detail: str, shown: str) -> ScanError:
    return BadGeometry(
        f"the axes must be at right angles to each other ({detail})",
        path=shown,
        remedy="Resample the image onto a rectangular grid, or correct the orientation in its header",
    )


def _library_error(error: Exception, shown: str) -> ScanError:
    """Return our error for one of the image library, whose messages contain paths."""
    text = str(error).lower()
    if "orthonormal" in text or "determinant" in text:
        return _sheared("the header's orientation is sheared, or its sform and qform are no rotation", shown)
    if isinstance(error, MemoryError) or "memory" in text or "allocat" in text:
        reason = "there is not enough memory for the size in the header"
        return CorruptImage(
            reason, path=shown, remedy="Check the header; a real scan of this size needs more memory"
        )
    if "spacing" in text:
        return BadSpacing(
            "the voxel size must be positive, the header says otherwise",
            path=shown,
            remedy="Correct the header or export the file again",
        )
    return CorruptImage(
        "the file is cut short or damaged: its voxels cannot be read", path=shown, remedy=_REMEDY_EXPORT
    )


def _plain(array: NDArray[Any]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return the array as int16 if that holds every value exactly, else as float32."""
    if array.dtype == np.int16 or array.dtype == np.float32:
        return array
    if np.issubdtype(array.dtype, np.integer) and array.size:
        info = np.iinfo(np.int16)
        if info.min <= int(array.min()) and int(array.max()) <= info.max:
            return array.astype(np.int16)
    with np.errstate(over="ignore"):  # values that overflow become infinite and are refused later
        return array.astype(np.float32)


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
    _check_spacing(grid.spacing_xyz_mm, (x, y, z), config, where)
    array = _dicom_pixels([header.path for header in slices.headers], where)
    if slices.frame_order is not None and array.shape[0] >= len(slices.frame_order):
        array = array[list(slices.frame_order)]
    if array.shape != grid.shape_zyx:
        raise CorruptImage(
            f"the pixels make {array.shape} voxels, the headers say {grid.shape_zyx}",
            path=where,
            remedy=_REMEDY_EXPORT,
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
