"""Items in several processes: all are done, errors come through, and no worker outlives what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from training.engine import in_processes
from training.errors import TrainingError

STARTER = """
import signal
from functools import partial
from pathlib import Path
from tests.training.engine.test_processes import wait_for_ever
from training.engine import in_processes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin with it ignored
    list(in_processes(partial(wait_for_ever, Path({folder!r})), range(5), 2))
"""


def doubled(number: int) -> int:
    return 2 * number


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def ends_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for_ever(folder: Path, number: int) -> None:
    temporary = folder / f"{os.getpid()}.tmp"
    temporary.write_text(str(number))
    try:
        time.sleep(600)
    finally:
        temporary.unlink()


def test_each_item_is_done_once() -> None:
    assert sorted(in_processes(doubled, range(7), 2)) == [0, 2, 4, 6, 8, 10, 12]
    assert list(in_processes(doubled, [], 2)) == []


def threads_of_a_worker(number: int) -> tuple[int, int]:
    return torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_workers_share_the_processors(workers: int) -> None:
    each = max(1, len(os.sched_getaffinity(0)) // workers)
    assert set(in_processes(threads_of_a_worker, range(2), workers)) == {(each, each)}


def test_an_error_comes_through() -> None:
    with pytest.raises(ValueError, match="three"):
        list(in_processes(fails_at_three, range(9), 2))


def test_a_worker_that_ends_early_is_an_error_that_says_so() -> None:
    with pytest.raises(TrainingError, match=r"ended early.*--workers.*goes on"):
        list(in_processes(ends_at_three, range(9), 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent_and_what_it_began_is_removed(tmp_path: Path, number: int) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER.format(folder=str(tmp_path)))
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    ) as starter:
        try:
            workers = _when(lambda: [int(path.stem) for path in tmp_path.glob("*.tmp")], 2)
            starter.send_signal(number)
            assert starter.wait(timeout=60) != 0
        finally:
            starter.kill()
    _when(lambda: [pid for pid in workers if not _runs(pid)], 2)
    assert not list(tmp_path.glob("*.tmp"))


def _when(found: Callable[[], list[int]], number: int, seconds: float = 90.0) -> list[int]:
    end = time.monotonic() + seconds
    while len(found()) < number:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
