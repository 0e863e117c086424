"""What is found below a folder or in a manifest: scans, labels, ids, and what is wrong with the rest."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import pipeline.discovery.from_manifest
from pipeline.discovery.fingerprint import source_digest, source_stat
from pipeline.discovery.from_path import Discovery, discover
from pipeline.discovery.label_names import parse_value_names
from pipeline.discovery.pairing import pair
from pipeline.discovery.sources import Source, check_scan_id, distinct_ids, id_from_parts
from pipeline.errors import (
    CorruptImage,
    ManifestError,
    NotAnImage,
    NotVolumetric,
    ScanError,
    UnreadableFile,
    UnsafeId,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_scan_header, read_source
from tests.phantom import phantom, write_dicom

CONFIG = IngestConfig()
RULES = CONFIG.series_rules


def touch(root: Path, *names: str) -> Path:
    """Empty files: a search opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs(found: Discovery) -> dict[str, list[str]]:
    return {s.scan_id: [f"{label.name}:{label.path.name}" for label in s.labels] for s in found.sources}


# --- folders


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_single_file_format_is_found_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    (source,) = discover(touch(tmp_path, f"a/case{suffix}"), RULES).sources
    assert (source.scan_id, source.location, source.format) == ("a_case", f"a/case{suffix}", "file")


@pytest.mark.parametrize("word", ["label", "seg", "gt", "mask", "labels", "segmentation", "SEG"])
@pytest.mark.parametrize("image", ["X", "X_image", "X_img"])
def test_a_label_beside_its_scan_is_paired_by_its_last_word(tmp_path: Path, word: str, image: str) -> None:
    found = discover(touch(tmp_path, f"p/{image}.nii.gz", f"p/X_{word}.nrrd"), RULES)
    assert list(pairs(found)) == [f"p_{image}"]
    assert len(found.sources[0].labels) == 1
    assert any("paired by name" in note for note in found.notes)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/X.nii.gz", "labels/X.nii.gz"),
        ("d/images/s/X.mha", "d/labels/s/X.nii.gz"),
        ("imagesTr/X.nii.gz", "labelsTr/X.nii.gz"),
        ("imagesTr/X_0000.nii.gz", "labelsTr/X.nii.gz"),
        ("imagesTs/X_0000.nii.gz", "labelsTs/X.nii.gz"),
    ],
)
def test_a_folder_of_labels_is_paired_with_its_folder_of_images(
    tmp_path: Path, image: str, label: str
) -> None:
    found = discover(touch(tmp_path, image, label), RULES)
    (labels,) = pairs(found).values()
    assert labels == [f"label:{Path(label).name}"]


def test_every_channel_of_a_scan_gets_its_label_and_keeps_its_number(tmp_path: Path) -> None:
    found = discover(
        touch(tmp_path, "imagesTr/X_0000.nii.gz", "imagesTr/X_0001.nii.gz", "labelsTr/X.nii.gz"), CONFIG
    )
    assert pairs(found) == {"X_0000": ["label:X.nii.gz"], "X_0001": ["label:X.nii.gz"]}
    assert {s.split for s in found.sources} == {"train"}


def test_two_labels_of_one_scan_keep_their_own_names(tmp_path: Path) -> None:
    found = discover(
        touch(tmp_path, "X.nii.gz", "X_seg.nii.gz", "X_gt.nii.gz", "X_mask.nii", "X_masks.nii"), CONFIG
    )
    assert pairs(found) == {
        "X": ["gt:X_gt.nii.gz", "mask:X_mask.nii", "mask-2:X_masks.nii", "seg:X_seg.nii.gz"]
    }


@pytest.mark.parametrize(
    "orphan",
    [
        "lonely_seg.nii.gz",
        "example_seg_mr.nii.gz",
        "labels/Y.nii.gz",
        "p/segmentations/liver.nii.gz",
        "p/mask.nii",
    ],
)
def test_a_label_without_a_scan_is_noted_and_never_taken_for_one(tmp_path: Path, orphan: str) -> None:
    found = discover(touch(tmp_path, "X.nii.gz", orphan), RULES)
    assert list(pairs(found)) == ["X"]
    assert any(orphan in note and "belong to no scan" in note for note in found.notes)


def test_an_exact_name_goes_before_a_name_with_image(tmp_path: Path) -> None:
    found = discover(touch(tmp_path, "X.nii.gz", "X_image.nii.gz", "X_mask.nii.gz"), RULES)
    assert pairs(found) == {"X": ["mask:X_mask.nii.gz"], "X_image": []}


def test_a_name_that_only_contains_the_letters_of_a_label_word_is_a_scan(tmp_path: Path) -> None:
    found = discover(touch(tmp_path, "gtx.nii.gz", "masked.nii.gz", "segment1.nii.gz"), RULES)
    assert list(pairs(found)) == ["gtx", "masked", "segment1"]


@given(
    st.lists(
        st.sampled_from(["X", "X_seg", "X_image", "X_label", "labels/X", "images/X", "Y_gt", "images/Y_0000"])
    )
)
def test_no_label_is_ever_a_scan_and_nothing_is_lost(names: list[str]) -> None:
    paths = sorted({Path(f"{name}.nii.gz") for name in names})
    found = pair(paths)
    scans = {p.image for p in found.scans}
    labels = {path for p in found.scans for _, path in p.labels}
    assert not scans & labels
    assert scans | labels | set(found.orphans) == set(paths)
    assert not any(word in p.name for p in scans for word in ("_seg", "_label", "_gt"))
    assert not any("labels" in p.parts for p in scans)


def test_ids_that_look_alike_are_all_told_apart(tmp_path: Path) -> None:
    found = discover(
        touch(tmp_path, "a b.nii.gz", "a-b.nii.gz", "a/b.nii.gz", "a_b.mha", "ä.nii.gz", "c.nii"), CONFIG
    )
    ids = [s.scan_id for s in found.sources]
    assert len(set(ids)) == 6
    assert "c" in ids
    assert all(check_scan_id(i) for i in ids)
    again = discover(tmp_path, RULES)
    assert [s.scan_id for s in again.sources] == ids


def test_other_files_are_counted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "notes.txt", "x.json", ".DS_Store", "._a.nii.gz", "archive.tar.gz", "README")
    found = discover(tmp_path, RULES)
    assert list(pairs(found)) == ["a"]
    assert any("4 files of other kinds" in note for note in found.notes)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.nii.gz")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "raw")
    assert list(pairs(discover(tmp_path / "raw", RULES, follow_links=True))) == ["link_a"]


def test_a_single_file_is_one_scan_with_its_label(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert list(pairs(discover(tmp_path / "b.nii.gz", RULES))) == ["b"]


def test_a_folder_that_cannot_be_listed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.nii.gz", "shut/b.nii.gz")
    real = os.scandir

    def listing(folder: Path):
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", listing)
    found = discover(tmp_path, RULES)
    assert list(pairs(found)) == ["a"]
    assert [(f.location, f.kind) for f in found.failures] == [("shut", "UnreadableFile")]


def test_nothing_at_the_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file or folder"):
        discover(tmp_path / "gone", RULES)


def test_a_detached_header_brings_its_data_file(tmp_path: Path) -> None:
    phantom().write(tmp_path / "x.mhd")
    (source,) = discover(tmp_path, RULES).sources
    assert [p.name for p in source.files] == ["x.mhd", "x.zraw"]
    assert read_source(source, CONFIG).image.shape == (36, 60, 70)


def calls_to_discover(root: Path, num_scans: int) -> int:
    """Functions called while so many scans with labels are found: work, whatever the speed of the machine."""
    for i in range(num_scans):
        touch(root, f"images/case_{i:04d}.nii.gz", f"labels/case_{i:04d}.nii.gz")
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        found = discover(root, RULES)
    finally:
        sys.setprofile(None)
    assert len(found.sources) == num_scans
    assert all(source.labels for source in found.sources)
    return calls


def test_four_times_as_many_files_are_about_four_times_the_work(tmp_path: Path) -> None:
    few, many = calls_to_discover(tmp_path / "few", 100), calls_to_discover(tmp_path / "many", 400)
    assert many < 5 * few


# --- names of label values


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"1": "liver", "0": "background"}, {1: "liver"}),
        ({"liver": 1, "background": 0}, {1: "liver"}),
        ({"labels": {"0": "background", "2": "spleen"}, "name": "x"}, {2: "spleen"}),
        ({"labels": {"background": 0, "spleen": 2}}, {2: "spleen"}),
        ({"total": {"1": "liver"}, "other": {"1": "lung"}}, None),
        ({"Author": "me", "Date": "today"}, None),
        ([1, 2], None),
    ],
)
def test_tables_of_label_names(data: object, names: dict[int, str] | None) -> None:
    assert parse_value_names(data, None) == names


def test_one_of_several_tables_is_chosen_by_its_key() -> None:
    assert parse_value_names({"total": {"1": "liver"}, "b": {"1": "lung"}}, "b") == {1: "lung"}


@pytest.mark.parametrize("place", ["labels/X.json", "labels/label_names.json", "dataset.json"])
def test_names_are_found_beside_the_labels(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "images/X.nii.gz", "labels/X.nii.gz")
    (tmp_path / place).write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    (source,) = discover(tmp_path, RULES).sources
    assert source.labels[0].value_names == {1: "liver"}


@pytest.mark.parametrize("text", ["{oops", "[1, 2]", '{"a": {"1": "x"}, "b": {"1": "y"}}'])
def test_a_table_beside_the_labels_that_tells_no_names_is_noted_once(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "images/X.nii.gz", "labels/X.nii.gz", "images/Y.nii.gz", "labels/Y.nii.gz")
    (tmp_path / "labels" / "label_names.json").write_text(text)
    (tmp_path / "labels" / "X.json").write_text(text)  # of the label alone: not noted
    found = discover(tmp_path, RULES)
    assert [source.labels[0].value_names for source in found.sources] == [None, None]
    assert len([note for note in found.notes if "label_names.json holds no single table" in note]) == 1
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}}))
    assert discover(tmp_path, RULES).sources[0].labels[0].value_names == {1: "liver"}


# --- manifests


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


# --- ids


@given(st.lists(st.text(max_size=200), min_size=1, max_size=4))
def test_any_path_gives_a_safe_id(parts: list[str]) -> None:
    assert check_scan_id(id_from_parts(parts))


def test_ids_that_are_cut_stay_apart() -> None:
    long = id_from_parts(["x" * 200, "a"])
    assert check_scan_id(long) == long
    assert long != id_from_parts(["x" * 200, "b"])
    assert long.startswith("x" * 100)
    assert id_from_parts(["x" * 128]) == "x" * 128


def test_a_source_names_its_files_and_the_item_of_its_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source a has no files"):
        Source(scan_id="a", format="file", files=(), location="a")
    with pytest.raises(ValueError, match="a scan of a set, and no other, has an item"):
        Source(scan_id="a", format="set", files=(tmp_path / "a.npz",), location="a")


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.sampled_from(["a", "b", "x" * 128]), max_size=8))
def test_distinct_ids_are_distinct_and_safe(wanted: dict[str, str]) -> None:
    ids = distinct_ids(wanted)
    assert len(set(ids.values())) == len(wanted)
    assert all(check_scan_id(i) for i in ids.values())


# --- fingerprints


def test_the_digest_follows_content_and_choices_and_not_names(tmp_path: Path) -> None:
    scan = phantom()
    first = scan.write(tmp_path / "a" / "x.nii.gz")
    second = tmp_path / "b" / "other.nii.gz"
    second.parent.mkdir()
    second.write_bytes(first.read_bytes())
    text = "id,image,modality,label,case\n{id},{image},{modality},{label},{case}\n"

    def digest(**row: str) -> str:
        row = {"id": "x", "modality": "", "label": "", "case": ""} | row
        (source,) = discover(manifest(tmp_path, text.format(**row)), RULES).sources
        return source_digest(source)

    same = digest(image="a/x.nii.gz")
    assert digest(image="b/other.nii.gz") == same
    assert digest(image="a/x.nii.gz", modality="ct") != same
    scan.write_labels(tmp_path / "l.nii.gz")
    assert digest(image="a/x.nii.gz", label="l.nii.gz") != same
    assert len({same, digest(image="a/x.nii.gz", case="p"), digest(image="a/x.nii.gz", case="q")}) == 3
    scan.replace(image=scan.image + 1).write(first)
    assert digest(image="a/x.nii.gz") != same


def test_the_stat_changes_with_any_slice(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "s", phantom())
    (source,) = discover(tmp_path, RULES).sources
    before = source_stat(source)
    assert len(before) == 1
    assert before == source_stat(source)
    os.utime(paths[4], ns=(1, 1))
    assert source_stat(source) != before


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


def test_a_header_shows_what_reading_would_refuse(tmp_path: Path) -> None:
    scan = phantom()
    scan.write(tmp_path / "cut.nii")
    with (tmp_path / "cut.nii").open("r+b") as file:
        file.truncate(5000)
    scan.replace(image=scan.image[:1], grid=dataclasses.replace(scan.grid, shape_zyx=(1, 60, 70))).write(
        tmp_path / "flat.mha"
    )
    scan.write(tmp_path / "good.nii.gz")
    found = {source.scan_id: source for source in discover(tmp_path, RULES).sources}
    for scan_id, error in (("cut", CorruptImage), ("flat", NotVolumetric)):
        with pytest.raises(error) as told:
            read_scan_header(found[scan_id], IngestConfig())
        assert str(tmp_path) not in str(told.value)
        with pytest.raises(error):
            read_source(found[scan_id], IngestConfig())
    assert read_scan_header(found["good"], IngestConfig()).num_voxels == 36 * 60 * 70
