"""DICOM headers as plain values, one per file.

*Reads*: the tags named below, never the pixels. *Writes*: `Header`. What identifies the patient is kept in
`identity` only, to find it in paths. No other field can hold a name: free text such as descriptions is not
read, and a text of the machine or the acquisition that names the patient is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, UncompressedTransferSyntaxes

from pipeline.errors import NotAnImage, ScanError
from pipeline.formats.dicom.frames import Frame, read_frames
from pipeline.formats.dicom.parsing import DAMAGED, quiet_pydicom
from pipeline.formats.dicom.values import find_floats, find_number, find_text
from pipeline.formats.privacy import Identity, Scrubber, stand_in_for

_TAGS = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
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
        frame_of_reference: Frame of reference UID: series that share it share the world's axes and origin.
        modality: Modality tag in upper case, such as "CT"; "" if missing.
        is_localizer: Whether ImageType contains LOCALIZER.
        rows: Pixels along a column, 0 if the file has no image.
        columns: Pixels along a row, 0 if the file has no image.
        num_frames: Number of frames, 1 for a single slice.
        num_samples: Values per pixel, above 1 for colour.
        compressed: Whether the pixels are compressed, so that the file may be smaller than they are.
        orientation: Unit vectors (x, y, z) along a row and along a column in the world, six numbers; or None.
        position_xyz_mm: World point of the first pixel's centre, or None.
        pixel_spacing_mm: Distance between rows, and between columns; or None.
        tilt_degrees: Gantry tilt, or None.
        order: Sorts slices at the same position: temporal position, acquisition, echo, trigger time,
            instance.
        frames: Frames of a multi-frame file, in stored order, that belong to one stack; None for a single
            slice, and where a frame has no position.
        first_rescale: Slope and intercept of the first stored frame of a multi-frame file; else (1, 0).
        facts: (tag, text) of the machine and the acquisition.
        identity: What identifies the patient.
    """

    path: Path = field(repr=False)
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    series_number: int | None
    frame_of_reference: str
    modality: str
    is_localizer: bool
    rows: int
    columns: int
    num_frames: int
    num_samples: int
    compressed: bool
    orientation: tuple[float, ...] | None
    position_xyz_mm: tuple[float, float, float] | None
    pixel_spacing_mm: tuple[float, float] | None
    tilt_degrees: float | None
    order: tuple[float, ...]
    frames: tuple[Frame, ...] | None
    first_rescale: tuple[float, float]
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
        with quiet_pydicom():
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=False)
            return _header(path, data)
    except InvalidDicomError:
        raise _not_dicom("it has no DICOM preamble") from None
    except DAMAGED:
        raise _not_dicom("its DICOM header is damaged or cut short") from None


def _not_dicom(reason: str) -> ScanError:
    return NotAnImage(reason, path=None, remedy="Copy the file again from its source, or remove it")


def _header(path: Path, data: Any) -> Header:
    study = find_text(data, "StudyInstanceUID")
    series = find_text(data, "SeriesInstanceUID")
    if not series and not find_text(data, "SOPClassUID"):
        raise ValueError("neither a series nor a class")
    orientation = find_floats(data, "ImageOrientationPatient", 6)
    spacing = find_floats(data, "PixelSpacing", 2)
    position = find_floats(data, "ImagePositionPatient", 3)
    num_frames, frames = int(find_number(data, "NumberOfFrames") or 1), None
    if num_frames > 1 or orientation is None:
        frames = read_frames(data)
    if frames is not None:
        orientation, spacing = frames[0].orientation, frames[0].pixel_spacing_mm
    if frames is not None and num_frames == 1:  # an enhanced file of a single slice
        position, frames = frames[0].position_xyz_mm, None
    identity = _identity(data, study or series)
    return Header(
        path=path,
        sop_class=find_text(data, "SOPClassUID"),
        sop_uid=find_text(data, "SOPInstanceUID"),
        study_uid=study,
        series_uid=series,
        series_number=None if (n := find_number(data, "SeriesNumber")) is None else int(n),
        frame_of_reference=find_text(data, "FrameOfReferenceUID"),
        modality=find_text(data, "Modality").upper(),
        is_localizer="LOCALIZER" in str(data.get("ImageType", "")).upper(),
        rows=int(find_number(data, "Rows") or 0),
        columns=int(find_number(data, "Columns") or 0),
        num_frames=num_frames,
        num_samples=int(find_number(data, "SamplesPerPixel") or 1),
        compressed=_is_compressed(data),
        orientation=orientation,
        position_xyz_mm=None if position is None else (position[0], position[1], position[2]),
        pixel_spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        tilt_degrees=find_number(data, "GantryDetectorTilt"),
        order=_order(data),
        frames=frames,
        first_rescale=frames[0].rescale if frames else (1.0, 0.0),
        facts=_facts(data, identity),
        identity=identity,
    )


def _identity(data: Any, uid: str) -> Identity:
    """Return what identifies the patient in a header."""
    codes = [find_text(data, tag) for tag in ("PatientID", "PatientBirthDate", "OtherPatientIDs")]
    return Identity(
        name=find_text(data, "PatientName"),
        codes=tuple(code for code in codes if code),
        patient_id=codes[0],
        stand_in=stand_in_for(uid),
    )


def _facts(data: Any, identity: Identity) -> tuple[tuple[str, str], ...]:
    """Return (tag, text) of the machine and the acquisition, without texts that name the patient."""
    scrubber = _scrubber(identity)
    texts = ((tag, find_text(data, tag)[:64]) for tag in _FACTS)
    return tuple((tag, text) for tag, text in texts if text and not scrubber.holds_identity(text))


@lru_cache(maxsize=16)
def _scrubber(identity: Identity) -> Scrubber:
    return Scrubber([(Path(), identity)])


def _is_compressed(data: Any) -> bool:
    """Whether pixels, or the whole file, are compressed; an unknown form counts as compressed."""
    syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
    plain = syntax is None or syntax in UncompressedTransferSyntaxes
    return not plain or syntax == DeflatedExplicitVRLittleEndian


def _order(data: Any) -> tuple[float, ...]:
    tags = ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "TriggerTime", "InstanceNumber")
    return tuple(find_number(data, tag) or 0.0 for tag in tags)
