"""The layout of nnU-Net: parts, names of channels and labels, and what a dataset.json promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.discovery.layouts.drawn_trees import (
    ORGANS,
    write,
    write_json,
    write_labels,
)
from tests.pipeline.discovery.layouts.test_layouts import found, said


def test_a_part_for_validation_has_its_labels_names_and_split(tmp_path: Path) -> None:
    drawn_nnunet(tmp_path)
    for part in ("Va", "Val"):
        write(tmp_path, f"images{part}/p{part}_0000.nii.gz")
        write_labels(tmp_path, f"labels{part}/p{part}.nii.gz")
    discovery = found(tmp_path)
    assert {s.split: s.modality for s in discovery.sources} == {"train": "ct", "val": "ct"}
    assert all(s.labels[0].value_names for s in discovery.sources)
    assert len(discovery.sources) == 3


def drawn_nnunet(root: Path, **changes: object) -> Path:
    write(root, "imagesTr/p1_0000.nii.gz")
    write_labels(root, "labelsTr/p1.nii.gz")
    facts = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **ORGANS, "plate": 5},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    write_json(root, "dataset.json", facts | changes)
    return root


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"numTraining": 9}, "dataset.json promises 9 training cases, there are 1"),
        (
            {"channel_names": {"1": "CT"}},
            "dataset.json names no channel 0000: the modality of these",
        ),
        ({"dataset": {"p1": {}}}, "a dataset.json lists its files itself"),
    ],
)
def test_what_a_dataset_json_promises_and_is_not_so_is_told(
    tmp_path: Path, changes: dict[str, object], note: str
) -> None:
    discovery = found(drawn_nnunet(tmp_path, **changes))
    assert len(discovery.sources) == 1
    assert any(one.startswith(note) for one in discovery.notes)


@pytest.mark.parametrize(
    ("ending", "kind", "reason"),
    [(".png", "NotVolumetric", "its images are 2D"), (".tif", "NotAnImage", "which are not read")],
)
def test_a_data_set_of_other_files_is_one_failure_and_the_others_go_on(
    tmp_path: Path, ending: str, kind: str, reason: str
) -> None:
    drawn_nnunet(tmp_path / "Dataset001_Flat", file_ending=ending)
    for path in (tmp_path / "Dataset001_Flat").rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
    drawn_nnunet(tmp_path / "Dataset002_Volumes")
    discovery = found(tmp_path)
    (failure,) = discovery.failures
    assert (failure.location, failure.kind) == ("Dataset001_Flat", kind)
    assert reason in failure.reason
    assert [one.scan_id for one in discovery.sources] == ["Dataset002_Volumes_p1_0000"]


def test_nnunet_of_the_first_version_has_a_file_for_each_channel(tmp_path: Path) -> None:
    write(tmp_path, "imagesTr/p1_0000.nii.gz", "imagesTr/p1_0001.nii.gz")
    write_labels(tmp_path, "labelsTr/p1.nii.gz")
    write_json(
        tmp_path,
        "dataset.json",
        {"modality": {"0": "CT", "1": "PET"}, "labels": {str(v): f"part {v}" for v in range(6)}},
    )
    assert said(found(tmp_path)) == {
        "p1_0000": ("ct", "train", "p1", ("label",)),
        "p1_0001": ("pet", "train", "p1", ("label",)),
    }


def test_a_dataset_json_that_is_none_leaves_the_folder_to_the_pairing_by_name(tmp_path: Path) -> None:
    write(tmp_path, "imagesTr/p1_0000.nii.gz")
    write_labels(tmp_path, "labelsTr/p1.nii.gz")
    for text in ("{", "[]", '{"channel_names": 3}', '{"modality": {"x": "CT"}}'):
        (tmp_path / "dataset.json").write_text(text)
        assert said(found(tmp_path)) == {"p1_0000": (None, "train", "", ("label",))}
