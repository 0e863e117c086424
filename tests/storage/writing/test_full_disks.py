"""A disk that is full, and other errors in the middle of a commit."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

import storage.reading.index
import storage.writing.committing
import storage.writing.scan_writer
from storage import (
    ScanRecord,
    StorageError,
    StoreFull,
    commit_scan,
    create_store,
    open_store,
    remove_scan,
    verify,
)
from tests.storage.drawn_record import SMALL, differently, draw_record, store_bytes


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (storage.writing.scan_writer, "_write_volume"),
        (storage.writing.scan_writer, "_write_small"),
        (storage.writing.committing, "write_file"),
        (storage.writing.committing, "sync_tree"),
        (storage.writing.committing, "append_entry"),
        (storage.writing.committing, "take_lock"),
        (storage.reading.index.os, "fsync"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_no_space_at_this_step_leaves_the_store_as_it_was(
    empty_store: Path,
    record: ScanRecord,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    there: bool,
) -> None:
    if there:
        commit_scan(empty_store, differently(record))
    before = store_bytes(empty_store)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, no_space)
        with pytest.raises(StoreFull, match=r"scan scan-1: No space left.*Free space") as caught:
            commit_scan(empty_store, record, replace=True)
    assert isinstance(caught.value, OSError)
    after = store_bytes(empty_store)
    if not there:  # an index that was begun may stay, empty
        after.pop("index.jsonl", None)
        after.pop("scans", None)
    assert after == before
    assert list(verify(empty_store)) == []
    commit_scan(empty_store, record, replace=True)
    assert list(verify(empty_store)) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_keeps_the_finished_scans(tiny_disk: Path) -> None:
    path = create_store(tiny_disk / "store", spacing_mm=1.5, config={}).path
    records = (draw_record(f"scan-{number}", shape=SMALL) for number in range(100))
    with pytest.raises(StoreFull, match="run the same command again"):
        deque((commit_scan(path, record) for record in records), maxlen=0)
    done = open_store(path).scan_ids
    assert 1 <= len(done) < 100
    assert not (path / "tmp").exists()
    assert list(verify(path)) == []
    (tiny_disk / "filler").write_bytes(b"")
    with pytest.raises(StoreFull):
        commit_scan(path, draw_record("one-more", shape=SMALL))
    remove_scan(path, done[0])
    commit_scan(path, draw_record(done[0], shape=SMALL))
    assert open_store(path).scan_ids == done


def test_a_limit_on_file_size_is_met_like_a_full_disk(empty_store: Path, record: ScanRecord) -> None:
    before = store_bytes(empty_store)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreFull, match="scan-1"):
            commit_scan(empty_store, record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store_bytes(empty_store) == before


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_while_replacing_brings_the_old_scan_back(
    store: Path, record: ScanRecord, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = store_bytes(store)
    real = Path.rename
    calls = iter(range(1, number + 1))

    def interrupted(self: Path, target: Path) -> Path:
        last = next(calls, None) == number
        if last and number == 2:
            raise KeyboardInterrupt
        moved = real(self, target)
        if last:
            raise KeyboardInterrupt  # the rename was done, the call never came back
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commit_scan(store, differently(record), replace=True)
    assert store_bytes(store) == before


def test_other_errors_pass_through_and_leave_nothing(
    empty_store: Path, record: ScanRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store_bytes(empty_store)

    def no_right(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(storage.writing.committing, "sync_tree", no_right)
        with pytest.raises(PermissionError) as caught:
            commit_scan(empty_store, record)
    assert not isinstance(caught.value, StorageError)
    assert store_bytes(empty_store) == before
