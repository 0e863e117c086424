"""Several runs on one folder at once, and clocks that are set back: nothing ends, and nothing may differ."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.torture_children import run_child
from benchmarks.torture_kills import Life, finish_life, note
from benchmarks.torture_subjects import Subject

DAY_SECONDS = 86_400.0


def company_life(subject: Subject, undisturbed: Path, folder: Path, *, number: int) -> Life:
    """Run a subject two or three times at once on one folder.

    Args:
        subject: One that allows it: a writer of a store.
        undisturbed: Folder of its undisturbed run.
        folder: An empty folder for this life.
        number: Number of the life; even ones have two runs, odd ones three.
    """
    runs = 2 + number % 2
    life = Life(series="at once", subject=subject.name, number=number, disturbances=runs)
    return _calm_life(life, subject, undisturbed, folder, lambda: _together(subject, folder, runs))


def clock_life(subject: Subject, undisturbed: Path, folder: Path, *, seed: int, number: int) -> Life:
    """Set the clock of a subject back by a day at a random moment."""
    dice = random.Random(f"{seed} {subject.name} {number} clock")
    life = Life(series="clock back", subject=subject.name, number=number, disturbances=1)

    def work() -> int:
        with clock_set_back(after_calls=dice.randint(1, 200)):
            return subject.run(folder)

    return _calm_life(life, subject, undisturbed, folder, work)


def _calm_life(
    life: Life, subject: Subject, undisturbed: Path, folder: Path, work: Callable[[], int]
) -> Life:
    subject.begin(folder)
    seen = subject.finished(folder)
    ended = run_child(work, folder.with_suffix(".log"))
    life.seconds += ended.seconds
    if ended.code:
        life.wrong.append(f"exit code {ended.code}: {ended.output[-600:]}")
    note(life, subject, folder, ended, seen)
    finish_life(life, subject, undisturbed, folder, seen)
    return life


def _together(subject: Subject, folder: Path, runs: int) -> int:
    """Fork so many runs, and return the highest of their exit codes."""
    children = []
    for _ in range(runs):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = subject.run(folder)
            finally:
                os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


@contextmanager
def clock_set_back(*, after_calls: int) -> Iterator[None]:
    """Set `time.time` back by a day after so many calls, as Python sees it; the files' times stay true."""
    real, real_ns = time.time, time.time_ns
    calls = 0

    def back() -> float:
        nonlocal calls
        calls += 1
        return DAY_SECONDS if calls > after_calls else 0.0

    time.time = lambda: real() - back()
    time.time_ns = lambda: real_ns() - int(back() * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = real, real_ns
