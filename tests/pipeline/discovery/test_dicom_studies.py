"""What belongs together in DICOM studies: labels and series, series and patients, copies of slices."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.discovery import discover, source_digest, source_stat
from pipeline.ingest import IngestConfig, read_source
from tests.dicom_files import instance, write_rtstruct, write_seg
from tests.phantom import Phantom, phantom, write_dicom
from tests.pipeline.ingest.dicom.test_structure_sets import ring

RULES = IngestConfig().series_rules
SHAPE = (12, 30, 36)


def small(seed: int = 0) -> Phantom:
    return phantom(shape_zyx=SHAPE, spacing_zyx_mm=(6.0, 2.4, 2.6), seed=seed)


def contours(scan: Phantom, *names: str) -> dict[str, list[np.ndarray]]:
    return {name: [ring(scan, 5, 17.3, 14.2, 9.31)] for name in names}


# --- labels


def test_several_label_files_of_a_series_have_names_of_their_own(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    for i in (1, 2):
        write_rtstruct(tmp_path / f"rs{i}.dcm", contours(scan, f"r{i}"), sop_uid=f"1.2.3.{i}")
        frames = [(1, 4, np.ones(SHAPE[1:]))]
        write_seg(tmp_path / f"seg{i}.dcm", frames, scan, names={1: f"s{i}"}, sop_uid=f"1.2.4.{i}")
    shutil.copy(tmp_path / "rs1.dcm", tmp_path / "rs1-copy.dcm")
    found = discover(tmp_path, RULES)
    (source,) = found.sources
    assert [(label.name, label.structures) for label in source.labels] == [
        ("seg", ((1, "s1"),)),
        ("seg-2", ((1, "s2"),)),
        ("rtstruct", ((1, "r1"),)),
        ("rtstruct-2", ((1, "r2"),)),
    ]
    assert "2 DICOM-SEG files paired with the series they refer to" in found.notes
    assert [label.name for label in read_source(source, IngestConfig()).labels] == [
        "seg",
        "seg-2",
        "rtstruct",
        "rtstruct-2",
    ]


def test_a_label_whose_series_is_missing_is_listed_and_nothing_else_takes_it(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "rs.dcm", contours(scan, "a", "b"), series="1.9.9")
    found = discover(tmp_path, RULES)
    assert [s.labels for s in found.sources] == [()]
    (note,) = [note for note in found.notes if "belong to no series found here" in note]
    assert "rs.dcm (2 structures of series not here)" in note


def test_a_label_file_without_structures_is_listed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ct", small())
    write_rtstruct(tmp_path / "rs.dcm", {})
    assert any("rs.dcm (no structure)" in note for note in discover(tmp_path, RULES).notes)


def test_a_label_that_names_no_series_goes_to_the_only_one_of_its_frame_of_reference(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_dicom(tmp_path / "other", scan, series_uid="1.2.8", tags={"FrameOfReferenceUID": "1.2.8.8"})
    write_rtstruct(tmp_path / "rs.dcm", contours(scan, "a"), series="")
    assert [len(s.labels) for s in discover(tmp_path, RULES).sources] == [1, 0]
    write_dicom(tmp_path / "same", scan, series_uid="1.2.9")
    found = discover(tmp_path, RULES)
    assert [len(s.labels) for s in found.sources] == [0, 0, 0]
    assert any("belong to no series" in note for note in found.notes)


def test_a_label_of_a_series_that_cannot_be_read_is_not_called_homeless(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan, skip=(4,))
    write_rtstruct(tmp_path / "rs.dcm", contours(scan, "a"))
    found = discover(tmp_path, RULES)
    assert (len(found.sources), len(found.failures)) == (0, 1)
    assert not any("belong to no series" in note for note in found.notes)


def test_a_damaged_label_file_is_a_failure_and_the_scans_go_on(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    path = write_rtstruct(tmp_path / "labels" / "rs.dcm", contours(scan, "a"))
    data = pydicom.dcmread(path)
    data.StructureSetROISequence[0].ROINumber = None
    del data.StructureSetROISequence
    data.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    found = discover(tmp_path, RULES)
    assert [s.scan_id for s in found.sources] == ["ct"]
    assert found.failures or any("rs.dcm" in note for note in found.notes)


def test_a_patients_name_in_the_name_of_a_structure_is_not_shown(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "DOE" / "rs.dcm", contours(scan, "GTV Doe 2", "JohnDoe", "heart XK-4711"))
    found = discover(tmp_path, RULES)
    raw = read_source(found.sources[0], IngestConfig())
    shown = repr((found, [label.value_names for label in raw.labels], raw.labels[0].notes)).lower()
    assert not any(word in shown for word in ("doe", "john", "4711"))
    assert raw.labels[0].value_names is not None
    assert raw.labels[0].value_names[1].startswith("GTV anon-")


def test_a_change_of_the_label_file_or_its_structures_is_seen(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    digests, stats = set(), set()
    for names in (("a",), ("b",), ("a", "b")):
        write_rtstruct(tmp_path / "rs.dcm", contours(scan, *names))
        (source,) = discover(tmp_path, RULES).sources
        digests.add(source_digest(source))
        stats.add(str(source_stat(source)))
    assert (len(digests), len(stats)) == (3, 3)


# --- manifests


def test_a_manifest_pairs_a_scan_with_a_label_file(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "rs" / "Doe.dcm", contours(scan, "a", "Doe"), series="1.9.9")
    scan.write(tmp_path / "same_grid.nii.gz")
    (tmp_path / "m.csv").write_text("id,image,label\nx,ct,rs/Doe.dcm\ny,same_grid.nii.gz,rs/Doe.dcm\nz,ct,\n")
    x, y, z = discover(tmp_path / "m.csv", RULES).sources
    for source in (x, y):
        (label,) = source.labels
        assert label.structures[0] == (1, "a")
        assert "doe" not in repr(source).lower()
        masks = [m.array > 0 for m in read_source(source, IngestConfig()).labels]
        assert [mask.sum() for mask in masks] == [masks[0].sum()] * 2
    assert z.labels == ()


def test_labels_in_a_rows_own_folder_are_found(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "study" / "ct", scan)
    write_rtstruct(tmp_path / "study" / "rs.dcm", contours(scan, "a"))
    (tmp_path / "m.csv").write_text("id,image\nx,study\n")
    found = discover(tmp_path / "m.csv", RULES)
    assert [label.structures for label in found.sources[0].labels] == [((1, "a"),)]
    assert "1 RTSTRUCT files paired with the series they refer to" in found.notes


# --- cases


def write_patients(root: Path, *patients: tuple[str, str, str]) -> None:
    """A small series for each (patient id, study, folder)."""
    for i, (patient, study, folder) in enumerate(patients):
        write_dicom(
            root / folder,
            small(i),
            patient_id=patient,
            patient_name=f"P^{i}",
            study_uid=study,
            series_uid=f"1.5.{i}.{ord(folder[-1])}",
        )


def test_series_of_one_patient_are_a_case_over_all_studies_and_a_single_one_is_none(tmp_path: Path) -> None:
    write_patients(
        tmp_path, ("A1", "1.4.1", "a"), ("A1", "1.4.2", "b"), ("B2", "1.4.3", "c"), ("a-1", "1.4.1", "d")
    )
    cases = {s.scan_id: s.case for s in discover(tmp_path, RULES).sources}
    assert cases["a"] == cases["b"] == cases["d"]
    assert cases["a"].startswith("case-")
    assert cases["c"] == ""


@pytest.mark.parametrize("patient", ["", "ANONYMOUS", "0000"])
def test_an_id_that_identifies_nobody_makes_the_study_the_case(tmp_path: Path, patient: str) -> None:
    write_patients(
        tmp_path, *((patient, study, f"{i}") for i, study in enumerate(("1.4.1", "1.4.2", "1.4.1")))
    )
    first, second, third = (s.case for s in discover(tmp_path, RULES).sources)
    assert first == third != ""
    assert second == ""


def test_a_case_is_not_a_hash_of_the_patients_id(tmp_path: Path) -> None:
    write_patients(tmp_path / "one", ("A1", "1.4.1", "a"), ("A1", "1.4.2", "b"))
    write_patients(tmp_path / "two", ("A1", "1.4.8", "a"), ("A1", "1.4.9", "b"))
    one, two = (discover(tmp_path / name, RULES).sources[0].case for name in ("one", "two"))
    assert one != two


def test_rows_of_a_manifest_without_a_case_have_that_of_their_patient(tmp_path: Path) -> None:
    write_patients(tmp_path, ("A1", "1.4.1", "a"), ("A1", "1.4.2", "b"), ("A1", "1.4.1", "c"))
    (tmp_path / "m.csv").write_text("id,image,case\nx,a,\ny,b,\nz,c,mine\n")
    x, y, z = discover(tmp_path / "m.csv", RULES).sources
    assert x.case == y.case != ""
    assert z.case == "mine"


# --- copies


def test_a_slice_exported_twice_is_dropped_with_a_note(tmp_path: Path) -> None:
    scan = small()
    for path in write_dicom(tmp_path, scan)[3:5]:
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{data.SOPInstanceUID}.9"
        data.InstanceNumber, data.AcquisitionNumber = 99, 2
        data.save_as(path.with_name(f"again-{path.name}"))
    found = discover(tmp_path, RULES)
    (source,) = found.sources
    assert (
        "2 DICOM files are copies of others (same series, position and pixels), each counted once"
        in found.notes
    )
    np.testing.assert_array_equal(read_source(source, IngestConfig()).image, scan.image.clip(-1024))


def test_a_whole_series_exported_twice_is_one_volume(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "a", scan)
    write_dicom(tmp_path / "b", scan, tags={"SOPInstanceUID": None})
    (source,) = discover(tmp_path, RULES).sources
    assert len(source.files) == SHAPE[0]


def test_equal_times_of_a_4d_series_stay_volumes_of_their_own(tmp_path: Path) -> None:
    for time in (1, 2):
        tags = {"TemporalPositionIdentifier": time, "SOPInstanceUID": None}
        write_dicom(tmp_path / str(time), small(), tags=tags)
    (failure,) = discover(tmp_path, RULES).failures
    assert "each position holds 2 slices" in failure.reason


@pytest.mark.parametrize("same_uid", [True, False])
def test_another_picture_at_the_same_position_is_refused_even_under_one_uid(
    tmp_path: Path, same_uid: bool
) -> None:
    path = write_dicom(tmp_path, small())[3]
    data = pydicom.dcmread(path)
    data.PixelData = bytes(reversed(data.PixelData))
    data.SOPInstanceUID = data.SOPInstanceUID if same_uid else instance(99)
    data.save_as(path.with_name("other.dcm"))
    (failure,) = discover(tmp_path, RULES).failures
    assert "no two slices may lie at one position" in failure.reason
    assert "with different pixels" in failure.reason
    assert "Keep one acquisition per folder" in failure.remedy


def test_another_slope_is_no_copy(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, small())[3]
    data = pydicom.dcmread(path)
    data.RescaleSlope = 2
    data.save_as(path.with_name("other.dcm"))
    assert len(discover(tmp_path, RULES).failures) == 1
