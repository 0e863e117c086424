"""A manifest: what its rows tell of scans, and rows that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pipeline.discovery.from_manifest
from pipeline.discovery.from_path import discover
from pipeline.discovery.sources import check_scan_id
from pipeline.errors import (
    ManifestError,
    NotAnImage,
    ScanError,
    UnreadableFile,
    UnsafeId,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_scan_header, read_source
from tests.phantom import phantom, write_dicom
from tests.pipeline.discovery.test_discovery import CONFIG, RULES


def manifest(tmp_path: Path, text: str, name: str = "scans.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    scan = phantom()
    scan.write(tmp_path / "d" / "a.nii.gz")
    scan.write_labels(tmp_path / "d" / "organs.nii.gz")
    scan.write(tmp_path / "d" / "b.mha")
    write_dicom(tmp_path / "d" / "series", scan, patient_name="")
    (tmp_path / "d" / "names.json").write_text(json.dumps({"t": {str(i): f"part {i}" for i in range(1, 6)}}))
    return tmp_path


def test_a_csv_manifest_tells_everything_about_a_scan(data: Path) -> None:
    path = manifest(
        data,
        "id,image,label,label_names,modality,dataset,split,frame,class,comment\n"
        "one,d/a.nii.gz,d/organs.nii.gz,d/names.json#t,CT,set,train,,2,hello\n"
        "two,d/b.mha,,,,,,,,\n"
        "three,d/series,,,,,,,,\n",
    )
    found = discover(path, RULES)
    assert not found.failures
    one, three, two = found.sources
    assert (one.scan_id, one.modality, one.dataset, one.split) == ("one", "ct", "set", "train")
    assert one.labels[0].value_names == {i: f"part {i}" for i in range(1, 6)}
    assert (two.modality, two.dataset, two.location) == (None, "scans", "d/b.mha")
    assert (three.format, len(three.files)) == ("dicom", 36)
    assert "columns of the manifest not used: comment" in found.notes
    raw = read_source(one, CONFIG)
    assert (raw.modality, raw.modality_origin) == ("ct", "manifest")
    assert read_source(three, CONFIG).modality_origin == "dicom"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "m.jsonl",
            '{"id": "one", "image": "d/a.nii.gz", "frame": null}\n\n{"ID": "two", "image": "d/b.mha"}\n',
        ),
        ("m.csv", "\ufeffid;image\r\none;d/a.nii.gz\r\ntwo;d/b.mha\r\n"),
        ("m.tsv", "id\timage\none\td/a.nii.gz\ntwo\td/b.mha\n"),
        ("m.csv", 'id,image,comment\none,"d/a.nii.gz","x, y"\n\n,,\ntwo,d/b.mha\n'),
    ],
)
def test_the_same_manifest_in_other_forms(data: Path, name: str, text: str) -> None:
    found = discover(manifest(data, text, name), RULES)
    assert [s.scan_id for s in found.sources] == ["one", "two"]
    assert not found.failures


def test_two_scans_with_one_id_are_both_refused_and_told_together(data: Path) -> None:
    found = discover(manifest(data, "id,image\none,d/a.nii.gz\none,d/b.mha\ntwo,d/b.mha\n"), RULES)
    assert [s.scan_id for s in found.sources] == ["two"]
    (failure,) = found.failures
    assert (failure.scan_id, failure.kind) == ("one", "DuplicateId")
    assert "d/a.nii.gz" in failure.location
    assert "d/b.mha" in failure.location
    assert "lines 2, 3" in failure.reason


@pytest.mark.parametrize(
    "bad", ["../x", "/etc/x", "a/b", "..", ".", "", "x" * 129, "a b", "a\\b", "-a", ".a", "ü", "a\x00b"]
)
def test_an_id_that_could_leave_its_folder_is_refused(data: Path, bad: str) -> None:
    with pytest.raises(UnsafeId):
        check_scan_id(bad)
    lines = [json.dumps({"id": bad, "image": "d/a.nii.gz"}), json.dumps({"id": "good", "image": "d/b.mha"})]
    found = discover(manifest(data, "\n".join(lines), "m.jsonl"), RULES)
    assert [s.scan_id for s in found.sources] == ["good"]
    (failure,) = found.failures
    assert (failure.kind, failure.scan_id) == ("UnsafeId", "manifest-line-1")


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ("one,gone.nii.gz,,,", "UnreadableFile", "does not exist"),
        ("one,,,,", "ManifestError", "image is empty"),
        ("one,d/a.nii.gz,gone.nii.gz,,", "UnreadableFile", "label file does not exist"),
        ("one,d/a.nii.gz,,xray,", "ManifestError", "modality must be ct, mr or pet"),
        ("one,d/a.nii.gz,,,first", "ManifestError", "frame must be a whole number"),
        ("one,d,,,", "", ""),
        ("one,d/a.nii.gz,,,,extra", "ManifestError", "6 cells under 5 columns"),
    ],
)
def test_a_row_that_makes_no_sense_fails_alone(data: Path, row: str, kind: str, reason: str) -> None:
    found = discover(manifest(data, f"id,image,label,modality,frame\n{row}\ntwo,d/b.mha,,,\n"), RULES)
    assert "two" in [s.scan_id for s in found.sources]
    if kind:
        (failure,) = found.failures
        assert failure.kind == kind
        assert reason in failure.reason
        assert failure.remedy


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        ("d/gone.json", "UnreadableFile", "cannot be opened"),
        ("d/noise", "LabelMismatch", "must be a JSON object"),
        ("d/names.json#other", "LabelMismatch", "with the key 'other'"),
    ],
)
def test_names_that_a_manifest_promises_must_be_there(data: Path, names: str, kind: str, reason: str) -> None:
    (data / "d" / "noise").write_bytes(b"y" * 300)
    text = f"id,image,label,label_names\none,d/a.nii.gz,d/organs.nii.gz,{names}\ntwo,d/b.mha,,\n"
    found = discover(manifest(data, text), RULES)
    assert [s.scan_id for s in found.sources] == ["two"]
    (failure,) = found.failures
    assert (failure.kind, failure.scan_id) == (kind, "one")
    assert reason in failure.reason


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_a_manifest_may_name_one_dicom_file(data: Path, suffix: str) -> None:
    import pydicom

    path = write_dicom(data / "one", phantom(), suffix=suffix, patient_name="")[4]
    frames = pydicom.dcmread(path)
    frames.NumberOfFrames, frames.PixelData = 5, frames.PixelData * 5
    frames.save_as(data / f"many{suffix}")
    found = discover(manifest(data, f"id,image\none,one/{path.name}\nmany,many{suffix}\n"), RULES)
    assert not found.sources
    reasons = {failure.scan_id: failure.reason for failure in found.failures}
    assert "at least 3 slices, this has 1" in reasons["one"]
    assert "position" in reasons["many"]


def test_a_file_that_is_no_dicom_is_left_to_the_reader_of_images(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "d" / "noise").write_bytes(b"y" * 300)

    def failing(_: Path) -> bool:
        raise OSError(5, "Input/output error")

    for _ in range(2):
        (source,) = discover(manifest(data, "id,image\none,d/noise\n"), RULES).sources
        assert source.format == "file"
        with pytest.raises(ScanError, match=r"no NIfTI, .* or MetaImage"):
            read_source(source, CONFIG)
        monkeypatch.setattr(pipeline.discovery.from_manifest, "has_dicom_preamble", failing)


def test_a_series_that_a_folder_lacks_or_that_is_irregular_fails_its_row_alone(data: Path) -> None:
    write_dicom(data / "gap", phantom(), skip=(7,), patient_name="")
    (data / "none").mkdir()
    text = "id,image,series\none,d/series,9.9\ntwo,gap,\nthree,none,\nfour,d/b.mha,\n\n,,\n"
    found = discover(manifest(data, text), RULES)
    assert [s.scan_id for s in found.sources] == ["four"]
    reasons = {failure.scan_id: failure.reason for failure in found.failures}
    assert reasons["one"] == "the folder holds no DICOM series with this SeriesInstanceUID"
    assert "slices are missing" in reasons["two"]
    assert reasons["three"] == "the folder holds no DICOM series"
    assert len(reasons) == 3  # an empty row is none


def test_a_manifest_must_be_text_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scans.csv"
    path.write_bytes("id,image\none,ä.nii\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="no UTF-8 text"):
        discover(path, RULES)
    path.write_text("id,image\none," + "x" * 200_000 + "\n")
    with pytest.raises(ManifestError, match="no CSV"):
        discover(path, RULES)

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UnreadableFile, match="cannot be opened"):
        discover(path, RULES)


@pytest.mark.parametrize("text", ["", "id,image\n", "name,path\nx,y\n", "id,id,image\n1,2,3\n"])
def test_a_file_that_is_no_manifest_is_refused_as_a_whole(tmp_path: Path, text: str) -> None:
    with pytest.raises(ManifestError):
        discover(manifest(tmp_path, text), RULES)


def test_a_line_of_jsonl_that_is_no_json_fails_alone(data: Path) -> None:
    found = discover(manifest(data, '{"id": "one", "image": "d/a.nii.gz"}\n{oops\n[1]\n', "m.jsonl"), RULES)
    assert [s.scan_id for s in found.sources] == ["one"]
    assert [f.scan_id for f in found.failures] == ["manifest-line-2", "manifest-line-3"]


def test_a_folder_with_two_series_needs_a_choice(data: Path) -> None:
    write_dicom(data / "d" / "series" / "more", phantom(), series_uid="1.2.3.4", patient_name="")
    found = discover(manifest(data, "id,image\none,d/series\n"), RULES)
    assert "holds 2" in found.failures[0].reason
    found = discover(manifest(data, "id,image,series\none,d/series,1.2.3.4\n"), RULES)
    assert found.sources[0].files[0].parent.name == "more"


def test_voxels_are_counted_from_headers_alone(data: Path) -> None:
    found = discover(manifest(data, "id,image\na,d/a.nii.gz\nb,d/b.mha\nc,d/series\n"), RULES)
    headers = [read_scan_header(s, IngestConfig()) for s in found.sources]
    assert [header.shape_zyx for header in headers] == [(36, 60, 70)] * 3
    for header in headers:
        assert header.spacing_zyx_mm == pytest.approx((3.0, 1.2, 1.3))
        assert header.voxels_at(1.5) == 72 * 48 * 61
    found.sources[0].files[0].write_bytes(b"nothing")
    with pytest.raises(NotAnImage):
        read_scan_header(found.sources[0], IngestConfig())
