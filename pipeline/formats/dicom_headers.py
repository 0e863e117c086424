"""DICOM headers as plain values, one per file.

*Reads*: the tags named below, never the pixels. *Writes*: `Header`. What identifies the patient is kept in
`identity` only, to find it in paths. No other field can hold a name: free text such as descriptions is not
read.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError

from pipeline.errors import NotAnImage, ScanError
from pipeline.formats.privacy import Identity, stand_in_for

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL
)  # its messages contain paths, and these may contain patients' names

_TAGS = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "InstanceNumber",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "TriggerTime",
    "GantryDetectorTilt",
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "KVP",
    "ConvolutionKernel",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "Units",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

_FACTS = [
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "SliceThickness",
    "KVP",
    "ConvolutionKernel",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "Units",
]
"""Tags of the machine and the acquisition that are kept with a scan; none describes the patient."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of one DICOM file.

    Attributes:
        path: The file.
        sop_class: SOP class UID.
        sop_uid: SOP instance UID.
        study_uid: Study instance UID.
        series_uid: Series instance UID.
        series_number: SeriesNumber, or None.
        modality: Modality tag in upper case, such as "CT"; "" if missing.
        is_localizer: Whether ImageType contains LOCALIZER.
        rows: Pixels along a column, 0 if the file has no image.
        columns: Pixels along a row, 0 if the file has no image.
        num_frames: Number of frames, 1 for a single slice.
        num_samples: Values per pixel, above 1 for colour.
        orientation: Unit vectors (x, y, z) along a row and along a column in the world, six numbers; or None.
        position_xyz_mm: World point of the first pixel's centre, or None.
        pixel_spacing_mm: Distance between rows, and between columns; or None.
        tilt_degrees: Gantry tilt, or None.
        order: Sorts slices at the same position: temporal position, acquisition, echo, trigger time,
            instance.
        frames: World point of the first pixel of each frame, in stored order, for a multi-frame file; else
            None.
        facts: (tag, text) of the machine and the acquisition.
        identity: What identifies the patient.
    """

    path: Path = field(repr=False)
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    series_number: int | None
    modality: str
    is_localizer: bool
    rows: int
    columns: int
    num_frames: int
    num_samples: int
    orientation: tuple[float, ...] | None
    position_xyz_mm: tuple[float, float, float] | None
    pixel_spacing_mm: tuple[float, float] | None
    tilt_degrees: float | None
    order: tuple[float, ...]
    frames: tuple[tuple[float, float, float], ...] | None
    facts: tuple[tuple[str, str], ...]
    identity: Identity = field(repr=False)

    @property
    def has_pixels(self) -> bool:
        """Whether the file holds an image (not a structure set, plan or report)."""
        return self.rows > 0 and self.columns > 0


def read_header(path: Path) -> Header:
    """Read the header of one file.

    Raises:
        NotAnImage: The file is not DICOM, or its header is damaged. The error has no path; the caller adds
            it.
        OSError: The file cannot be opened or read.
    """
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they contain the path, perhaps with a name
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=False)
            return _header(path, data)
    except InvalidDicomError:
        raise _not_dicom("it has no DICOM preamble") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, IndexError):
        # pydicom raises these on damaged headers; its messages may quote the patient's name
        raise _not_dicom("its DICOM header is damaged or cut short") from None


def _not_dicom(reason: str) -> ScanError:
    return NotAnImage(reason, path=None, remedy="Copy the file again from its source, or remove it")


def _header(path: Path, data: Any) -> Header:
    study = _text(data, "StudyInstanceUID")
    series = _text(data, "SeriesInstanceUID")
    if not series and not _text(data, "SOPClassUID"):
        raise ValueError("neither a series nor a class")
    orientation, frames, spacing = _floats(data, "ImageOrientationPatient", 6), None, None
    spacing = _floats(data, "PixelSpacing", 2)
    num_frames = int(_number(data, "NumberOfFrames") or 1)
    if num_frames > 1:
        orientation, spacing, frames = _functional_groups(data)
    position = _floats(data, "ImagePositionPatient", 3)
    codes = [_text(data, "PatientID"), _text(data, "PatientBirthDate"), _text(data, "OtherPatientIDs")]
    return Header(
        path=path,
        sop_class=_text(data, "SOPClassUID"),
        sop_uid=_text(data, "SOPInstanceUID"),
        study_uid=study,
        series_uid=series,
        series_number=None if (n := _number(data, "SeriesNumber")) is None else int(n),
        modality=_text(data, "Modality").upper(),
        is_localizer="LOCALIZER" in str(data.get("ImageType", "")).upper(),
        rows=int(_number(data, "Rows") or 0),
        columns=int(_number(data, "Columns") or 0),
        num_frames=num_frames,
        num_samples=int(_number(data, "SamplesPerPixel") or 1),
        orientation=orientation,
        position_xyz_mm=None if position is None else (position[0], position[1], position[2]),
        pixel_spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        tilt_degrees=_number(data, "GantryDetectorTilt"),
        order=_order(data),
        frames=frames,
        facts=tuple((tag, _text(data, tag)[:64]) for tag in _FACTS if _text(data, tag)),
        identity=Identity(
            name=_text(data, "PatientName"),
            codes=tuple(code for code in codes if code),
            stand_in=stand_in_for(study or series),
        ),
    )


def _functional_groups(
    data: Any,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, tuple[tuple[float, float, float], ...] | None]:
    """Return orientation, pixel spacing and frame positions of a multi-frame file; None if missing."""
    shared = _first(data.get("SharedFunctionalGroupsSequence"))
    per_frame = list(data.get("PerFrameFunctionalGroupsSequence") or ())
    groups = [shared, *per_frame[:1]]
    orientation = _in_groups(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _in_groups(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    positions = [_in_groups([g], "PlanePositionSequence", "ImagePositionPatient", 3) for g in per_frame]
    orientations = {
        _in_groups([g], "PlaneOrientationSequence", "ImageOrientationPatient", 6) for g in per_frame
    } - {None}
    frames = [(p[0], p[1], p[2]) for p in positions if p is not None]
    if not frames or len(frames) != len(positions) or len(orientations) > 1:
        return orientation, spacing, None
    return orientation, spacing, tuple(frames)


def _in_groups(groups: Iterable[Any], sequence: str, tag: str, count: int) -> tuple[float, ...] | None:
    for group in groups:
        item = None if group is None else _first(group.get(sequence))
        values = None if item is None else _floats(item, tag, count)
        if values is not None:
            return values
    return None


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _order(data: Any) -> tuple[float, ...]:
    tags = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "TriggerTime", "InstanceNumber")
    return tuple(_number(data, tag) or 0.0 for tag in tags)


def _text(data: Any, tag: str) -> str:
    value = data.get(tag)
    return "" if value is None else str(value).strip().strip("\0")


def _number(data: Any, tag: str) -> float | None:
    """Return a tag's number, or None if the tag is missing, empty or not a finite number."""
    value = data.get(tag)
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if value else None
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _floats(data: Any, tag: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's `count` numbers, or None if it holds anything else."""
    value = data.get(tag)
    try:
        numbers = () if value is None else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(v) for v in numbers) else None
