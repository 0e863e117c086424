"""What is found below a folder or in a manifest: scans, labels, ids, and what is wrong with the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.discovery.from_path import Discovery, discover
from pipeline.discovery.pairing import pair
from pipeline.discovery.sources import Source, check_scan_id, distinct_ids, id_from_parts
from pipeline.errors import (
    UnreadableFile,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from tests.phantom import phantom

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
