"""DICOM-SEG frames become masks of the series that they belong to, in whatever way they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from pipeline.discovery import discover
from pipeline.errors import ScanError
from pipeline.ingest import IngestConfig, RawScan, read_source
from tests.dicom_files import instance, item, write_seg
from tests.phantom import STRUCTURES, Phantom, phantom, write_dicom
from tests.pipeline.ingest.dicom.test_structure_sets import OBLIQUE, SAGITTAL

CONFIG = IngestConfig()
SHAPE = (13, 31, 37)
"""A frame has no whole number of bytes when a voxel is a bit."""

NAMES = {n: STRUCTURES[n] for n in (1, 2, 3, 4)}


def small(direction: np.ndarray | None = None) -> Phantom:
    axes = np.eye(3) if direction is None else direction
    return phantom(shape_zyx=SHAPE, spacing_zyx_mm=(6.0, 2.4, 2.6), direction=axes)


def frames(scan: Phantom) -> list[tuple[int, int, np.ndarray]]:
    """A frame for each structure and slice that shows it, none for empty ones."""
    all_frames = [(n, k, scan.labels[k] == n) for n in NAMES for k in range(SHAPE[0])]
    return [frame for frame in all_frames if frame[2].any()]


def wanted(scan: Phantom) -> np.ndarray:
    return np.where(scan.labels <= 4, scan.labels, 0)


def read(root: Path) -> RawScan:
    (source,) = discover(root, CONFIG.series_rules).sources
    return read_source(source, CONFIG)


def told(raw: RawScan) -> tuple[str, ...]:
    """Notes on the labels, without their beginning."""
    start = "label seg: "
    assert all(note.startswith(start) for note in raw.labels[0].notes)
    return tuple(note.removeprefix(start) for note in raw.labels[0].notes)


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, SAGITTAL])
@pytest.mark.parametrize("place_by", ["position", "image"])
def test_binary_frames_come_back_exactly(tmp_path: Path, direction: np.ndarray, place_by: str) -> None:
    scan = small(direction)
    write_dicom(tmp_path / "ct", scan)
    write_seg(tmp_path / "seg.dcm", frames(scan), scan, names=NAMES, place_by=place_by)
    raw = read(tmp_path)
    (label,) = raw.labels
    np.testing.assert_array_equal(label.array, wanted(scan))
    assert (label.name, label.value_names, told(raw)) == ("seg", NAMES, ())


def test_a_label_map_segmentation_comes_back_exactly(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    stored = [(0, k, wanted(scan)[k]) for k in range(SHAPE[0])]
    write_seg(tmp_path / "seg.dcm", stored, scan, names={0: "background"} | NAMES, kind="LABELMAP")
    raw = read(tmp_path)
    np.testing.assert_array_equal(raw.labels[0].array, wanted(scan))
    assert raw.labels[0].value_names == NAMES


def test_a_value_that_a_label_map_does_not_describe_is_refused(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    stored = [(0, k, wanted(scan)[k]) for k in range(SHAPE[0])]
    write_seg(tmp_path / "seg.dcm", stored, scan, names={1: "organ", 2: "lesion"}, kind="LABELMAP")
    with pytest.raises(ScanError, match=r"segments that it does not describe \(3, 4\)"):
        read(tmp_path)


def test_a_fractional_segment_is_cut_at_half_with_a_note(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    ramp = np.tile(np.arange(SHAPE[2]) * 5, (SHAPE[1], 1))  # of 200: half is 100, column 20
    write_seg(tmp_path / "seg.dcm", [(1, 4, ramp)], scan, names={1: "tumour"}, kind="FRACTIONAL")
    raw = read(tmp_path)
    expected = np.zeros(SHAPE, bool)
    expected[4, :, 20:] = True
    np.testing.assert_array_equal(raw.labels[0].array, expected)
    assert told(raw) == ("fractional segments were cut at half of their largest possible value",)


def test_frames_that_are_flipped_or_turned_lie_where_they_belong(tmp_path: Path) -> None:
    scan = small(OBLIQUE)
    write_dicom(tmp_path / "ct", scan)
    matrix, grid = scan.grid.matrix, scan.grid
    corner = [grid.to_world(np.array([SHAPE[2] - 1, SHAPE[1] - 1, k], float)) for _, k, _ in frames(scan)]
    turned = [(n, k, pixels[::-1, ::-1]) for n, k, pixels in frames(scan)]
    orientation = (*-matrix[:, 0], *-matrix[:, 1])
    write_seg(tmp_path / "seg.dcm", turned, scan, names=NAMES, orientation=orientation, positions=corner)
    np.testing.assert_array_equal(read(tmp_path).labels[0].array, wanted(scan))


def test_frames_across_the_slices_lie_where_they_belong(tmp_path: Path) -> None:
    scan = phantom(shape_zyx=SHAPE, spacing_zyx_mm=(2.6, 2.6, 2.6))
    write_dicom(tmp_path / "ct", scan)
    matrix, labels = scan.grid.matrix, scan.labels
    columns = [i for i in range(SHAPE[2]) if (labels[:, :, i] == 1).any()]
    across = [(1, i, (labels[:, :, i] == 1).T) for i in columns]  # rows along y, columns along z
    points = [scan.grid.to_world(np.array([i, 0.0, 0.0])) for i in columns]
    write_seg(
        tmp_path / "seg.dcm",
        across,
        scan,
        names={1: "organ"},
        orientation=(*matrix[:, 2], *matrix[:, 1]),
        positions=points,
    )
    np.testing.assert_array_equal(read(tmp_path).labels[0].array, labels == 1)


def test_a_cropped_segmentation_is_placed_and_what_lies_outside_the_series_is_noted(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    points = [scan.grid.to_world(np.array([30.0, 20.0, 4.0]))]
    write_seg(tmp_path / "seg.dcm", [(1, 4, np.ones((11, 10)))], scan, names={1: "x"}, positions=points)
    raw = read(tmp_path)
    expected = np.zeros(SHAPE, bool)
    expected[4, 20:31, 30:37] = True
    np.testing.assert_array_equal(raw.labels[0].array, expected)
    assert told(raw) == ("33 labelled voxels of x lie outside the series",)


@pytest.mark.parametrize("shift", [(0.3, 0, 0), (0, 0, 0.4)])
def test_frames_between_the_voxels_are_refused(tmp_path: Path, shift: tuple[float, ...]) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    points = [scan.grid.to_world(np.array([0.0, 0.0, k]) + shift) for _, k, _ in frames(scan)]
    write_seg(tmp_path / "seg.dcm", frames(scan), scan, names=NAMES, positions=points)
    with pytest.raises(ScanError, match=r"must lie on its series' grid.*0\.[34]0 voxels away") as caught:
        read(tmp_path)
    assert type(caught.value).__name__ == "LabelMismatch"
    assert str(caught.value).startswith("seg.dcm: ")


def test_overlapping_segments_lie_in_further_maps(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    both = [(1, 5, np.tri(31, 37)), (2, 5, np.ones((31, 37)))]
    write_seg(tmp_path / "seg.dcm", both, scan, names={1: "a", 2: "b"})
    first, second = read(tmp_path).labels
    assert (first.name, second.name) == ("seg", "seg_2")
    np.testing.assert_array_equal(first.array[5] == 1, np.tri(31, 37) > 0)
    assert (second.array[5] == 2).all()


def _without_segment(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence


def _without_position(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def _undescribed(data: Any) -> None:
    del data.SegmentSequence[3]


def _undescribed_frame(data: Any) -> None:
    del data.PerFrameFunctionalGroupsSequence[3]


def _cut_short(data: Any) -> None:
    data.PixelData = data.PixelData[: len(data.PixelData) // 2]


def _odd_compression(data: Any) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 20] * int(data.NumberOfFrames))
    data["PixelData"].VR = "OB"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_without_segment, "does not say which segment"),
        (_without_position, "neither a position nor an image"),
        (_undescribed, r"segments that it does not describe \(4\)"),
        (_undescribed_frame, "does not describe every frame"),
        (_cut_short, "pixels cannot be decoded"),
        (_odd_compression, "pixels cannot be decoded"),
    ],
)
def test_a_damaged_segmentation_is_refused_with_the_reason(tmp_path: Path, harm: Any, reason: str) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    path = write_seg(tmp_path / "seg.dcm", frames(scan), scan, names=NAMES)
    data = pydicom.dcmread(path)
    harm(data)
    data.save_as(path)
    with pytest.raises(ScanError, match=reason) as caught:
        read(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_a_segment_number_shared_by_all_frames_counts(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    own = [(1, k, scan.labels[k] == 1) for k in range(SHAPE[0])]
    path = write_seg(tmp_path / "seg.dcm", own, scan, names={1: "organ"})
    data = pydicom.dcmread(path)
    for group in data.PerFrameFunctionalGroupsSequence:
        del group.SegmentIdentificationSequence
    shared = item(ReferencedSegmentNumber=1)
    data.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence = [shared]
    data.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).labels[0].array, scan.labels == 1)


def test_a_segmentation_that_names_images_only_is_paired_by_them(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_dicom(tmp_path / "mr", scan.replace(modality="mr"), series_uid="1.2.77")
    path = write_seg(tmp_path / "seg.dcm", frames(scan), scan, names=NAMES, place_by="image", series="")
    data = pydicom.dcmread(path)
    for group in data.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        number = source.ReferencedSOPInstanceUID.rsplit(".", 1)[1]
        source.ReferencedSOPInstanceUID = instance(int(number) - 1, "1.2.77")
    data.save_as(path)
    ct, mr = discover(tmp_path, CONFIG.series_rules).sources
    assert (len(ct.labels), len(mr.labels)) == (0, 1)
    np.testing.assert_array_equal(read_source(mr, CONFIG).labels[0].array, wanted(scan))
