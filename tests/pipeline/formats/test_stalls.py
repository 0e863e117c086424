"""A read that stands still is given up; one that is slow, or computes, or fails, is not."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from pipeline.errors import StalledRead
from pipeline.formats import is_transient, stalls
from pipeline.formats.stalls import hurry_reads, until_stalled

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc of Linux")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe into which nobody writes; what waits for it is let go at the end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    for _ in range(threading.active_count()):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            break


def test_a_read_that_waits_for_its_first_byte_is_given_up(pipe: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StalledRead, match=r"here/x: not a byte came for 0\.4 s") as caught:
        until_stalled(pipe.read_bytes, seconds=0.4, shown="here/x")
    assert 0.3 < time.monotonic() - began < 30
    assert not is_transient(caught.value), "this run does not wait for it a second time"


def test_a_read_whose_bytes_stop_is_given_up(pipe: Path) -> None:
    got: list[int] = []

    def reading() -> None:
        with pipe.open("rb", buffering=0) as file:
            while chunk := file.read(10):
                got.append(len(chunk))

    def writing() -> None:
        file = pipe.open("wb", buffering=0)
        file.write(b"x" * 25)
        still_open.append(file)

    still_open: list[FileIO] = []
    writer = threading.Thread(target=writing)
    writer.start()
    with pytest.raises(StalledRead):
        until_stalled(reading, seconds=0.6, shown="x")
    assert sum(got) == 25
    writer.join()
    still_open[0].close()


def test_a_slow_read_is_not_given_up(pipe: Path) -> None:
    def writing() -> None:
        with pipe.open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"x")
                time.sleep(0.15)

    writer = threading.Thread(target=writing)
    writer.start()
    assert until_stalled(pipe.read_bytes, seconds=1.0, shown="x") == b"x" * 10
    writer.join()


def test_a_read_that_computes_for_long_is_not_given_up() -> None:
    def computing() -> int:
        end, count = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            count += 1
        return count

    assert until_stalled(computing, seconds=0.5, shown="x") > 0


def test_the_error_of_a_read_is_its_own() -> None:
    def failing() -> None:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        until_stalled(failing, seconds=1.0, shown="x")


def test_a_read_sees_the_context_of_its_caller() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("ann")
    assert until_stalled(name.get, seconds=1.0, shown="x") == "ann"


def test_once_somebody_waits_for_the_end_a_stalled_read_is_given_up_soon(
    pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "HURRIED_SECONDS", 0.5)
    hurry_reads()
    try:
        with pytest.raises(StalledRead, match=r"for 0\.5 s"):
            until_stalled(pipe.read_bytes, seconds=300.0, shown="x")
    finally:
        hurry_reads(False)
    assert until_stalled(lambda: 5, seconds=300.0, shown="x") == 5


def test_where_the_system_does_not_say_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "_activity", lambda thread: None)
    assert until_stalled(lambda: time.sleep(0.5) or 1, seconds=0.1, shown="x") == 1
