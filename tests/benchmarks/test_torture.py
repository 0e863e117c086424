"""A short torture, and that it sees what it is made to see."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import EIO
from pathlib import Path

import numpy as np
import pytest

from benchmarks.torture import Record, empty, shared, table_of
from benchmarks.torture_children import become_reaper, run_child
from benchmarks.torture_company import clock_life, clock_set_back, company_life
from benchmarks.torture_faults import Fault, can_mount, injected
from benchmarks.torture_kills import Life, count_calls, fault_life, full_life, kill_life
from benchmarks.torture_rest import (
    Damaged,
    damage,
    digest,
    kinds_of,
    run_contents,
    store_contents,
    store_rest_life,
)
from benchmarks.torture_subjects import Subject, commit_subject, run_undisturbed, tree_digests
from storage import commit_scan, open_store
from storage.checksums import sealed_line, unsealed_line
from tests.storage.drawn_record import SMALL, draw_record
from tests.waits import PATIENT_SECONDS


@pytest.fixture(scope="module", autouse=True)
def _reaper() -> Iterator[None]:
    become_reaper()
    yield
    become_reaper(reaper=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def commit(undisturbed: Path) -> Subject:
    return run_undisturbed(commit_subject(), undisturbed)


@pytest.mark.long
def test_a_writer_that_is_killed_again_and_again_loses_nothing(
    commit: Subject, undisturbed: Path, tmp_path: Path
) -> None:
    lives = [
        kill_life(commit, undisturbed, empty(tmp_path / f"{number}"), kills=4, seed=1, number=number)
        for number in range(2)
    ]
    assert [life.wrong for life in lives] == [[], []]
    assert sum(life.disturbances for life in lives) >= 1


@pytest.mark.long
def test_a_disk_that_fails_at_any_call_loses_nothing(
    commit: Subject, undisturbed: Path, tmp_path: Path
) -> None:
    calls = count_calls(commit, empty(tmp_path / "count"))
    assert calls > 100
    lives = [
        fault_life(commit, undisturbed, empty(tmp_path / f"{number}"), calls=calls, seed=1, number=number)
        for number in range(4)
    ]
    assert [life.wrong for life in lives] == [[]] * 4
    assert sum(life.disturbances for life in lives) >= 3


def test_a_disk_that_is_full_loses_nothing(commit: Subject, undisturbed: Path, tmp_path: Path) -> None:
    life = full_life(commit, undisturbed, empty(tmp_path / "life"), seed=1, number=0)
    assert (life.wrong, life.disturbances, life.told) == ([], 1, 1)


def test_where_nothing_can_be_mounted_files_are_limited(
    commit: Subject, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.torture_kills.can_mount", lambda folder: False)
    life = full_life(commit, undisturbed, empty(tmp_path / "life"), seed=1, number=0)
    assert (life.wrong, life.disturbances) == ([], 1)
    assert can_mount(tmp_path / "disk") in (True, False)


@pytest.mark.long
def test_runs_at_once_and_a_clock_that_is_set_back_change_nothing(
    commit: Subject, undisturbed: Path, tmp_path: Path
) -> None:
    together = company_life(commit, undisturbed, empty(tmp_path / "together"), number=1)
    assert (together.wrong, together.disturbances) == ([], 3)
    assert clock_life(commit, undisturbed, empty(tmp_path / "clock"), seed=1, number=0).wrong == []
    before = time.time()
    with clock_set_back(after_calls=1):
        assert time.time() >= before
        assert before - time.time() > 80_000
    assert time.time() >= before


def careless(write: Callable[[Path], int]) -> Subject:
    """A subject that writes files as it likes."""
    return Subject(
        name="careless",
        target="store",
        begin=lambda folder: (folder / "store").mkdir(),
        run=lambda folder: write(folder / "store"),
        damage=lambda folder: [],
        outcome=lambda folder: tree_digests(folder / "store"),
    )


TESTS = os.getpid()
"""The process of the tests."""


def halfway(store: Path) -> int:
    """Write a file half, and think it whole when it is there; a child is killed between the halves."""
    if not (store / "a").exists():
        (store / "a").write_text("half")
        if os.getpid() != TESTS:
            os.kill(os.getpid(), signal.SIGKILL)
        (store / "a").write_text("half and half")
    return 0


def test_half_a_file_that_is_taken_for_whole_is_seen(tmp_path: Path) -> None:
    subject = careless(halfway)
    subject.begin(empty(tmp_path / "calm"))
    subject.run(tmp_path / "calm")
    (tmp_path / "calm" / "done").write_text(str(PATIENT_SECONDS))  # the kill at a random moment comes later
    life = kill_life(subject, tmp_path / "calm", empty(tmp_path / "life"), kills=1, seed=0, number=0)
    assert life.wrong == ["differs: a"]


def test_a_process_that_is_left_behind_is_seen_and_ended(tmp_path: Path) -> None:
    def leave(store: Path) -> int:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
        return 0

    ended = run_child(lambda: leave(tmp_path), tmp_path / "log")
    assert ended.code == 0
    (left,) = ended.left_behind
    assert "time.sleep(3600)" in left


def test_a_scan_with_other_bytes_is_seen(commit: Subject, tmp_path: Path) -> None:
    commit.begin(tmp_path)
    assert commit.damage(tmp_path) == []
    index = tmp_path / "store" / "index.jsonl"
    shard = next((tmp_path / "store").glob("scans/*/*/0/c.0.0.0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(commit.damage(tmp_path)) == 1
    lines = index.read_bytes().splitlines(keepends=True)
    other = unsealed_line(lines[0].rstrip(b"\n")).replace(b'"digest":"', b'"digest":"0')
    index.write_bytes(sealed_line(other + b"\n") + b"".join(lines[1:]))
    assert any("other bytes" in words for words in commit.damage(tmp_path))


def test_a_run_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="took more than 0 s"):
        run_child(lambda: time.sleep(3600) or 0, tmp_path / "log", longest=0.2)


@pytest.mark.parametrize("lasting", [False, True])
def test_exactly_the_calls_fail_that_are_to_fail(tmp_path: Path, lasting: bool) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    results = []
    with injected(inside, Fault(call=3, error=EIO, lasting=lasting)) as injector:
        outside.write_text("x")
        for number in range(3):
            try:
                (inside / f"{number}").mkdir()
                results.append(True)
            except OSError:
                results.append(False)
        try:
            (inside / "file").write_text("x")
            results.append(True)
        except OSError:
            results.append(False)
    assert results == [True, True, False, not lasting]
    assert injector.failed == (2 if lasting else 1)
    (inside / "2").mkdir()


def test_a_torture_goes_on_where_it_stopped(tmp_path: Path) -> None:
    record = Record(tmp_path / "lives.jsonl")
    life = Life(series="kills", subject="commit", number=0, disturbances=3, wrong=["lost: a"], seconds=2.0)
    record.add(life)
    record.add(replace(life, series="faults", wrong=[]))
    with (tmp_path / "lives.jsonl").open("a") as file:
        file.write('{"series": "kil')  # killed while it wrote
    again = Record(tmp_path / "lives.jsonl")
    assert again.disturbances("kills", "commit") == 3
    assert [row[:2] + row[6:7] for row in table_of(again.lines)] == [
        ["kills", "commit", "1"],
        ["faults", "commit", "0"],
    ]


def test_a_number_is_shared_out_to_the_last() -> None:
    assert sum(shared(200, {"a": 5, "b": 6, "c": 4, "d": 2.5, "e": 2.5}).values()) == 200
    assert sum(shared(7, {"a": 1, "b": 1, "c": 1}).values()) == 7


def test_the_store_of_the_undisturbed_run_is_whole(commit: Subject, undisturbed: Path) -> None:
    assert commit.damage(undisturbed) == []
    assert len(open_store(undisturbed / "store")) == 6


@pytest.mark.long
def test_damage_at_rest_is_named_mended_and_never_read_as_something_else(
    commit: Subject, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.torture_rest.main", lambda words: commit.run(Path(words[1]).parent))
    keys = kinds_of(undisturbed / "store")
    assert {"store.json", "index.jsonl"} < set(keys)
    assert {Path(key).name for key in keys} >= {"COMMIT.json", "zarr.json", "c.0.0.0"}
    (key,) = (key for key in keys if key.endswith("proposals/c.0.0"))
    for number, fault in enumerate(("flipped bit", "cut", "lost")):
        damaged = Damaged(key=key, fault=fault, number=number)
        life = store_rest_life(commit, undisturbed, empty(tmp_path / f"{number}"), damaged, tmp_path)
        assert (life.wrong, life.told) == ([], 1)


def test_what_is_read_as_something_else_is_seen(undisturbed: Path, commit: Subject, tmp_path: Path) -> None:
    store = undisturbed / "store"
    assert store_contents(store) == store_contents(store)
    copy = shutil.copytree(store, tmp_path / "store")
    commit_scan(copy, draw_record("scan-0", shape=SMALL, seed=9), replace=True)
    changed = {name for name, value in store_contents(copy).items() if value != store_contents(store)[name]}
    assert changed == {"scan scan-0"}
    assert digest({"a": [1, 2.0]}) != digest({"a": [1, 2.5]})
    assert digest(np.zeros(3)) != digest(np.zeros((3, 1)))
    assert isinstance(run_contents(tmp_path)["weights.safetensors"], Exception)


@pytest.mark.parametrize("fault", ["flipped bit", "cut", "lost"])
def test_a_damaged_file_differs(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    damage(path, fault, random.Random(0))
    assert not path.exists() or path.read_bytes() != b"abcdef"
    assert path.exists() == (fault != "lost")
