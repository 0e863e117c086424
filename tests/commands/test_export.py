"""`mass export`: what it writes is read back, by readers written from the layouts' descriptions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from commands.main import main
from pipeline.discovery import discover
from pipeline.ingest import IngestConfig, read_source, standardize
from pipeline.volumes import Grid
from storage import LabelVolume, Scan, about_imports, commit_scan, open_store
from tests.exchange_store import draw_store, two_phantoms
from tests.phantom import STRUCTURES
from tests.storage.drawn_record import store_bytes


def crossing_masks(shape: tuple[int, ...], number: int = 9) -> NDArray[np.bool_]:
    """Return masks that cross, nest and are equal, bool (N, z, y, x)."""
    rng = np.random.default_rng(11)
    masks = np.zeros((number, *shape), dtype=np.bool_)
    for mask in masks[:-1]:
        start = [int(rng.integers(0, size - 3)) for size in shape]
        stop = [int(rng.integers(low + 1, size + 1)) for low, size in zip(start, shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    masks[-1] = masks[2]
    return masks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two scans with imported masks that overlap."""
    folder = tmp_path_factory.mktemp("export")
    store = draw_store(folder, two_phantoms())
    for scan_id in store.scan_ids:
        np.savez(folder / f"{scan_id}.npz", masks=crossing_masks(store.scan(scan_id).shape))
    files = [str(folder / f"{scan_id}.npz") for scan_id in store.scan_ids]
    assert (
        main(
            ["import-masks", str(store.path), *files, "--source", "sam2", "--grid", "stored", "--axes", "zyx"]
        )
        == 0
    )
    return folder


def run(folder: Path, out: Path, *words: object) -> tuple[int, dict[str, Any]]:
    told = out.parent / "told.json"
    told.unlink(missing_ok=True)
    code = main(["export", str(folder / "store"), str(out), *map(str, words), "--json", str(told)])
    return code, json.loads(told.read_text()) if told.exists() else {}


def masks_of(scan: Scan, source: str) -> NDArray[np.bool_]:
    return scan.masks(np.flatnonzero(scan.proposals.source_names == source))


def zyx(path: Path) -> NDArray[Any]:
    """Return the voxels of a NIfTI file as (z, y, x) or (t, z, y, x), as nibabel reads them."""
    return np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize("format", ["nifti", "nnunet", "published", "totalsegmentator"])
def test_import_and_export_give_the_same_voxels(made: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "Dataset007_drawn"
    asked = ("--format", format, "--proposals", 50, "--source", "sam2")
    assert run(made, out, *asked)[0] == 0
    shutil.copytree(made / "store", tmp_path / "store")
    ways = {
        "nifti": [*out.glob("*/proposals.nii.gz")],
        "nnunet": [*out.glob("proposalsTr/*.nii.gz")],
        "published": [out / "dataset.h5"],
        "totalsegmentator": [*out.glob("*/proposals/*.nii.gz")],
    }
    files = sorted(map(str, ways[format]))
    assert main(["import-masks", str(tmp_path / "store"), *files, "--source", "again"]) == 0
    for scan_id, scan in ((name, open_store(tmp_path / "store").scan(name)) for name in ("ann", "ben")):
        first, again = masks_of(scan, "sam2"), masks_of(scan, "again")
        np.testing.assert_array_equal(first, crossing_masks(scan.shape), err_msg=scan_id)
        np.testing.assert_array_equal(again, first, err_msg=scan_id)


def test_the_published_layout_is_read_by_a_reader_written_from_its_description(
    made: Path, tmp_path: Path
) -> None:
    assert run(made, tmp_path / "out", "--format", "published", "--proposals", 4)[0] == 0
    store = open_store(made / "store")
    with h5py.File(tmp_path / "out" / "dataset.h5") as file:
        assert sorted(file) == list(store.scan_ids)
        for case in file:
            image = np.load(tmp_path / "out" / f"{case}_image.npy")
            masks = file[case]["auto_masks"]
            assert (masks.dtype, masks.ndim, image.dtype) == (np.uint8, 4, np.float32)
            assert masks.shape[1:] == image.shape
            scan = store.scan(case)
            np.testing.assert_array_equal(image, scan.image())
            np.testing.assert_array_equal(masks[:] > 0, scan.masks(range(4)))
            assert set(np.unique(masks)) <= {0, 1}


def test_nifti_lies_where_the_scan_lies_and_prepares_to_the_same_labels(made: Path, tmp_path: Path) -> None:
    assert run(made, tmp_path / "out", "--format", "nifti", "--proposals", 2)[0] == 0
    config = IngestConfig(spacing_mm=4.0, crop=False)
    found = discover(tmp_path / "out" / "manifest.csv", config.series_rules)
    assert not found.failures
    assert [source.scan_id for source in found.sources] == ["ann", "ben"]
    for source in found.sources:
        scan = open_store(made / "store").scan(source.scan_id)
        again = standardize(read_source(source, config), config)
        np.testing.assert_array_equal(again.labels[0].array, scan.labels("label"))
        assert again.labels[0].value_names == STRUCTURES
        np.testing.assert_allclose(
            again.grid.affine, Grid.from_dict(scan.attributes["grid"]).affine, atol=1e-4
        )
        np.testing.assert_array_equal(zyx(tmp_path / "out" / scan.id / "image.nii.gz"), scan.image())


def test_on_the_original_grid_files_fit_the_raw_ones(made: Path, tmp_path: Path) -> None:
    asked = ("--format", "nifti", "--proposals", 3, "--source", "sam2", "--grid", "original")
    assert run(made, tmp_path / "out", *asked)[0] == 0
    for scan_id, raw in two_phantoms().items():
        original = nibabel.load(made / "raw" / f"{scan_id}.nii.gz")
        for name in ("image", "labels/label", "proposals"):
            made_file = nibabel.load(tmp_path / "out" / scan_id / f"{name}.nii.gz")
            assert made_file.shape[:3] == original.shape
            np.testing.assert_allclose(made_file.affine, original.affine, atol=1e-4)
        labels = zyx(tmp_path / "out" / scan_id / "labels" / "label.nii.gz")
        assert (labels == raw.labels).mean() > 0.97
        image = zyx(tmp_path / "out" / scan_id / "image.nii.gz").astype(float)
        inside = raw.labels > 0
        assert np.corrcoef(image[inside], np.clip(raw.image, -991, 500)[inside])[0, 1] > 0.95


def test_nnunet_has_consecutive_labels_and_one_channel(made: Path, tmp_path: Path) -> None:
    code, told = run(made, tmp_path / "My data", "--format", "nnunet")
    assert code == 0
    folder = tmp_path / "My data" / "Dataset001_My_data"
    assert told["folder"] == str(folder)
    document = json.loads((folder / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "CT"}
    assert document["labels"] == {"background": 0, **{name: value for value, name in STRUCTURES.items()}}
    assert document["numTraining"] == 2
    assert document["file_ending"] == ".nii.gz"
    images = sorted(path.name for path in (folder / "imagesTr").iterdir())
    labels = sorted(path.name for path in (folder / "labelsTr").iterdir())
    assert images == ["ann_0000.nii.gz", "ben_0000.nii.gz"]
    assert labels == ["ann.nii.gz", "ben.nii.gz"]
    for name in ("ann", "ben"):
        image = nibabel.load(folder / "imagesTr" / f"{name}_0000.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"{name}.nii.gz")
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)


def with_two_maps(made: Path, folder: Path, *, overlap: bool) -> Path:
    """Copy the store; give a scan two label maps with gaps in their values."""
    shutil.copytree(made / "store", folder / "store")
    scan = open_store(folder / "store").scan("ann").record()
    one, two = (np.zeros(scan.image.shape, np.uint8) for _ in range(2))
    one[1:3, 1:4, 1:4], two[(2 if overlap else 3) : 5, 1:4, 1:4] = 3, 7
    maps = (
        LabelVolume(name="one", array=one, value_names={3: "liver"}),
        LabelVolume(name="two", array=two, value_names={}),
    )
    commit_scan(folder / "store", replace(scan, labels=maps), replace=True)
    return folder


def test_nnunet_joins_label_maps_and_numbers_structures_anew(made: Path, tmp_path: Path) -> None:
    folder = with_two_maps(made, tmp_path, overlap=False)
    assert run(folder, tmp_path / "out", "--format", "nnunet", "--scan", "ann")[0] == 0
    inside = tmp_path / "out" / "Dataset001_out"
    labels = json.loads((inside / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "liver": 1, "two 7": 2}
    joined = zyx(inside / "labelsTr" / "ann.nii.gz")
    scan = open_store(folder / "store").scan("ann")
    np.testing.assert_array_equal(joined == 1, scan.labels("one") == 3)
    np.testing.assert_array_equal(joined == 2, scan.labels("two") == 7)


def test_overlapping_label_maps_are_refused_and_one_can_be_chosen(made: Path, tmp_path: Path) -> None:
    folder = with_two_maps(made, tmp_path, overlap=True)
    code, told = run(folder, tmp_path / "out", "--format", "nnunet")
    assert code == 1
    assert told["written"] == ["ben"]
    assert "overlap at 9 voxels" in told["failed"][0]["reason"]
    assert not list((tmp_path / "out").rglob("ann*"))
    asked = ("--format", "nnunet", "--label-map", "two", "--scan", "ann")
    assert run(folder, tmp_path / "one", *asked)[0] == 0
    assert set(np.unique(zyx(tmp_path / "one" / "Dataset001_one" / "labelsTr" / "ann.nii.gz"))) == {0, 1}


def test_totalsegmentator_has_a_file_for_each_structure(made: Path, tmp_path: Path) -> None:
    assert run(made, tmp_path / "out", "--format", "totalsegmentator")[0] == 0
    scan = open_store(made / "store").scan("ben")
    folder = tmp_path / "out" / "ben"
    assert (folder / "ct.nii.gz").is_file()
    files = {path.name.removesuffix(".nii.gz"): path for path in (folder / "segmentations").iterdir()}
    assert set(files) == set(STRUCTURES.values())
    for value, name in STRUCTURES.items():
        np.testing.assert_array_equal(zyx(files[name]), scan.labels("label") == value)
    assert (tmp_path / "out" / "meta.csv").read_text().splitlines() == [
        "image_id;split",
        "ann;train",
        "ben;train",
    ]


@pytest.mark.parametrize("format", ["nifti", "nnunet", "published", "totalsegmentator"])
def test_the_same_store_gives_the_same_bytes_and_no_paths(made: Path, tmp_path: Path, format: str) -> None:
    asked = ("--format", format, "--proposals", 3)
    run(made, tmp_path / "a" / "out", *asked)
    run(made, tmp_path / "b" / "out", *asked)
    files = store_bytes(tmp_path / "a" / "out")
    assert files == store_bytes(tmp_path / "b" / "out")
    assert not any(str(tmp_path).encode() in data or str(made).encode() in data for data in files.values())


def test_a_folder_with_other_things_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert run(made, tmp_path / "out", "--format", "nifti")[0] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    run(made, tmp_path / "other", "--format", "nifti")
    assert run(made, tmp_path / "other", "--format", "published")[0] == 2


def test_an_export_that_was_stopped_is_done_again(made: Path, tmp_path: Path) -> None:
    asked = ("--format", "published", "--proposals", 3)
    run(made, tmp_path / "whole", *asked)
    run(made, tmp_path / "out", *asked)
    mark = tmp_path / "out" / "export.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"finished": False}))
    (tmp_path / "out" / "dataset.h5").unlink()
    (tmp_path / "out" / ".part-dataset.h5").write_bytes(b"half")
    (tmp_path / "out" / ".part-ann_image.npy").write_bytes(b"half")
    assert run(made, tmp_path / "out", *asked)[0] == 0
    assert store_bytes(tmp_path / "out") == store_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    "words",
    [("--source", "nobody"), ("--label-map", "nothing"), ("--scan", "zoe*")],
    ids=["source", "label map", "scan"],
)
def test_what_no_scan_has_is_refused_before_anything_is_written(
    made: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    assert run(made, tmp_path / "out", "--format", "nifti", *words)[0] == 2
    assert not (tmp_path / "out").exists()


def test_nnunet_refuses_two_modalities(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    scan = open_store(tmp_path / "store").scan("ann").record()
    commit_scan(tmp_path / "store", replace(scan, modality="mr"), replace=True)
    assert run(tmp_path, tmp_path / "out", "--format", "nnunet")[0] == 2
    assert run(tmp_path, tmp_path / "out", "--format", "nnunet", "--scan", "ben")[0] == 0


def test_names_and_sources_of_proposals_are_told(made: Path, tmp_path: Path) -> None:
    run(made, tmp_path / "out", "--format", "nifti", "--proposals", 4)
    names = json.loads((tmp_path / "out" / "ann" / "proposals.json").read_text())
    given = about_imports(open_store(made / "store").scan("ann").attributes)["sam2"]["names"]
    assert isinstance(given, list)
    assert names == {"1": "blocks #0", "2": "blocks #1", "3": given[0], "4": given[1]}
