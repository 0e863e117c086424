"""Multi-frame files: values of each frame, order of volumes, several stacks in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.discovery import Discovery, discover
from pipeline.errors import ScanError
from pipeline.ingest import IngestConfig, RawScan, read_source
from tests.dicom_files import item, write_enhanced
from tests.phantom import phantom

CONFIG = IngestConfig()
SMALL = {"shape_zyx": (9, 20, 24), "spacing_zyx_mm": (8.0, 3.6, 3.9), "modality": "mr"}
CORONAL = np.array([[1, 0, 0], [0, 0, 1.0], [0, -1, 0]])


def read(path: Path, config: IngestConfig = CONFIG) -> RawScan:
    (source,) = discover(path, config.series_rules).sources
    return read_source(source, config)


def only_failure(found: Discovery) -> str:
    assert not found.sources
    (failure,) = found.failures
    return f"{failure.reason}. {failure.remedy}"


def test_every_frame_is_scaled_by_its_own_slope_and_intercept(tmp_path: Path) -> None:
    scan = phantom(**SMALL)
    rescale = [(0.5 + k / 7, 3.25 * k - 4) for k in range(9)]
    write_enhanced(tmp_path / "a.dcm", scan, rescale=rescale)
    slopes, intercepts = (np.array(values)[:, None, None] for values in zip(*rescale, strict=True))
    np.testing.assert_allclose(read(tmp_path).image, scan.image * slopes + intercepts, rtol=1e-5, atol=1e-3)
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    assert source.later_rules == ("rescale of frames",)


def test_one_slope_for_all_frames_needs_no_new_rule(tmp_path: Path) -> None:
    scan = phantom(**SMALL)
    write_enhanced(tmp_path / "a.dcm", scan, rescale=[(2.0, -5.0)] * 9)
    np.testing.assert_array_equal(read(tmp_path).image, scan.image * 2 - 5)
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    assert source.later_rules == ()


def test_a_slope_of_zero_in_the_first_frame_is_refused(tmp_path: Path) -> None:
    rescale = [(1.0, 0.0)] * 8 + [(0.0, 0.0)]  # stored from last to first
    write_enhanced(tmp_path / "a.dcm", phantom(**SMALL), rescale=rescale)
    with pytest.raises(ScanError, match="cannot be decoded"):
        read(tmp_path)


def test_echoes_in_one_file_must_be_chosen_and_are_ordered_by_time_not_by_place(tmp_path: Path) -> None:
    late, early = phantom(**SMALL, seed=1), phantom(**SMALL, seed=2)
    write_enhanced(tmp_path / "a.dcm", late, keys={"echo": 4.6}, more=[(early, {"echo": 2.3})])
    message = only_failure(discover(tmp_path, CONFIG.series_rules))
    assert "4D: each position holds 2 slices (echo time 2.3, 4.6). Choose one with frame = 0 to 1" in message
    for frame, scan in enumerate((early, late)):
        raw = read(tmp_path, IngestConfig(frame=frame))
        np.testing.assert_array_equal(raw.image, scan.image)


def test_temporal_positions_come_before_echoes(tmp_path: Path) -> None:
    scans = [phantom(**SMALL, seed=i) for i in range(4)]
    keys = [{"temporal": t, "echo": e} for t, e in ((2, 5.0), (1, 9.0), (2, 3.0), (1, 4.0))]
    write_enhanced(
        tmp_path / "a.dcm", scans[0], keys=keys[0], more=list(zip(scans[1:], keys[1:], strict=True))
    )
    for frame, number in enumerate((3, 1, 2, 0)):
        raw = read(tmp_path, IngestConfig(frame=frame))
        np.testing.assert_array_equal(raw.image, scans[number].image)


def test_stacks_of_one_file_are_scans_of_their_own_each_with_its_own_values(tmp_path: Path) -> None:
    axial, coronal = phantom(**SMALL), phantom(**SMALL, direction=CORONAL, seed=3)
    write_enhanced(
        tmp_path / "p" / "a.dcm", axial, more=[(coronal, {})], rescale=[(1.0 + k, 2.0) for k in range(9)]
    )
    found = discover(tmp_path, CONFIG.series_rules)
    assert [(s.scan_id, s.stack) for s in found.sources] == [("p_s3-1", 0), ("p_s3-2", 1)]
    assert len({s.case for s in found.sources} - {""}) == 1
    slopes = 1.0 + np.arange(9)[:, None, None]
    for source, scan in zip(found.sources, (axial, coronal), strict=True):
        np.testing.assert_array_equal(read_source(source, CONFIG).image, scan.image * slopes + 2)


def test_slabs_with_stack_ids_are_scans_of_their_own(tmp_path: Path) -> None:
    low, high = phantom(**SMALL), phantom(**SMALL, centre_xyz_mm=(20.0, -35.0, 700.0), seed=3)
    write_enhanced(tmp_path / "p" / "a.dcm", low, keys={"stack": "1"}, more=[(high, {"stack": "2"})])
    found = discover(tmp_path, CONFIG.series_rules)
    for source, scan in zip(found.sources, (low, high), strict=True):
        np.testing.assert_array_equal(read_source(source, CONFIG).image, scan.image)


def test_a_manifest_row_cannot_name_a_file_of_several_stacks(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", phantom(**SMALL), more=[(phantom(**SMALL, direction=CORONAL), {})])
    (tmp_path / "m.csv").write_text("id,image\nx,a.dcm\n")
    message = only_failure(discover(tmp_path / "m.csv", CONFIG.series_rules))
    assert "holds 2 stacks" in message
    assert "Give the folder itself" in message


def test_enhanced_files_of_a_single_slice_each_make_a_volume(tmp_path: Path) -> None:
    scan = phantom(**SMALL)
    whole = pydicom.dcmread(write_enhanced(tmp_path / "whole" / "a.dcm", scan))
    frames, pixels = list(whole.PerFrameFunctionalGroupsSequence), whole.pixel_array
    for number, (frame, plane) in enumerate(zip(frames, pixels, strict=True)):
        whole.PerFrameFunctionalGroupsSequence, whole.NumberOfFrames = [frame], 1
        whole.PixelData = plane.tobytes()
        whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        (tmp_path / "single").mkdir(exist_ok=True)
        whole.save_as(tmp_path / "single" / f"{number}.dcm")
    np.testing.assert_array_equal(read(tmp_path / "single").image, scan.image)


def test_what_is_shared_by_all_frames_counts_where_a_frame_says_nothing(tmp_path: Path) -> None:
    scan = phantom(**SMALL)
    path = write_enhanced(tmp_path / "a.dcm", scan)
    data = pydicom.dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        setattr(shared, sequence, data.PerFrameFunctionalGroupsSequence[0][sequence].value)
        for group in data.PerFrameFunctionalGroupsSequence:
            delattr(group, sequence)
    shared.PixelValueTransformationSequence = [item(RescaleSlope=3, RescaleIntercept=1, RescaleType="US")]
    data.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).image, scan.image * 3 + 1)
