"""Drawn DICOM files beside `phantom.write_dicom`: multi-frame files, segmentations, structure sets.

Written with pydicom alone, by the standard's text, so that the readers are not tested against themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from tests.phantom import Phantom, write_dicom

SERIES, STUDY = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.9"
"""What `write_dicom` writes unless told otherwise."""

SEG, LABEL_MAP_SEG = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def instance(slice_index: int, series: str = SERIES) -> str:
    """SOP instance UID that `write_dicom` gives to a slice."""
    return f"{series}.{slice_index + 1}"


def item(**tags: Any) -> Dataset:
    """A data set, or an item of a sequence."""
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def new_file(path: Path, sop_class: str, modality: str, sop_uid: str = "1.2.3.4", **tags: Any) -> FileDataset:
    """A DICOM file of the phantom's patient without pixels, not yet saved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = sop_class, sop_uid, modality
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, f"{sop_uid}.1"
    data.PatientName, data.PatientID, data.PatientBirthDate = "DOE^JOHN", "XK-4711", "19510203"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write_rtstruct(
    path: Path,
    structures: Mapping[str, Sequence[np.ndarray]],
    *,
    series: str = SERIES,
    kind: str = "CLOSED_PLANAR",
    drawn_on: Mapping[str, Sequence[str]] | None = None,
    sop_uid: str = "1.2.3.4",
) -> Path:
    """Write contours, each (N, 3) x, y, z in mm, by the name of their structure.

    Args:
        series: Series that is named; "" names none, but the frame of reference.
        kind: ContourGeometricType.
        drawn_on: SOP instances that the contours of a structure name.
    """
    data = new_file(path, RTSTRUCT, "RTSTRUCT", sop_uid)
    frame = item(FrameOfReferenceUID=FRAME_OF_REFERENCE)
    if series:
        study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=series)])
        frame.RTReferencedStudySequence = [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence = [
        item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID=FRAME_OF_REFERENCE)
        for n, name in enumerate(structures, start=1)
    ]
    rois = []
    for n, (name, contours) in enumerate(structures.items(), start=1):
        images = [item(ReferencedSOPInstanceUID=uid) for uid in (drawn_on or {}).get(name, ())]
        made = [
            item(
                ContourGeometricType=kind,
                NumberOfContourPoints=len(points),
                ContourData=[f"{v:.9g}" for v in points.ravel()],
                **({"ContourImageSequence": images} if images else {}),
            )
            for points in contours
        ]
        rois.append(item(ReferencedROINumber=n, ContourSequence=made))
    data.ROIContourSequence = rois
    data.save_as(path, enforce_file_format=True)
    return path


def write_seg(
    path: Path,
    frames: Sequence[tuple[int, int, np.ndarray]],
    scan: Phantom,
    *,
    names: Mapping[int, str],
    kind: str = "BINARY",
    series: str = SERIES,
    orientation: Sequence[float] | None = None,
    positions: Sequence[np.ndarray] | None = None,
    place_by: str = "position",
    sop_uid: str = "1.2.3.5",
) -> Path:
    """Write a segmentation.

    Args:
        frames: (segment number, slice, pixels (rows, columns)) of each stored frame.
        names: Segment labels by number.
        kind: BINARY, FRACTIONAL or LABELMAP.
        series: Series that is named, "" for none.
        orientation: Row and column direction; the series' own if None.
        positions: World point of the first pixel of each frame; those of the slices if None.
        place_by: "position", or "image" for frames that only name the image that they were drawn on.
    """
    data = new_file(path, LABEL_MAP_SEG if kind == "LABELMAP" else SEG, "SEG", sop_uid)
    data.SegmentationType, data.FrameOfReferenceUID = kind, FRAME_OF_REFERENCE
    if series:
        data.ReferencedSeriesSequence = [item(SeriesInstanceUID=series)]
    data.SegmentSequence = [item(SegmentNumber=n, SegmentLabel=name) for n, name in names.items()]
    matrix, spacing = scan.grid.matrix, scan.grid.spacing_xyz_mm
    own = (*matrix[:, 0], *matrix[:, 1])
    plane = item(ImageOrientationPatient=[f"{v:.8f}" for v in orientation or own])
    measures = item(PixelSpacing=[f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"])
    data.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])
    ]
    groups = []
    for number, (segment, index, _) in enumerate(frames):
        group = Dataset()
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=segment)]
        point = scan.grid.to_world(np.array([0.0, 0.0, index])) if positions is None else positions[number]
        if place_by == "position":
            group.PlanePositionSequence = [item(ImagePositionPatient=[f"{v:.6f}" for v in point])]
        else:
            source = item(ReferencedSOPInstanceUID=instance(index))
            group.DerivationImageSequence = [item(SourceImageSequence=[source])]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    pixels = np.stack([pixels for _, _, pixels in frames])
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape
    bits = 1 if kind == "BINARY" else 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    if kind == "FRACTIONAL":
        data.MaximumFractionalValue, data.SegmentationFractionalType = 200, "PROBABILITY"
    flat = pixels.astype(np.uint8).ravel()
    data.PixelData = pack_bits(flat, pad=True) if bits == 1 else flat.tobytes() + b"\0" * (flat.size % 2)
    data.save_as(path, enforce_file_format=True)
    return path


def write_enhanced(
    path: Path,
    scan: Phantom,
    *,
    positions: bool = True,
    rescale: Sequence[tuple[float, float]] | None = None,
    more: Sequence[tuple[Phantom, Mapping[str, Any]]] = (),
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """Write all slices in one multi-frame file, stored from last to first.

    Args:
        positions: Whether frames have a position.
        rescale: Slope and intercept of each slice; one pair (1, 0), shared, if None.
        more: Further volumes of the file, each with the `keys` of its frames.
        keys: "temporal" (index), "echo" (ms) and "stack" (StackID) of the frames.
    """
    only = write_dicom(path.parent / "tmp", scan, skip=tuple(range(1, len(scan.image))), slope=(1.0, 0.0))[0]
    data = pydicom.dcmread(only)
    shutil.rmtree(path.parent / "tmp")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    shared = Dataset()
    if rescale is None:
        shared.PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")]
    for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, tag)
    del data.RescaleSlope, data.RescaleIntercept
    frames, pixels = [], []
    for volume, own in ((scan, keys or {}), *more):
        for k in range(volume.image.shape[0] - 1, -1, -1):
            frames.append(_enhanced_frame(volume, k, own, positions=positions))
            if rescale is not None:
                slope, intercept = rescale[k]
                frames[-1].PixelValueTransformationSequence = [
                    item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
                ]
            pixels.append(volume.image[k].astype("<u2").ravel())
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.PixelData = np.concatenate(pixels).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def _enhanced_frame(scan: Phantom, k: int, keys: Mapping[str, Any], *, positions: bool) -> Dataset:
    matrix, spacing = scan.grid.matrix, scan.grid.spacing_xyz_mm
    frame = Dataset()
    if positions:
        point = scan.grid.to_world(np.array([0.0, 0.0, float(k)]))
        frame.PlanePositionSequence = [item(ImagePositionPatient=[f"{v:.6f}" for v in point])]
    direction = [f"{v:.8f}" for v in (*matrix[:, 0], *matrix[:, 1])]
    frame.PlaneOrientationSequence = [item(ImageOrientationPatient=direction)]
    frame.PixelMeasuresSequence = [item(PixelSpacing=[f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"])]
    content = Dataset()
    if "temporal" in keys:
        content.TemporalPositionIndex = keys["temporal"]
    if "stack" in keys:
        content.StackID = keys["stack"]
    frame.FrameContentSequence = [content]
    if "echo" in keys:
        frame.MREchoSequence = [item(EffectiveEchoTime=keys["echo"])]
    return frame
