"""Writers that are killed, or write at once, leave a store that is whole."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import storage.reading.index
import storage.writing.committing
import storage.writing.scan_writer
from storage import (
    ScanRecord,
    commit_scan,
    create_store,
    finish,
    open_store,
    sweep,
    verify,
)
from tests.storage.drawn_record import SMALL, draw_record, store_bytes
from tests.storage.writing.writers import IDS, run_writer, writer
from tests.waits import PATIENT_SECONDS


def long(*points: str) -> list[Any]:
    """Moments of a kill that `make test` leaves out."""
    return [pytest.param(point, marks=pytest.mark.long) for point in points]


@pytest.mark.parametrize(
    "point",
    [
        "array:5",
        "rename:1",
        "torn:1",
        *long("array:1", "commit:1", "append:1", "unlink:1", "rename:3", "torn:2"),
    ],
)
def test_a_writer_killed_at_this_point_does_no_harm(
    tmp_path: Path, undisturbed: dict[str, bytes], point: str
) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    assert run_writer(path, *IDS, "--die-at", point) == -signal.SIGKILL
    for scan_id in open_store(path).scan_ids:  # what reads at all reads whole
        open_store(path).scan(scan_id).record()
    sweep(path)
    assert not (path / "tmp").exists()
    assert list(verify(path)) == []
    assert run_writer(path, *IDS) == 0
    finish(path)
    assert store_bytes(path) == undisturbed


@pytest.mark.parametrize("point", ["rename:2", "torn:1", *long("rename:1", "append:1", "unlink:1")])
def test_a_writer_killed_while_replacing_leaves_the_old_scan_or_the_new(
    tmp_path: Path, undisturbed: dict[str, bytes], point: str
) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    for scan_id in IDS:
        commit_scan(path, draw_record(scan_id, shape=SMALL, seed=5))
    old = open_store(path).entries["b"].digests
    assert run_writer(path, *IDS, "--replace", "--die-at", point) == -signal.SIGKILL
    sweep(path)
    assert list(verify(path)) == []
    store = open_store(path)
    assert set(store.scan_ids) == set(IDS)
    assert (store.entries["b"].digests == old) == point.startswith("rename")
    store.scan("b").record()
    assert run_writer(path, *IDS, "--replace") == 0
    finish(path)
    assert store_bytes(path) == undisturbed


@pytest.mark.long
def test_writers_killed_at_random_moments_do_no_harm(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    moments = random.Random(7)
    finished: set[str] = set()
    for _ in range(6):
        process = writer(path, *IDS)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.35))
        process.kill()
        done, _ = process.communicate()
        assert not finished & set(done.split()), "a finished scan was done again"
        sweep(path)
        assert set(done.split()) <= set(open_store(path).scan_ids)
        finished = set(open_store(path).scan_ids)
        assert list(verify(path)) == []
    assert run_writer(path, *IDS) == 0
    finish(path)
    assert store_bytes(path) == undisturbed


def test_a_sweep_leaves_live_writers_alone(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = storage.writing.scan_writer.write_scan
    swept: list[int] = []

    def write_and_sweep(folder: Path, record: ScanRecord) -> None:
        real(folder, record)
        sweeper = threading.Thread(target=lambda: swept.append(sweep(empty_store)))
        sweeper.start()
        sweeper.join()

    monkeypatch.setattr(storage.writing.scan_writer, "write_scan", write_and_sweep)
    commit_scan(empty_store, draw_record("a", shape=SMALL))
    assert swept == [0]
    assert open_store(empty_store).scan_ids == ("a",)


@pytest.mark.long
def test_writers_at_once_end_in_the_same_store(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    writers = [writer(path, *ids) for ids in (IDS, IDS, IDS[::-1])]
    for process in writers:
        process.communicate(timeout=PATIENT_SECONDS)
        assert process.returncode == 0
    assert list(verify(path)) == []
    finish(path)
    assert store_bytes(path) == undisturbed


def test_threads_at_once_end_in_the_same_store(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path
    records = [draw_record(scan_id, shape=SMALL) for scan_id in IDS]
    threads = [
        threading.Thread(target=lambda: [commit_scan(path, record) for record in records]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(path)
    assert store_bytes(path) == undisturbed
