from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import storage.reading.index
import storage.writing.committing
import storage.writing.scan_writer
from storage import (
    ScanExists,
    ScanNotFound,
    ScanRecord,
    StoreNotFound,
    commit_scan,
    create_store,
    finish,
    open_store,
    remove_scan,
    sweep,
    verify,
)
from storage.layout import scan_key
from tests.storage.drawn_record import SMALL, differently, draw_record, store_bytes
from tests.storage.writing.writers import IDS


def test_the_same_record_is_the_same_bytes_in_every_file(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    for scan_id in IDS:  # another order, other memory layouts
        record = draw_record(scan_id, shape=SMALL)
        strange = replace(
            record,
            image=np.asfortranarray(record.image),
            atoms=tuple(np.asfortranarray(atoms) for atoms in record.atoms),
            attributes=dict(reversed(list(record.attributes.items()))),
            digests=dict(reversed(list(record.digests.items()))),
        )
        commit_scan(path, strange)
    finish(path)
    assert store_bytes(path) == undisturbed


def test_blosc_threads_do_not_change_a_byte(
    tmp_path: Path, record: ScanRecord, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numcodecs.blosc

    monkeypatch.setattr(numcodecs.blosc, "use_threads", True)
    other = create_store(tmp_path / "other", spacing_mm=1.5, config={"max_atoms": 100}).path
    commit_scan(other, record)
    assert store_bytes(other) == store_bytes(store)


def test_a_scan_is_few_files(store: Path) -> None:
    folder = open_store(store).scan("scan-1").path
    plain = [path for path in folder.rglob("*") if path.is_file() and not path.match("*/atoms_1*")]
    assert len([path for path in plain if "organs" not in path.parts and "atoms_1" not in path.parts]) <= 23


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_neither_a_commit_nor_a_sweep_leaves_a_file_open(empty_store: Path) -> None:
    commit_scan(empty_store, draw_record("a", shape=SMALL))
    before = open_handles()
    commit_scan(empty_store, draw_record("b", shape=SMALL))
    (empty_store / "tmp").mkdir()
    (empty_store / "tmp" / "c.0123.lock").touch()  # of a writer that died
    assert sweep(empty_store) == 1
    assert not (empty_store / "tmp").exists()
    assert open_handles() == before


def test_bytes_are_on_disk_before_the_name_that_leads_to_them(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []

    def noted(owner: object, name: str, place: int) -> None:
        real = getattr(owner, name)

        def step(*arguments: Any) -> Any:
            path = Path(arguments[place])
            steps.append((name, "tmp" if path.parent.name == "tmp" else path.name))
            return real(*arguments)

        monkeypatch.setattr(owner, name, step)

    for name in ("sync_tree", "write_file", "sync_folder"):
        noted(storage.writing.committing, name, 0)
    noted(storage.writing.committing, "append_entry", 0)
    noted(Path, "rename", 1)
    entry = commit_scan(empty_store, draw_record("a", shape=SMALL))
    shelf = Path(entry.path).parent.name
    assert steps == [
        ("sync_tree", "tmp"),
        ("write_file", "COMMIT.json"),
        ("sync_folder", "tmp"),  # the scan's folder there, with the name COMMIT.json
        ("sync_folder", "scans"),
        ("sync_folder", "store"),
        ("rename", "a"),
        ("sync_folder", shelf),
        ("append_entry", "store"),
    ]


def test_nothing_is_left_in_tmp(store: Path) -> None:
    assert sorted(path.name for path in store.iterdir()) == [
        "index.jsonl",
        "scans",
        "store.json",
        "store.lock",
    ]
    assert (store / "store.lock").read_bytes() == b""


def test_committing_the_same_scan_again_changes_nothing(store: Path, record: ScanRecord) -> None:
    before = store_bytes(store)
    entry = commit_scan(store, record)
    assert entry == commit_scan(store, record, replace=True) == open_store(store).entries["scan-1"]
    assert store_bytes(store) == before


def test_committing_a_scan_whose_index_line_is_lost_writes_the_line(store: Path, record: ScanRecord) -> None:
    before = store_bytes(store)
    (store / "index.jsonl").unlink()
    commit_scan(store, record)
    assert store_bytes(store) == before


def test_another_scan_of_the_id_gives_way_only_on_purpose(store: Path, record: ScanRecord) -> None:
    before = store_bytes(store)
    with pytest.raises(ScanExists, match=r"scan scan-1: .*replace=True"):
        commit_scan(store, differently(record))
    assert store_bytes(store) == before
    entry = commit_scan(store, differently(record), replace=True)
    assert open_store(store).entries["scan-1"] == entry
    np.testing.assert_array_equal(open_store(store).scan("scan-1").image_codes(), record.image[::-1])
    assert list(verify(store)) == []
    commit_scan(store, record, replace=True)
    finish(store)
    assert store_bytes(store) == before


def test_a_folder_without_commit_json_is_no_scan_and_gives_way(empty_store: Path, record: ScanRecord) -> None:
    commit_scan(empty_store, record)
    folder = open_store(empty_store).scan("scan-1").path
    (folder / "COMMIT.json").unlink()
    (folder / "junk").write_text("x")
    assert sweep(empty_store) == 1
    assert open_store(empty_store).scan_ids == ()
    commit_scan(empty_store, record)
    assert list(verify(empty_store)) == []


def test_a_commit_needs_a_store(tmp_path: Path, record: ScanRecord) -> None:
    with pytest.raises(StoreNotFound):
        commit_scan(tmp_path / "nowhere", record)
    assert not (tmp_path / "nowhere").exists()


def test_a_removed_scan_leaves_nothing(store: Path, record: ScanRecord) -> None:
    remove_scan(store, "scan-1")
    assert open_store(store).scan_ids == ()
    assert sorted(path.name for path in store.iterdir()) == [
        "index.jsonl",
        "scans",
        "store.json",
        "store.lock",
    ]
    assert list((store / "scans").iterdir()) == []
    finish(store)
    assert sorted(path.name for path in store.iterdir()) == ["index.jsonl", "store.json", "store.lock"]
    with pytest.raises(ScanNotFound, match="scan-1"):
        remove_scan(store, "scan-1")
    commit_scan(store, record)
    assert open_store(store).scan_ids == ("scan-1",)


@pytest.mark.parametrize("scan_id", ["../../etc", "..", ""])
def test_an_id_that_leads_out_of_its_folder_removes_nothing(store: Path, scan_id: str) -> None:
    # The folder that the path begins with is there, as it is where another scan shares it.
    (store / "scans" / scan_key(scan_id).split("/")[1]).mkdir(exist_ok=True)
    before = store_bytes(store)
    with pytest.raises(ScanNotFound, match="not an id that a store can hold"):
        remove_scan(store, scan_id)
    assert store_bytes(store) == before


def test_what_is_left_of_a_scan_can_be_removed(store: Path) -> None:
    commit_scan(store, draw_record("a", shape=SMALL))
    shutil.rmtree(open_store(store).scan("a").path)  # its line is left
    remove_scan(store, "a")
    assert open_store(store).scan_ids == ("scan-1",)
    index = (store / "index.jsonl").read_bytes()
    (store / "index.jsonl").write_bytes(b"")  # its folder is left
    remove_scan(store, "scan-1")
    (store / "index.jsonl").write_bytes(index)
    assert sweep(store) == 1
    assert open_store(store).scan_ids == ()


def test_a_scan_can_be_removed_while_another_is_being_written(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.writing.scan_writer.write_scan

    def write_and_remove(folder: Path, record: ScanRecord) -> None:
        real(folder, record)
        remove_scan(store, "scan-1")

    monkeypatch.setattr(storage.writing.scan_writer, "write_scan", write_and_remove)
    commit_scan(store, draw_record("a", shape=SMALL))
    assert open_store(store).scan_ids == ("a",)
    assert list(verify(store)) == []


def test_a_scan_can_be_committed_while_another_is_being_written(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.writing.scan_writer.write_scan

    def write_and_commit(folder: Path, record: ScanRecord) -> None:
        real(folder, record)
        with monkeypatch.context() as patch:
            patch.setattr(storage.writing.scan_writer, "write_scan", real)
            commit_scan(empty_store, draw_record("b", shape=SMALL))

    monkeypatch.setattr(storage.writing.scan_writer, "write_scan", write_and_commit)
    commit_scan(empty_store, draw_record("a", shape=SMALL))
    assert open_store(empty_store).scan_ids == ("a", "b")
    assert not (empty_store / "tmp").exists()


def test_empty_folders_are_gone_after_the_end(store: Path) -> None:
    finish(store)
    before = store_bytes(store)
    (store / "tmp").mkdir()
    (store / "scans" / "zz").mkdir()
    finish(store)
    assert store_bytes(store) == before


def test_a_sweep_counts_dead_writers_and_lines_together(store: Path) -> None:
    (store / "index.jsonl").unlink()
    (store / "tmp" / "a.0123").mkdir(parents=True)
    for lock in ("a.0123.lock", "b.0123.lock"):
        (store / "tmp" / lock).touch()
    assert sweep(store) == 3
    assert not (store / "tmp").exists()
    assert sweep(store) == 0
    assert open_store(store).scan_ids == ("scan-1",)


@pytest.mark.parametrize("new_is_in_place", [False, True])
def test_a_sweep_brings_back_a_replaced_scan_unless_the_new_one_is_in_place(
    empty_store: Path, new_is_in_place: bool
) -> None:
    old = draw_record("scan.v1.0", shape=SMALL)  # an id may have dots, as the folders in tmp/ do
    commit_scan(empty_store, old)
    target = open_store(empty_store).scan("scan.v1.0").path
    moved = empty_store / "tmp" / "scan.v1.0.0123.old"
    moved.parent.mkdir()
    (empty_store / "tmp" / "scan.v1.0.0123.lock").touch()
    shutil.copytree(target, moved)
    if new_is_in_place:
        commit_scan(empty_store, differently(old), replace=True)
    else:
        shutil.rmtree(target)
    expected = open_store(empty_store).entries
    assert sweep(empty_store) == 1
    assert open_store(empty_store).entries == expected
    assert list(verify(empty_store)) == []
    assert not (empty_store / "tmp").exists()


def test_a_file_among_the_folders_of_scans_is_no_scan(store: Path) -> None:
    (store / "scans" / "notes.txt").write_text("x")
    (store / "scans" / "zz").mkdir()
    (store / "scans" / "zz" / "notes.txt").write_text("x")
    assert sweep(store) == 0
    assert open_store(store).scan_ids == ("scan-1",)


def test_a_committed_folder_at_another_path_gets_no_line(store: Path) -> None:
    (store / "scans" / "zz").mkdir()
    open_store(store).scan("scan-1").path.rename(store / "scans" / "zz" / "scan-1")
    assert sweep(store) == 1
    assert open_store(store).scan_ids == ()


@pytest.mark.parametrize("folder", ["labels/atoms", "scores"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    store: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store_bytes(store)
    plain, failed = os.scandir, []

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith(f"/{folder}") and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="Input/output error"):
        commit_scan(store, draw_record("ann", shape=SMALL))
    assert failed
    assert store_bytes(store) == before
    commit_scan(store, draw_record("ann", shape=SMALL))
    assert list(verify(store)) == []
    failed.clear()
    problems = list(verify(store))
    assert [(problem.key, problem.what) for problem in problems] == [
        (folder, "cannot be listed (Input/output error); check the disk")
    ]


@pytest.mark.parametrize("folder", ["scans", "part of scans"])
def test_a_store_that_may_not_be_listed_keeps_its_index(
    store: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store_bytes(store)
    refused = store / "scans" if folder == "scans" else open_store(store).scan("scan-1").path.parent

    def refusing(plain: Any) -> Any:
        def look(path: Any = ".") -> Any:
            if Path(path) == refused:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return plain(path)

        return look

    # A refusal is simulated, as nothing is refused to root.
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(PermissionError):
        sweep(store)
    with pytest.raises(PermissionError):
        list(verify(store))
    monkeypatch.undo()
    assert store_bytes(store) == before
