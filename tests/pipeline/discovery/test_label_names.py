"""Names of label values, and where they are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.discovery.from_path import discover
from pipeline.discovery.label_names import parse_value_names
from tests.pipeline.discovery.test_discovery import RULES, touch


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
