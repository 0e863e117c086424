"""DICOM headers, file by file, as plain values.

*Reads*: the tags named below, never the pixels. *Writes*: `Header`. What identifies the patient is kept in
`identity` only, for finding it in paths; nothing else here can carry a name (no free text such as
descriptions).
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

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages name files, and with them patients

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
"""Tags of the machine and the method that are worth keeping with a scan; none describes the patient."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What one DICOM file says.

    Attributes:
        path: The file.
        orientation: Unit vectors of a row's and a column's direction in the world, or None.
        position_xyz_mm: World point of the first pixel's centre, or None.
        pixel_spacing_mm: Distance between rows, and between columns; None where the tag is missing.
        order: What tells apart slices at one position: temporal position, acquisition, echo, trigger,
            instance.
        frames: World point of each frame's first pixel, in stored order, of a multi-frame file.
        facts: Machine and method, as text.
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
        """Whether it is an image at all (not a structure set, plan, report)."""
        return self.rows > 0 and self.columns > 0


def read_header(path: Path) -> Header:
    """The header of one file.

    Raises:
        NotAnImage: The file is no DICOM, or its header is damaged. The caller says where; no path is named.
        OSError: The file cannot be opened or read.
    """
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name the file, and with it perhaps the patient
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=False)
            return _header(path, data)
    except InvalidDicomError:
        raise _not_dicom("it has no DICOM preamble") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, IndexError):
        # what pydicom raises on damaged headers; its messages may quote values, so they are dropped
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
    """Orientation, pixel spacing and frame positions of an enhanced multi-frame file; None where not told."""
    shared = _first(data.get("SharedFunctionalGroupsSequence"))
    per_frame = list(data.get("PerFrameFunctionalGroupsSequence") or ())
    groups = [shared, *per_frame[:1]]
    orientation = _in_groups(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _in_groups(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    places = [_in_groups([g], "PlanePositionSequence", "ImagePositionPatient", 3) for g in per_frame]
    turned = {
        _in_groups([g], "PlaneOrientationSequence", "ImageOrientationPatient", 6) for g in per_frame
    } - {None}
    frames = [(p[0], p[1], p[2]) for p in places if p is not None]
    if not frames or len(frames) != len(places) or len(turned) > 1:
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
    """A number, or None where the tag is missing, empty or no number."""
    value = data.get(tag)
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if value else None
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _floats(data: Any, tag: str, count: int) -> tuple[float, ...] | None:
    """A given number of numbers, or None where the tag holds anything else."""
    value = data.get(tag)
    try:
        numbers = () if value is None else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(v) for v in numbers) else None
