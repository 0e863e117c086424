"""DICOM-SEG and RTSTRUCT headers: their structures, and the images that these were drawn on.

*Reads*: tags of segmentations and structure sets, never pixels or contour points. *Writes*: `LabelHeader`.
Names of structures are free text: they are shown only after `Scrubber.text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydicom

from pipeline.errors import NotAnImage
from pipeline.formats.dicom.frames import first_item
from pipeline.formats.dicom.parsing import DAMAGED, quiet_pydicom
from pipeline.formats.dicom.values import find_number, find_text

LabelKind = Literal["dicom-seg", "rtstruct"]

_KINDS: dict[str, LabelKind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "dicom-seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "dicom-seg",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
}
"""SOP classes of label files."""

_TAGS = [
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "SegmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
]


@dataclass(frozen=True, kw_only=True)
class DicomStructure:
    """A segment or region of interest of a label file.

    Attributes:
        number: Segment number or ROI number, by which the file knows it.
        name: Its name as the file has it; may hold a patient's name.
        instances: SOP instances of the images that it was drawn on; empty if the file does not say.
    """

    number: int
    name: str = field(repr=False)
    instances: frozenset[str] = field(repr=False, default=frozenset())


@dataclass(frozen=True, kw_only=True)
class LabelHeader:
    """Header of a DICOM-SEG or RTSTRUCT file.

    Attributes:
        path: The file.
        kind: "dicom-seg" or "rtstruct".
        sop_uid: SOP instance UID.
        structures: Its structures by number.
        series: Series that it refers to.
        frames_of_reference: Frames of reference that it refers to.
    """

    path: Path = field(repr=False)
    kind: LabelKind
    sop_uid: str
    structures: tuple[DicomStructure, ...]
    series: frozenset[str]
    frames_of_reference: frozenset[str]


def label_kind(sop_class: str) -> LabelKind | None:
    """Return the kind of label file of a SOP class, or None if it holds no labels."""
    return _KINDS.get(sop_class)


def read_label_header(path: Path) -> LabelHeader:
    """Return the header of a DICOM-SEG or RTSTRUCT file.

    Raises:
        NotAnImage: It is no DICOM-SEG or RTSTRUCT file, or its header is damaged. `path` is None.
        OSError: The file cannot be opened or read.
    """
    try:
        with quiet_pydicom():
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=False)
            kind = label_kind(find_text(data, "SOPClassUID"))
            if kind is not None:
                return _seg_header(path, data) if kind == "dicom-seg" else _rtstruct_header(path, data)
    except DAMAGED:
        pass
    raise NotAnImage(
        "it is no DICOM segmentation or structure set, or its header is damaged",
        path=None,
        remedy="Export it again, or remove it",
    )


def _seg_header(path: Path, data: Any) -> LabelHeader:
    series = {find_text(item, "SeriesInstanceUID") for item in data.get("ReferencedSeriesSequence") or ()}
    groups = [first_item(data, "SharedFunctionalGroupsSequence")]
    groups += data.get("PerFrameFunctionalGroupsSequence") or ()
    instances = frozenset(uid for group in groups if group is not None for uid in source_instances(group))
    listed = {
        find_text(item, "ReferencedSOPInstanceUID")
        for one in data.get("ReferencedSeriesSequence") or ()
        for item in one.get("ReferencedInstanceSequence") or ()
    }
    drawn_on = instances or frozenset(listed)
    structures = [
        DicomStructure(number=number, name=_segment_name(item, number), instances=drawn_on)
        for item in data.get("SegmentSequence") or ()
        if (number := int(find_number(item, "SegmentNumber") or 0)) > 0  # 0 is a label map's background
    ]
    return LabelHeader(
        path=path,
        kind="dicom-seg",
        sop_uid=find_text(data, "SOPInstanceUID"),
        structures=tuple(sorted(structures, key=lambda s: s.number)),
        series=frozenset(series - {""}),
        frames_of_reference=frozenset({find_text(data, "FrameOfReferenceUID")} - {""}),
    )


def source_instances(group: Any) -> Iterator[str]:
    """Yield the SOP instances that a functional group of a segmentation was derived from."""
    for derivation in group.get("DerivationImageSequence") or ():
        for source in derivation.get("SourceImageSequence") or ():
            uid = find_text(source, "ReferencedSOPInstanceUID")
            if uid:
                yield uid


def _segment_name(item: Any, number: int) -> str:
    kind = first_item(item, "SegmentedPropertyTypeCodeSequence")
    meaning = "" if kind is None else find_text(kind, "CodeMeaning")
    return find_text(item, "SegmentLabel") or meaning or f"segment {number}"


def _rtstruct_header(path: Path, data: Any) -> LabelHeader:
    frames = list(data.get("ReferencedFrameOfReferenceSequence") or ())
    series = {
        find_text(item, "SeriesInstanceUID")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for item in study.get("RTReferencedSeriesSequence") or ()
    }
    rois = list(data.get("StructureSetROISequence") or ())
    drawn_on = {
        int(find_number(roi, "ReferencedROINumber") or 0): frozenset(_contour_instances(roi))
        for roi in data.get("ROIContourSequence") or ()
    }
    numbers = [int(find_number(roi, "ROINumber") or 0) for roi in rois]
    structures = [
        DicomStructure(
            number=number,
            name=find_text(roi, "ROIName") or f"structure {number}",
            instances=drawn_on.get(number, frozenset()),
        )
        for number, roi in zip(numbers, rois, strict=True)
    ]
    own = {find_text(frame, "FrameOfReferenceUID") for frame in frames}
    own |= {find_text(roi, "ReferencedFrameOfReferenceUID") for roi in rois}
    return LabelHeader(
        path=path,
        kind="rtstruct",
        sop_uid=find_text(data, "SOPInstanceUID"),
        structures=tuple(sorted(structures, key=lambda s: s.number)),
        series=frozenset(series - {""}),
        frames_of_reference=frozenset(own - {""}),
    )


def _contour_instances(roi: Any) -> Iterable[str]:
    for contour in roi.get("ContourSequence") or ():
        for image in contour.get("ContourImageSequence") or ():
            uid = find_text(image, "ReferencedSOPInstanceUID")
            if uid:
                yield uid
