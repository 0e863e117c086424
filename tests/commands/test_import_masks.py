"""`mass import-masks` on a store of phantoms: every kind of file, matching, replacing, taking out again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from commands.main import main
from commands.prepare.scan_task import with_kept_imports
from pipeline.ingest import write_image
from pipeline.volumes import Grid
from storage import (
    Scan,
    Store,
    about_imports,
    imported_sources,
    imports_of,
    open_store,
    own_record,
)
from tests.dicom_files import write_seg
from tests.exchange_store import draw_store, two_phantoms
from tests.phantom import STRUCTURES, Phantom, write_dicom
from tests.storage.drawn_record import store_bytes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Phantom]]:
    scans = two_phantoms()
    folder = tmp_path_factory.mktemp("made")
    draw_store(folder, scans)
    return folder, scans


@pytest.fixture
def folder(made: tuple[Path, dict[str, Phantom]], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def scans(made: tuple[Path, dict[str, Phantom]]) -> dict[str, Phantom]:
    return made[1]


def run(*words: object, json_file: Path | None = None) -> tuple[int, dict[str, Any]]:
    extra = ["--json", str(json_file)] if json_file else []
    code = main([*map(str, words), *extra])
    return code, json.loads(json_file.read_text()) if json_file else {}


def stored(folder: Path) -> Store:
    return open_store(folder / "store")


def masks_of(scan: Scan, source: str) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of a source by their name."""
    rows = np.flatnonzero(scan.proposals.source_names == source)
    names = about_imports(scan.attributes)[source]["names"]
    assert isinstance(names, list)
    return dict(zip(names, scan.masks(rows), strict=True))


def expected(scan: Scan) -> dict[str, NDArray[np.bool_]]:
    """Return the structures of the stored label map, which `mass prepare` resamples."""
    label = scan.labels("label")
    return {name: label == value for value, name in STRUCTURES.items() if (label == value).any()}


def same(found: dict[str, NDArray[np.bool_]], wanted: dict[str, NDArray[np.bool_]]) -> None:
    assert set(found) == set(wanted)
    for name, mask in wanted.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


def write_names(folder: Path) -> None:
    (folder / "raw" / "label_names.json").write_text(json.dumps({str(k): v for k, v in STRUCTURES.items()}))


def test_a_label_map_of_the_original_grid_gives_the_labels_of_prepare(folder: Path) -> None:
    write_names(folder)
    files = [folder / "raw" / f"{scan_id}_label.nii.gz" for scan_id in ("ann", "ben")]
    assert run("import-masks", folder / "store", *files, "--source", "expert")[0] == 0
    for scan_id in ("ann", "ben"):
        scan = stored(folder).scan(scan_id)
        same(masks_of(scan, "expert"), expected(scan))
        assert main(["verify", str(folder / "store")]) == 0


def test_removing_a_source_gives_the_store_of_before(folder: Path) -> None:
    before = store_bytes(folder / "store")
    for source in ("one", "two"):
        run("import-masks", folder / "store", folder / "raw" / "ann_label.nii.gz", "--source", source)
    assert imported_sources(stored(folder).entries["ann"].digests) == ("one", "two")
    assert run("import-masks", folder / "store", "--remove", "two")[0] == 0
    assert imported_sources(stored(folder).entries["ann"].digests) == ("one",)
    assert run("import-masks", folder / "store", "--remove", "one")[0] == 0
    assert store_bytes(folder / "store") == before


def test_the_same_files_again_change_nothing_and_others_replace(folder: Path, tmp_path: Path) -> None:
    file = folder / "raw" / "ann_label.nii.gz"
    run("import-masks", folder / "store", file)
    once = store_bytes(folder / "store")
    code, told = run("import-masks", folder / "store", file, json_file=tmp_path / "o.json")
    assert code == 0
    assert told["imported"][0]["done_before"]
    assert store_bytes(folder / "store") == once
    scan = stored(folder).scan("ann")
    grid = Grid.from_dict(scan.attributes["grid"])
    one = np.zeros(scan.shape, np.uint8)
    one[1:3, 2:4, 3:5] = 1
    write_image(folder / "ann.nii.gz", one, grid)
    run("import-masks", folder / "store", folder / "ann.nii.gz")
    same(masks_of(stored(folder).scan("ann"), "imported"), {"1": one > 0})


def overlapping(scan: Scan, number: int = 7) -> NDArray[np.bool_]:
    """Return masks that cross, nest and are equal, bool (N, z, y, x) on the stored grid."""
    rng = np.random.default_rng(3)
    masks = np.zeros((number, *scan.shape), dtype=np.bool_)
    for mask in masks[:-1]:
        start = [int(rng.integers(0, size - 4)) for size in scan.shape]
        stop = [int(rng.integers(low + 2, size + 1)) for low, size in zip(start, scan.shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    masks[-1] = masks[0]
    return masks


def write_stack(path: Path, masks: NDArray[np.bool_], grid: Grid) -> None:
    import SimpleITK

    parts = []
    for mask in masks:
        part = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        part.SetSpacing(grid.spacing_xyz_mm)
        part.SetOrigin(grid.origin_xyz_mm)
        part.SetDirection(grid.direction)
        parts.append(part)
    SimpleITK.WriteImage(SimpleITK.JoinSeries(parts), str(path))


@pytest.mark.parametrize("kind", ["4d", "npz", "published", "folder"])
def test_overlapping_masks_are_exact_from_every_kind_of_file(folder: Path, kind: str) -> None:
    scan = stored(folder).scan("ann")
    masks, grid = overlapping(scan), Grid.from_dict(scan.attributes["grid"])
    if kind == "4d":
        path = folder / "ann.nii.gz"
        write_stack(path, masks, grid)
    elif kind == "npz":
        path = folder / "ann.npz"
        np.savez_compressed(path, masks=masks, scores=np.linspace(1, 0, len(masks)))
    elif kind == "published":
        path = folder / "dataset.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("ann/auto_masks", data=masks.astype(np.uint8))
        np.save(folder / "ann_image.npy", scan.image())
    else:
        path = folder / "ann"
        path.mkdir()
        for number, mask in enumerate(masks, start=1):
            write_image(path / f"{number}.nii.gz", mask, grid)
    assert run("import-masks", folder / "store", path, "--source", "sam2", "--grid", "stored")[0] == 0
    found = masks_of(stored(folder).scan("ann"), "sam2")
    same(found, {str(number): mask for number, mask in enumerate(masks, start=1)})


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the uncompressed COCO encoding of a slice, written from its description."""
    counts, current, length = [], False, 0
    for pixel in mask.T.ravel().tolist():
        if pixel == current:
            length += 1
        else:
            counts.append(length)
            current, length = pixel, 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def test_sam2_records_of_slices_of_the_original_grid(folder: Path, scans: dict[str, Phantom]) -> None:
    labels = scans["ben"].labels
    slices = {
        str(k): [
            {
                "segmentation": run_lengths(labels[k] == value),
                "predicted_iou": 0.9 - value / 100,
                "object_id": value,
            }
            for value in STRUCTURES
            if (labels[k] == value).any()
        ]
        for k in range(len(labels))
    }
    (folder / "ben.json").write_text(json.dumps(slices))
    assert run("import-masks", folder / "store", folder / "ben.json", "--source", "sam2")[0] == 0
    scan = stored(folder).scan("ben")
    wanted = {f"object {value}": expected(scan).get(name) for value, name in STRUCTURES.items()}
    same(masks_of(scan, "sam2"), {name: mask for name, mask in wanted.items() if mask is not None})
    scores = about_imports(scan.attributes)["sam2"]["scores"]
    assert isinstance(scores, list)
    assert scores == sorted(scores, reverse=True)


def test_slices_cut_out_of_a_nibabel_array_are_turned(folder: Path, scans: dict[str, Phantom]) -> None:
    labels = scans["ben"].labels
    frames = [[run_lengths((labels[k] == 1).T)] for k in range(len(labels))]
    (folder / "ben.json").write_text(json.dumps({"masklet": frames, "masklet_id": [4]}))
    assert run("import-masks", folder / "store", folder / "ben.json", "--source", "sam2")[0] == 0
    scan = stored(folder).scan("ben")
    same(masks_of(scan, "sam2"), {"4": expected(scan)["organ"]})


def test_an_image_that_is_mirrored_beside_masks_is_refused(folder: Path, tmp_path: Path) -> None:
    scan = stored(folder).scan("ann")
    with h5py.File(folder / "dataset.h5", "w") as file:
        file.create_dataset("ann/auto_masks", data=overlapping(scan).astype(np.uint8))
    np.save(folder / "ann_image.npy", scan.image()[:, :, ::-1])
    before = store_bytes(folder / "store")
    code, told = run("import-masks", folder / "store", folder / "dataset.h5", json_file=tmp_path / "o.json")
    assert code == 1
    assert "mirrored" in told["failed"][0]["reason"]
    assert store_bytes(folder / "store") == before


def test_arrays_that_could_be_read_in_two_ways_are_refused(folder: Path, tmp_path: Path) -> None:
    scan = stored(folder).scan("ann")
    cube = np.ones((1, scan.shape[0], scan.shape[1] + 1, 3), np.uint8)
    np.savez(folder / "ann.npz", masks=cube)
    code, told = run("import-masks", folder / "store", folder / "ann.npz", json_file=tmp_path / "o.json")
    assert code == 1
    assert "must have the size of scan ann" in told["failed"][0]["reason"]


def test_pickled_results_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "ann.pkl").write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    np.save(folder / "ann.npy", np.array([{"segmentation": 1}], dtype=object), allow_pickle=True)
    for name in ("ann.pkl", "ann.npy"):
        code, told = run("import-masks", folder / "store", folder / name, json_file=tmp_path / "o.json")
        assert code == 1
        assert "pickled" in told["failed"][0]["reason"]


def test_a_bad_file_leaves_its_scan_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    bad = folder / "ben_masks.nii.gz"
    bad.write_bytes((folder / "raw" / "ben_label.nii.gz").read_bytes()[:200])
    before = store_bytes(folder / "store" / "scans")
    good = folder / "raw" / "ann_label.nii.gz"
    code, told = run("import-masks", folder / "store", bad, good, json_file=tmp_path / "o.json")
    assert code == 1
    assert [one["scan"] for one in told["imported"]] == ["ann"]
    assert [one["scan"] for one in told["failed"]] == ["ben"]
    after = store_bytes(folder / "store" / "scans")
    assert {key: data for key, data in before.items() if "/ben" in key} == {
        key: data for key, data in after.items() if "/ben" in key
    }


def test_masks_without_a_voxel_on_the_grid_are_named(folder: Path, tmp_path: Path) -> None:
    scan = stored(folder).scan("ann")
    grid = Grid.from_dict(scan.attributes["grid"])
    masks = overlapping(scan)[:3].copy()
    masks[1] = False
    write_stack(folder / "ann.nii.gz", masks, grid)
    code, told = run("import-masks", folder / "store", folder / "ann.nii.gz", json_file=tmp_path / "o.json")
    assert code == 0
    assert told["imported"][0]["empty"] == ["2"]
    assert sorted(masks_of(stored(folder).scan("ann"), "imported")) == ["1", "3"]


def test_a_manifest_says_which_masks_belong_to_which_scan(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "raw" / "ann_label.nii.gz", folder / "xyz.nii.gz")
    (folder / "m.csv").write_text("id,mask\nann,xyz.nii.gz\nzoe,xyz.nii.gz\nben,gone.nii.gz\n")
    code, told = run("import-masks", folder / "store", folder / "m.csv", json_file=tmp_path / "o.json")
    assert code == 1
    assert [one["scan"] for one in told["imported"]] == ["ann"]
    assert [one["file"] for one in told["failed"]] == ["m.csv line 3", "m.csv line 4"]


def test_new_proposals_keep_imported_masks_and_a_new_grid_drops_them(folder: Path) -> None:
    run("import-masks", folder / "store", folder / "raw" / "ann_label.nii.gz", "--source", "expert")
    store = stored(folder)
    old = store.scan("ann").record()
    again, notes = with_kept_imports(store.scan("ann"), own_record(old))
    assert "kept" in notes[0]
    assert imported_sources(again.digests) == ("expert",)
    np.testing.assert_array_equal(imports_of(again)[0].table, imports_of(old)[0].table)
    moved = dict(old.attributes["grid"]) | {"origin_xyz_mm": [0.0, 0.0, 0.0]}  # type: ignore[call-overload]
    from dataclasses import replace

    other = replace(own_record(old), attributes={**own_record(old).attributes, "grid": moved})
    without, notes = with_kept_imports(store.scan("ann"), other)
    assert "dropped" in notes[0]
    assert imported_sources(without.digests) == ()


def test_of_a_damaged_scan_those_imported_masks_are_kept_whose_own_files_are_whole(folder: Path) -> None:
    for source in ("one", "two"):
        run("import-masks", folder / "store", folder / "raw" / "ann_label.nii.gz", "--source", source)
    old = stored(folder).scan("ann").record()

    def kept_without(*keys: str) -> tuple[list[str], tuple[str, ...]]:
        scan = stored(folder).scan("ann")
        paths = [scan.path / key for key in keys]  # type: ignore[operator]
        whole = [path.read_bytes() for path in paths]
        for path in paths:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        again, notes = with_kept_imports(scan, own_record(old))
        for path, data in zip(paths, whole, strict=True):
            path.write_bytes(data)
        for masks in imports_of(again):
            (same,) = [one for one in imports_of(old) if one.name == masks.name]
            np.testing.assert_array_equal(masks.table, same.table)
            np.testing.assert_array_equal(masks.atoms[0], same.atoms[0])
        return [masks.name for masks in imports_of(again)], notes

    both = ["one", "two"]
    assert kept_without("0/c.0.0.0", "labels/atoms/0/c.0.0.0", "scores/c.0", "labels/zarr.json")[0] == both
    names, notes = kept_without("labels/atoms_1/0/c.0.0.0")
    assert names == ["two"]
    assert "imported masks of one lost: 4 masks" in notes[0]
    assert "labels/atoms_1/0" in notes[0]
    assert "two kept" in notes[1]
    assert kept_without("segments/2/c.0.0")[0] == ["one"]
    for every in ("proposals/c.0.0", "zarr.json"):
        names, notes = kept_without(every)
        assert (names, len(notes)) == ([], 2)
        assert every.split("/")[0] in notes[0]


def test_status_tells_of_imports_and_calls_nothing_stale_because_of_them(
    folder: Path, tmp_path: Path
) -> None:
    before = run("status", folder / "store", json_file=tmp_path / "s.json")[1]
    run("import-masks", folder / "store", folder / "raw" / "ann_label.nii.gz", "--source", "expert")
    after = run("status", folder / "store", json_file=tmp_path / "s.json")[1]
    assert after["imported"] == {"expert": 1}
    assert after["stale"] == before["stale"]


def test_a_source_that_no_scan_has_cannot_be_removed(folder: Path) -> None:
    assert main(["import-masks", str(folder / "store"), "--remove", "sam2"]) == 2


def test_a_dicom_segmentation_is_imported_without_the_patients_name(
    folder: Path, scans: dict[str, Phantom]
) -> None:
    labels = scans["ann"].labels
    frames = [(value, k, labels[k] == value) for value in (1, 2, 3) for k in range(len(labels))]
    names = {1: "organ", 2: "lesion of John Doe", 3: "lung"}
    write_seg(folder / "ann.dcm", frames, scans["ann"], names=names)
    assert run("import-masks", folder / "store", folder / "ann.dcm", "--source", "pacs")[0] == 0
    scan = stored(folder).scan("ann")
    found = masks_of(scan, "pacs")
    wanted = expected(scan)
    (lesion,) = set(found) - {"organ", "lung"}
    assert "doe" not in lesion.lower()
    same(found, {"organ": wanted["organ"], "lung": wanted["lung"], lesion: wanted["lesion"]})


def test_a_dicom_file_that_is_no_segmentation_is_refused(folder: Path, scans: dict[str, Phantom]) -> None:
    files = write_dicom(folder / "series", scans["ann"])
    assert run("import-masks", folder / "store", files[0], "--scan", "ann")[0] == 1
    assert imported_sources(stored(folder).entries["ann"].digests) == ()


def test_an_import_that_is_killed_goes_on_and_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    files = [folder / "raw" / f"{scan_id}_label.nii.gz" for scan_id in ("ann", "ben")]
    shutil.copytree(folder / "store", tmp_path / "whole")
    run("import-masks", tmp_path / "whole", *files, "--source", "expert")
    # The process dies in the middle of the second commit: files are written, COMMIT.json is not.
    code = (
        "import os, signal, sys; import commands.main, storage.writing.committing as c\n"
        "calls, sync = [], c.sync_tree\n"
        "def die(path):\n"
        "    calls.append(path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 2 else sync(path)\n"
        "c.sync_tree = die; sys.exit(commands.main.main(sys.argv[1:]))\n"
    )
    words = ["import-masks", str(folder / "store"), *map(str, files), "--source", "expert"]
    killed = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    entries = stored(folder).entries
    assert [imported_sources(entries[scan_id].digests) for scan_id in ("ann", "ben")] == [("expert",), ()]
    again, told = run(*words, json_file=tmp_path / "o.json")
    assert again == 0
    assert [one["done_before"] for one in told["imported"]] == [True, False]
    assert store_bytes(folder / "store") == store_bytes(tmp_path / "whole")
