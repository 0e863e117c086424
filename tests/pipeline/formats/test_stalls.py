"""A read that stands still is given up; one that is slow, or computes, or fails, is not."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import count
from pathlib import Path

import pytest

from pipeline.errors import StalledRead
from pipeline.formats import is_transient, stalls
from pipeline.formats.stalls import hurry_reads, until_stalled
from tests.waits import PATIENT_SECONDS

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


Act = Callable[[int, "int | None"], None]


def at_each_poll(monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """Act before the reading thread is looked at, with how often it was, and its number.

    So tests go by polls, of which four make a limit, and not by a clock, which goes on while a machine stands
    still.
    """
    plain, polls = stalls._activity, count(1)

    def activity(thread: int | None) -> tuple[str, ...] | None:
        act(next(polls), thread)
        return plain(thread)

    monkeypatch.setattr(stalls, "_activity", activity)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_read_that_waits_for_its_first_byte_is_given_up(pipe: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StalledRead, match=r"here/x: not a byte came for 0\.4 s") as caught:
        until_stalled(pipe.read_bytes, seconds=0.4, shown="here/x")
    assert time.monotonic() - began > 0.3
    assert not is_transient(caught.value), "this run does not wait for it a second time"


class Dripping:
    """A read of a pipe byte by byte, and who writes into it."""

    def __init__(self, pipe: Path) -> None:
        self.pipe = pipe
        self.got: list[bytes] = []
        self.writer: FileIO | None = None

    def read(self) -> int:
        """Read to the end; returns the number of bytes."""
        with self.pipe.open("rb", buffering=0) as file:
            while byte := file.read(1):
                self.got.append(byte)
        return len(self.got)

    def write(self, number: int) -> None:
        """Write bytes, and wait until all of them are read."""
        self.writer = self.writer or self.pipe.open("wb", buffering=0)
        wanted = len(self.got) + number
        self.writer.write(b"x" * number)
        wait_until(lambda: len(self.got) == wanted)

    def close(self) -> None:
        """End the pipe."""
        if self.writer is not None:
            self.writer.close()


def test_a_read_whose_bytes_stop_is_given_up(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drip = Dripping(pipe)
    at_each_poll(monkeypatch, lambda poll, thread: drip.write(25) if poll == 2 else None)
    with pytest.raises(StalledRead):
        until_stalled(drip.read, seconds=0.4, shown="x")
    assert len(drip.got) == 25
    drip.close()


def test_a_slow_read_is_not_given_up(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drip = Dripping(pipe)

    def act(poll: int, thread: int | None) -> None:
        if poll == 30:
            drip.close()
        elif poll % 3 == 0 and poll < 30:
            drip.write(1)

    at_each_poll(monkeypatch, act)
    assert until_stalled(drip.read, seconds=0.2, shown="x") == 9, "each byte came after three of four polls"


def test_a_read_that_computes_for_long_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    plain, last = stalls._activity, [None]

    def computing() -> int:
        number = 0
        while not done.is_set():
            number += 1
        return number

    def act(poll: int, thread: int | None) -> None:
        if poll == 9:
            done.set()
        else:  # until it has had a turn on a processor
            wait_until(lambda: plain(thread) != last[0])
            last[0] = plain(thread)

    at_each_poll(monkeypatch, act)
    assert until_stalled(computing, seconds=0.2, shown="x") > 0


def test_the_error_of_a_read_is_its_own() -> None:
    def failing() -> None:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        until_stalled(failing, seconds=PATIENT_SECONDS, shown="x")


def test_a_read_sees_the_context_of_its_caller() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("ann")
    assert until_stalled(name.get, seconds=PATIENT_SECONDS, shown="x") == "ann"


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
