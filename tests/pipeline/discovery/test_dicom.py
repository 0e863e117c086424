"""DICOM: series found in a mess, slices put in order, irregular stacks refused, no patient's name shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline.discovery.from_dicom
from pipeline.discovery.fingerprint import source_stat
from pipeline.discovery.from_path import Discovery, discover
from pipeline.errors import ScanError
from pipeline.formats.dicom.headers import read_header
from pipeline.formats.privacy import Identity, Scrubber
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.volumes.grid import corner_distance_mm
from tests.dicom_files import write_enhanced
from tests.phantom import phantom, write_dicom

CONFIG = IngestConfig()
RULES = CONFIG.series_rules


@pytest.fixture(autouse=True)
def _silence(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    """No library writes to the terminal, nor to a log: paths may name the patient."""
    yield
    assert not [record for record in caplog.get_records("call") if record.name.startswith("pydicom")]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def rotation() -> np.ndarray:
    c, s = np.cos(0.3), np.sin(0.3)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]), rotation()]
)
def test_slices_come_in_order_with_units_and_geometry(tmp_path: Path, direction: np.ndarray) -> None:
    scan = phantom(direction=direction)
    write_dicom(tmp_path / "s", scan)
    (source,) = discover(tmp_path, RULES).sources
    raw = read_source(source, CONFIG)
    np.testing.assert_array_equal(raw.image, scan.image.clip(-1024))
    assert raw.image.dtype == np.int16
    assert raw.grid.shape_zyx == scan.grid.shape_zyx
    assert corner_distance_mm(raw.grid, scan.grid) < 1e-3
    assert (raw.modality, raw.modality_origin) == ("ct", "dicom")


def test_every_slice_is_scaled_by_its_own_slope(tmp_path: Path) -> None:
    import pydicom

    scan = phantom(modality="pet", noise=0)
    paths = write_dicom(tmp_path / "s", scan, slope=(1.0, 0.0), tags={"Units": "BQML"})
    for i, path in enumerate(paths):
        data = pydicom.dcmread(path)
        data.RescaleSlope = f"{0.5 + i / 7:.6f}"
        data.save_as(path)
    (source,) = discover(tmp_path, RULES).sources
    raw = read_source(source, CONFIG)
    slopes = np.array([float(f"{0.5 + i / 7:.6f}") for i in range(len(paths))])
    np.testing.assert_allclose(raw.image, scan.image * slopes[:, None, None], rtol=1e-6)
    assert standardize(raw, CONFIG).intensity.unit == "Bq/ml"


def test_a_series_is_found_among_other_files_and_without_a_suffix(tmp_path: Path) -> None:
    write_dicom(tmp_path / "mess", phantom(), suffix="")
    (tmp_path / "mess" / "notes.txt").write_text("x")
    (tmp_path / "mess" / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "mess" / "noise").write_bytes(b"y" * 300)
    phantom().write(tmp_path / "mess" / "also.nii.gz")
    found = discover(tmp_path, RULES)
    assert [s.scan_id for s in found.sources] == ["mess", "mess_also"]
    assert not found.failures


def test_series_of_one_folder_are_split_and_numbered(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom(), series_number=3)
    write_dicom(tmp_path / "p", phantom(modality="mr"), series_uid="1.2.9", series_number=7, suffix=".ima")
    write_dicom(tmp_path / "p" / "q", phantom(seed=1), series_uid="1.2.10", series_number=7)
    found = discover(tmp_path, RULES)
    assert [(s.scan_id, len(s.files)) for s in found.sources] == [("p_q", 36), ("p_s3", 36), ("p_s7", 36)]


def test_series_of_one_number_are_told_apart_by_their_uid(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom(), series_number=3)
    write_dicom(tmp_path / "p", phantom(seed=1), series_uid="1.2.9", series_number=3, suffix=".ima")
    first, second = (source.scan_id for source in discover(tmp_path, RULES).sources)
    assert first != second
    assert all(re.fullmatch(r"p_s3-[0-9a-f]{6}", scan_id) for scan_id in (first, second))


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": ["2.5", "2.5"]},
        {"ImageOrientationPatient": None},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]},
    ],
)
def test_stacks_of_one_series_that_lie_or_measure_otherwise_are_scans_of_their_own(
    tmp_path: Path, tags: dict
) -> None:
    write_dicom(tmp_path / "p", phantom())
    write_dicom(tmp_path / "p" / "x", phantom(seed=1), tags={"SOPInstanceUID": None} | tags)
    found = discover(tmp_path, RULES)
    assert len(found.sources) + len(found.failures) == 2
    assert len(found.sources[0].files) == 36


def test_stacks_of_another_matrix_are_scans_of_their_own(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom())
    write_dicom(tmp_path / "p" / "x", phantom(shape_zyx=(36, 60, 78)), tags={"SOPInstanceUID": None})
    found = discover(tmp_path, RULES)
    assert [len(source.files) for source in found.sources] == [36, 36]


def test_a_slice_shifted_sideways_is_refused(tmp_path: Path) -> None:
    import pydicom

    path = write_dicom(tmp_path / "p", phantom())[10]
    data = pydicom.dcmread(path)
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x + 3, y, z]
    data.save_as(path)
    assert "some are shifted sideways" in only_failure(discover(tmp_path, RULES))


def test_of_several_numbers_in_a_tag_the_first_counts(tmp_path: Path) -> None:
    import pydicom

    path = write_dicom(tmp_path / "p", phantom())[0]
    data = pydicom.dcmread(path)
    data.GantryDetectorTilt = ["1.5", "2.5"]
    data.save_as(path)
    assert read_header(path).tilt_degrees == 1.5


def test_a_file_that_the_disk_does_not_give_is_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "p", phantom())
    bad = write_dicom(tmp_path / "q", phantom(seed=1), series_uid="1.2.9")[3]
    real = pipeline.discovery.from_dicom.read_header

    def failing(path: Path) -> object:
        if path == bad:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(pipeline.discovery.from_dicom, "read_header", failing)
    failures = discover(tmp_path, RULES).failures
    assert any("Input/output error" in failure.reason for failure in failures)


def test_a_series_spread_over_folders_is_one_scan(tmp_path: Path) -> None:
    for i, path in enumerate(write_dicom(tmp_path / "p", phantom())):
        (tmp_path / "p" / f"d{i % 3}").mkdir(exist_ok=True)
        shutil.move(path, tmp_path / "p" / f"d{i % 3}" / path.name)
    (source,) = discover(tmp_path, RULES).sources
    assert (source.scan_id, len(source.files)) == ("p", 36)


def test_copies_of_a_slice_count_once(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "p", phantom())[5]
    shutil.copy(path, path.with_name("copy.dcm"))
    found = discover(tmp_path, RULES)
    assert len(found.sources[0].files) == 36
    assert any("copies" in note for note in found.notes)


def only_failure(found: Discovery) -> str:
    assert not found.sources
    (failure,) = found.failures
    assert failure.remedy
    return f"{failure.kind}: {failure.reason}"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"skip": (10,)}, "slices are missing: 1 of 36, first between slices 10 and 11"),
        ({"skip": (10, 11, 20)}, "slices are missing: 3 of 36"),
        ({"shift_mm": 1.0}, "slice gaps must be even, these run from 3.00 to 4.00 mm"),
        ({"tilt_mm": 0.5}, "lean 9.5 degrees from it (gantry tilt"),
        ({"tags": {"ImageOrientationPatient": [1, 0, 0, 0, 0.5, 0.5]}}, "position and direction"),
        ({"tags": {"ImagePositionPatient": None}}, "position and direction"),
        ({"tags": {"ImagePositionPatient": [1, 2, 3]}}, "4D: each position holds 36 slices"),
        ({"tags": {"PixelSpacing": [0, 1]}}, "pixel spacing must be positive"),
        ({"tags": {"PixelSpacing": None}}, "pixel spacing must be positive"),
        ({"skip": tuple(range(1, 36))}, "at least 3 slices, this has 1"),
        ({"tags": {"SamplesPerPixel": 3}}, "colour"),
    ],
)
def test_an_irregular_series_is_refused_with_the_true_reason(tmp_path: Path, more: dict, reason: str) -> None:
    write_dicom(tmp_path / "p", phantom(), **more)
    assert reason in only_failure(discover(tmp_path, RULES))


def test_tilt_and_gaps_are_told_together(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom(), tilt_mm=0.5, skip=(3,), tags={"GantryDetectorTilt": 9.5})
    message = only_failure(discover(tmp_path, RULES))
    assert "the header's gantry tilt is 9.5" in message
    assert "slices are missing" in message


def test_variable_tilt_is_told_from_the_slices_directions(tmp_path: Path) -> None:
    first, second = phantom(), phantom(direction=rotation())
    write_dicom(tmp_path / "p", first, skip=tuple(range(18, 36)))
    write_dicom(tmp_path / "p" / "x", second, skip=tuple(range(18)))
    assert "one direction" in only_failure(discover(tmp_path, RULES))


def test_uneven_copies_of_positions_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom())
    write_dicom(tmp_path / "p" / "x", phantom(seed=1), skip=tuple(range(30)), tags={"SOPInstanceUID": None})
    assert "no two slices may lie at one position" in only_failure(discover(tmp_path, RULES))


def test_one_time_of_a_4d_series_can_be_chosen(tmp_path: Path) -> None:
    times = [phantom(seed=i) for i in range(3)]
    for i, scan in enumerate(times):
        write_dicom(
            tmp_path / "p" / str(i), scan, tags={"TemporalPositionIdentifier": i + 1, "SOPInstanceUID": None}
        )
    assert "each position holds 3 slices" in only_failure(discover(tmp_path, RULES))
    config = IngestConfig(frame=1)
    (source,) = discover(tmp_path, config.series_rules).sources
    np.testing.assert_array_equal(read_source(source, config).image, times[1].image.clip(-1024))
    assert "frame 5 was asked for" in only_failure(discover(tmp_path, IngestConfig(frame=5).series_rules))


def test_structure_sets_and_localizers_are_noted_and_left_out(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom())
    write_dicom(
        tmp_path / "rs", phantom(), skip=tuple(range(1, 36)), series_uid="1.7", tags={"Modality": "RTSTRUCT"}
    )
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom(tmp_path / "scout", phantom(), skip=tuple(range(2, 36)), series_uid="1.8", tags=tags)
    found = discover(tmp_path, RULES)
    assert [s.scan_id for s in found.sources] == ["p"]
    assert not found.failures
    assert any("RTSTRUCT 1, localizer 2" in note for note in found.notes)


def test_files_that_only_look_like_dicom_are_one_failure_a_folder(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p", phantom())
    for name, content in (
        ("a.dcm", b""),
        ("b.dcm", b"text" * 100),
        ("c.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 50),
    ):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(content)
    found = discover(tmp_path, RULES)
    assert [s.scan_id for s in found.sources] == ["p"]
    (failure,) = found.failures
    assert failure.location == "bad [unreadable]"
    assert "3 files" in failure.reason


def test_a_series_that_changed_after_it_was_found_is_refused_by_its_place(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "p", phantom())
    (source,) = discover(tmp_path, RULES).sources
    write_dicom(tmp_path / "p", phantom(), skip=tuple(range(18)), tags={"PixelSpacing": ["2.5", "2.5"]})
    with pytest.raises(ScanError, match="not one series any more") as caught:
        read_source(source, CONFIG)
    assert str(caught.value).startswith("p: ")
    write_dicom(tmp_path / "p", phantom(direction=rotation()), skip=tuple(range(18)))
    with pytest.raises(ScanError, match="must have one direction") as caught:
        read_source(source, CONFIG)
    assert str(caught.value).startswith("p: ")
    paths[0].unlink()
    with pytest.raises(ScanError, match="DICOM file does not exist"):
        read_source(source, CONFIG)


def test_a_slice_cut_short_is_corrupt(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "p", phantom())[7]
    path.write_bytes(path.read_bytes()[:-3000])
    (source,) = discover(tmp_path, RULES).sources
    with pytest.raises(ScanError, match="cut short") as caught:
        read_source(source, CONFIG)
    assert str(tmp_path) not in str(caught.value)


def test_an_enhanced_multi_frame_file_is_read_in_the_order_of_its_positions(tmp_path: Path) -> None:
    scan = phantom(modality="mr")
    write_enhanced(tmp_path / "enhanced.dcm", scan)
    (source,) = discover(tmp_path, RULES).sources
    raw = read_source(source, CONFIG)
    np.testing.assert_array_equal(raw.image, scan.image)
    assert corner_distance_mm(raw.grid, scan.grid) < 1e-3


def test_a_multi_frame_file_without_positions_is_refused(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "enhanced.dcm", phantom(modality="mr"), positions=False)
    assert "multi-frame" in only_failure(discover(tmp_path, RULES))


# --- privacy


@pytest.mark.parametrize(
    "folder",
    [
        "DOE^JOHN",
        "Doe_John",
        "john doe",
        "JohnDoe",
        "XK-4711",
        "pat_XK4711_ct",
        "doejohn",
        "19510203",
        "Doe",
        "x_DOE_y",
    ],
)
def test_no_name_id_or_birth_date_of_a_patient_is_shown(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "raw"
    write_dicom(root / folder / "ct", phantom())
    write_dicom(root / folder / "bad", phantom(), skip=(4,), series_uid="1.5")
    (root / folder / "worse").mkdir()
    (root / folder / "worse" / "a.dcm").write_bytes(b"no")
    phantom().write(root / folder / "t1.nii.gz")
    found = discover(root, RULES)
    assert (len(found.sources), len(found.failures)) == (2, 2)
    shown = repr(found) + "".join(map(repr, found.sources)) + repr([source_stat(s) for s in found.sources])
    for source in found.sources:
        raw = read_source(source, CONFIG)
        shown += raw.location + repr(raw.facts) + raw.scan_id + repr(standardize(raw, CONFIG).notes)
    for source in found.sources:
        source.files[0].write_bytes(source.files[0].read_bytes()[:-2500])
        with pytest.raises(ScanError) as caught:
            read_source(source, CONFIG)
        shown += str(caught.value) + repr(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    # Times of files, and digests of them, may hold any digits.
    shown = re.sub(r"\d{15,}|files, [0-9a-f]{16}", "", shown)
    for token in ("doe", "john", "4711", "1951"):
        assert token not in shown.lower()
    assert any(s.scan_id.startswith("anon-") for s in found.sources)


def test_a_search_that_begins_in_the_patients_own_folder_shows_no_name(tmp_path: Path) -> None:
    write_dicom(tmp_path / "Doe_John", phantom())
    found = discover(tmp_path / "Doe_John", RULES)
    assert "doe" not in repr(found).lower()
    assert found.sources[0].scan_id.startswith("anon-")


def test_a_manifest_shows_no_name_in_its_places_and_warns_about_ids(tmp_path: Path) -> None:
    write_dicom(tmp_path / "Doe_John" / "ct", phantom())
    (tmp_path / "m.csv").write_text("id,image\njohn_ct,Doe_John/ct\n")
    found = discover(tmp_path / "m.csv", RULES)
    assert found.sources[0].location.startswith("anon-")
    assert "doe" not in found.sources[0].location.lower()
    assert any("1 ids or cases in the manifest" in note for note in found.notes)


def test_two_visits_of_one_patient_stay_apart(tmp_path: Path) -> None:
    for i in (1, 2):
        write_dicom(tmp_path / f"Doe_visit{i}" / "ct", phantom(), series_uid=f"1.2.{i}")
    found = discover(tmp_path, RULES)
    assert len({s.scan_id for s in found.sources}) == 2
    assert len({s.location for s in found.sources}) == 2


def test_pseudonyms_and_words_that_name_nobody_are_left_alone() -> None:
    scrubber = Scrubber(
        [
            (Path("a"), Identity(name="STS_002", codes=("REMOVED",), stand_in="anon-1")),
            (Path("b"), Identity(name="Anonymous", codes=("1",), stand_in="anon-2")),
        ]
    )
    assert scrubber.path(Path("sts_sarcoma/STS_002/CT_1.nii.gz")) == "sts_sarcoma/anon-1/CT_1.nii.gz"
    assert scrubber.path(Path("removed/anonymous/002")) == "removed/anonymous/002"


def test_a_text_of_the_machine_that_names_the_patient_is_left_out(tmp_path: Path) -> None:
    tags = {"Manufacturer": "Doe Devices", "ManufacturerModelName": "Model 5", "BodyPartExamined": "XK4711"}
    path = write_dicom(tmp_path / "s", phantom(), tags=tags)[0]
    facts = dict(read_header(path).facts)
    assert facts["ManufacturerModelName"] == "Model 5"
    assert not {"Manufacturer", "BodyPartExamined"} & set(facts)
