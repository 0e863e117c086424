"""Classes and splits: what a labels.csv says is taken, and what makes no sense is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage import Store
from tests.training.blob_store import kind_of, write_labels
from training.classification.labels import ClassTable, read_class_table, split_classes
from training.errors import DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("name,class\ntrain-00,0\n", "has no column `id`"),
        ("id,class,class\ntrain-00,0,0\n", "two columns of one name"),
        ("id,split\ntrain-00,train\n", "there is no class in it"),
        ("id,class\ntrain-00,0\ntrain-00,1\n", r"1 ids occur more than once \(train-00\)"),
        ("id,class\ntrain-00,0\nnobody,1\n", r"1 of 2 ids are not in .*store \(nobody\)"),
        ("id,class\ntrain-00,0\ntrain-01,0\n", "all 2 scans are of the class '0'"),
        ("id,class\ntrain-00,0\ntrain-01,\n", r"1 scans have no class \(train-01\)"),
        ("id,class\ntrain-00,0,1\n", "row 2 has 3 cells under 2 columns"),
        ("id,sick\ntrain-00,0\ntrain-01,yes\n", "scan train-01: the column 'sick' must be 0 or 1, got 'yes'"),
        ("id,class,split\ntrain-00,0,train\ntrain-01,1,west\n", "the split 'west' is none of"),
        ("id,class,split\ntrain-00,0,train\ntrain-01,1,\n", r"1 rows have no split \(train-01\)"),
    ],
)
def test_a_labels_file_that_makes_no_sense_is_refused_in_a_sentence(
    text: str, message: str, blobs: Store, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_class_table(path, blobs)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_labels_file_that_is_not_there_is_named(blobs: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv: cannot be opened \(No such file or directory\)"):
        read_class_table(tmp_path / "labels.csv", blobs)


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        (["", "", "", ""], "0101", "no scan is of the split 'train'.*--test-fraction"),
        (["train"] * 4, "0101", "no scan is of the split 'test'"),
        (["train", "train", "test", "test"], "0001", "all 2 training scans are of the class '0'"),
        (["train", "train", "test", "test"], "0100", "are of one class; an AUC needs two"),
        (["train", "train", "test", "test"], "0102", "no training scan is of the class '2'"),
        (["train", "train", "test", ""], "0101", "1 scans have no split"),
    ],
)
def test_a_split_that_cannot_be_learned_or_tested_is_refused_in_a_sentence(
    splits: list[str], classes: str, message: str
) -> None:
    names = tuple(sorted(set(classes)))
    table = ClassTable(
        source="labels.csv",
        ids=("a", "b", "c", "d"),
        classes=names,
        targets=np.array([[name == one for name in names] for one in classes], dtype=np.float32),
        multi_label=False,
        splits=tuple(splits),
    )
    with pytest.raises(DataError, match=message) as caught:
        split_classes(table)
    assert str(caught.value).startswith("labels.csv: ")


def test_a_drawn_test_part_has_its_share_of_every_class() -> None:
    classes = [0] * 30 + [1] * 10
    table = ClassTable(
        source="x",
        ids=tuple(map(str, range(40))),
        classes=("0", "1"),
        targets=np.eye(2, dtype=np.float32)[classes],
        multi_label=False,
        splits=("",) * 40,
    )
    split = split_classes(table, test_fraction=0.3, seed=1)
    assert [sum(classes[k] == one for k in split.test) for one in (0, 1)] == [9, 3]
    assert sorted((*split.train, *split.test)) == list(range(40))
    assert split == split_classes(table, test_fraction=0.3, seed=1)
    assert split != split_classes(table, test_fraction=0.3, seed=2)
    with pytest.raises(DataError, match="--test-fraction must be above 0"):
        split_classes(table, test_fraction=1.5)


def test_scans_of_one_case_are_drawn_together() -> None:
    classes = [k // 2 % 2 for k in range(60)]
    table = ClassTable(
        source="x",
        ids=tuple(map(str, range(60))),
        classes=("0", "1"),
        targets=np.eye(2, dtype=np.float32)[classes],
        multi_label=False,
        splits=("",) * 60,
        cases=tuple(f"case {k // 2}" for k in range(60)),
    )
    for seed in range(5):
        test = set(split_classes(table, test_fraction=0.4, seed=seed).test)
        assert len(test) == 24
        assert all((2 * k in test) == (2 * k + 1 in test) for k in range(30))


def test_validation_scans_are_the_test_where_there_is_no_other(blobs: Store, tmp_path: Path) -> None:
    def split(scan_id: str) -> str:
        return {"test": "training"}.get(scan_id.split("-")[0], scan_id.split("-")[0])

    path = write_labels(tmp_path / "labels.csv", blobs, **{"class": kind_of, "split": split})
    parts = split_classes(read_class_table(path, blobs))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (32, 0, 8)
    assert parts.tested_on == "val"


def test_columns_of_0_and_1_are_classes_that_a_scan_may_have_together(blobs: Store, tmp_path: Path) -> None:
    path = write_labels(
        tmp_path / "labels.csv", blobs, Sick=kind_of, old=lambda scan_id: 1 - kind_of(scan_id)
    )
    table = read_class_table(path, blobs)
    assert (table.classes, table.multi_label) == (("Sick", "old"), True)
    assert table.targets[:2].tolist() == [[0, 1], [1, 0]]
