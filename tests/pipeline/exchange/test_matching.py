"""Which files of masks belong to which scan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import LabelMismatch
from pipeline.exchange import find_masks
from pipeline.exchange.matching import match_name

IDS = ("case_1", "case_10", "case_10_ct", "s0001_ct", "t1_a", "t1_b")


@pytest.mark.parametrize(
    ("names", "scan_id"),
    [
        (["case_1"], "case_1"),
        (["case_10"], "case_10"),
        (["CASE_10-liver"], "case_10"),
        (["case_10_ct_liver"], "case_10_ct"),
        (["liver", "case_1"], "case_1"),
        (["liver", "segmentations", "s0001"], "s0001_ct"),
        (["s0001"], "s0001_ct"),
    ],
)
def test_the_longest_id_that_a_name_begins_with_is_taken(names: list[str], scan_id: str) -> None:
    assert match_name(names, IDS, shown="x") == scan_id


def test_a_name_that_fits_several_scans_is_refused() -> None:
    with pytest.raises(LabelMismatch, match="fits 2 scans: t1_a, t1_b"):
        match_name(["t1"], IDS, shown="x")


@pytest.mark.parametrize("name", ["case_2", "case", "case_1a", "liver"])
def test_a_name_that_only_looks_alike_fits_no_scan(name: str) -> None:
    with pytest.raises(LabelMismatch):
        match_name([name], IDS, shown="x")


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_of_binary_masks_are_taken_scan_by_scan(tmp_path: Path) -> None:
    touch(tmp_path / "set" / "s0001" / "ct.nii.gz")
    touch(tmp_path / "set" / "s0001" / "segmentations" / "liver.nii.gz")
    touch(tmp_path / "set" / "case_1" / "spleen.nii.gz")
    touch(tmp_path / "set" / "meta.csv")
    touch(tmp_path / "set" / "labelsTr" / "case_10.nii.gz")
    found = find_masks([tmp_path / "set"], IDS)
    assert not found.failures
    assert {scan: [(one.kind, one.path.name) for one in some] for scan, some in found.inputs.items()} == {
        "case_1": [("folder", "case_1")],
        "case_10": [("image", "case_10.nii.gz")],
        "s0001_ct": [("folder", "segmentations")],
    }


def test_json_of_names_in_a_folder_is_no_file_of_masks(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "case_1.nii.gz")
    touch(tmp_path / "in" / "case_1.json", json.dumps({"1": "liver"}))
    touch(tmp_path / "in" / "t1_a.json", json.dumps({"masklet": [[]]}))
    found = find_masks([tmp_path / "in"], IDS)
    assert sorted(found.inputs) == ["case_1", "t1_a"]
    assert [one.kind for one in found.inputs["case_1"]] == ["image"]


def test_files_that_cannot_be_used_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    good = touch(tmp_path / "case_1.nii.gz")
    found = find_masks([tmp_path / "gone.nii.gz", touch(tmp_path / "case_1.pkl"), good], IDS)
    assert [error.path for error in found.failures] == ["gone.nii.gz", "case_1.pkl"]
    assert list(found.inputs) == ["case_1"]
