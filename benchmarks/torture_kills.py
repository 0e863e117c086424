"""SIGKILL at random moments, and faults of the disk at random calls: lives of the subjects.

A life is a folder: begun, disturbed once or several times, then run to its end. After each disturbance and at
the end it is compared with an undisturbed run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from errno import EIO
from functools import partial
from pathlib import Path

from benchmarks.torture_children import Ended, run_child
from benchmarks.torture_faults import (
    ERRORS,
    Fault,
    can_mount,
    injected,
    limit_file_size,
    resize,
    small_disk,
)
from benchmarks.torture_subjects import Subject

KILLS_A_LIFE = 5
"""Most kills before a life is run to its end."""


@dataclass(kw_only=True)
class Life:
    """What became of one life; a line of the results."""

    series: str
    subject: str
    number: int
    disturbances: int = 0
    """Kills, or faults that were reached."""
    in_the_middle: int = 0
    """Disturbances that left something half-written to be cleared away."""
    told: int = 0
    """Faults that ended a run with an exit code and a message."""
    wrong: list[str] = field(default_factory=list)
    """What must not have happened, in words; empty is good."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the line."""
        return asdict(self)


def kill_life(
    subject: Subject, undisturbed: Path, folder: Path, *, kills: int, seed: int, number: int
) -> Life:
    """Kill a subject up to `kills` times at random moments, then let it finish.

    Args:
        subject: The command.
        undisturbed: Folder of its undisturbed run.
        folder: An empty folder for this life.
        kills: Most kills.
        seed: Of the moments, with `number`.
        number: Number of the life.
    """
    dice = random.Random(f"{seed} {subject.name} {number}")
    life = Life(series="kills", subject=subject.name, number=number)
    subject.begin(folder)
    seen: set[str] = subject.finished(folder)
    longest = _seconds(undisturbed)
    for _ in range(kills):
        # A run that goes on has less to do: later kills come earlier.
        ended = run_child(
            lambda: subject.run(folder), folder.with_suffix(".log"), kill_after=dice.uniform(0.02, longest)
        )
        life.seconds += ended.seconds
        note(life, subject, folder, ended, seen)
        if ended.code is not None:
            if ended.code:
                life.wrong.append(f"exit code {ended.code} after a kill: {ended.output[-600:]}")
            _set_seconds(undisturbed, ended.seconds, whole=life.disturbances == 0)
            break
        life.disturbances += 1
        life.in_the_middle += bool(_half_written(folder))
        longest = max(0.1, 0.8 * longest)
    finish_life(life, subject, undisturbed, folder, seen)
    return life


def fault_life(
    subject: Subject, undisturbed: Path, folder: Path, *, calls: int, seed: int, number: int
) -> Life:
    """Fail a call of a subject on its own folder, once or for good, then let it finish on a sound disk.

    Args:
        subject: The command.
        undisturbed: Folder of its undisturbed run.
        folder: An empty folder for this life.
        calls: Calls of an undisturbed run (`count_calls`).
        seed: Of the faults, with `number`.
        number: Number of the life.
    """
    dice = random.Random(f"{seed} {subject.name} {number} fault")
    error = ERRORS[number % len(ERRORS)]
    fault = Fault(call=dice.randint(1, max(1, calls)), error=error, lasting=dice.random() < 0.5)
    life = Life(series="faults", subject=subject.name, number=number)
    subject.begin(folder)
    seen = subject.finished(folder)
    reached = folder.with_suffix(".reached")

    def work() -> int:
        with injected(folder / subject.target, fault) as injector:
            try:
                return subject.run(folder)
            finally:
                reached.write_text(f"{injector.failed}")

    ended = run_child(work, folder.with_suffix(".log"))
    life.seconds += ended.seconds
    life.disturbances = int(reached.read_text() != "0")
    life.told = int(bool(ended.code))
    life.in_the_middle += bool(_half_written(folder))
    if "Traceback" in ended.output:
        life.wrong.append(f"{fault}: ended by a traceback: {ended.output[-1200:]}")
    note(life, subject, folder, ended, seen)
    finish_life(life, subject, undisturbed, folder, seen)
    return life


def count_calls(subject: Subject, folder: Path) -> int:
    """Return how many calls of an undisturbed run could be failed."""
    subject.begin(folder)
    counted = folder.with_suffix(".reached")

    def work() -> int:
        with injected(folder / subject.target, Fault(call=0, error=EIO, lasting=False)) as injector:
            code = subject.run(folder)
            counted.write_text(f"{injector.calls}")
            return code

    ended = run_child(work, folder.with_suffix(".log"))
    if ended.code:
        raise RuntimeError(f"{subject.name} fails while its calls are counted:\n{ended.output}")
    return int(counted.read_text())


def full_life(subject: Subject, undisturbed: Path, folder: Path, *, seed: int, number: int) -> Life:
    """Let the disk of a subject be full at a random moment, then make room and let it finish."""
    dice = random.Random(f"{seed} {subject.name} {number} full")
    life = Life(series="full disk", subject=subject.name, number=number)
    target = undisturbed / subject.target
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    if not can_mount(folder):
        subject.begin(folder)
        limit = dice.randint(64, max(sizes))
        with_limit = partial(_limited, subject, folder, limit)
        _full(life, subject, folder, with_limit)
        finish_life(life, subject, undisturbed, folder, subject.finished(folder))
        return life
    needed = sum((size + 4095) // 4096 * 4 for size in sizes)
    with small_disk(folder, 4096) as make_room:
        subject.begin(folder)
        begun = sum((path.stat().st_size + 4095) // 4096 * 4 for path in folder.rglob("*") if path.is_file())
        resize(folder, begun + dice.randint(8, max(9, needed - begun)))
        _full(life, subject, folder, lambda: subject.run(folder))
        make_room()
        finish_life(life, subject, undisturbed, folder, subject.finished(folder), keep=True)
    return life


def _limited(subject: Subject, folder: Path, limit: int) -> int:
    limit_file_size(limit)
    return subject.run(folder)


def _full(life: Life, subject: Subject, folder: Path, work: Callable[[], int]) -> None:
    """Run into the full disk; it must be told, and nothing may be lost."""
    seen = subject.finished(folder)
    ended = run_child(work, folder.with_suffix(".log"))
    life.seconds += ended.seconds
    life.disturbances = life.told = int(bool(ended.code))
    life.in_the_middle += bool(_half_written(folder))
    if "Traceback" in ended.output:
        life.wrong.append(f"ended by a traceback: {ended.output[-1200:]}")
    note(life, subject, folder, ended, seen)


def note(life: Life, subject: Subject, folder: Path, ended: Ended, seen: set[str]) -> None:
    """Write down what a disturbance has done that it must not."""
    life.wrong += [f"left behind: {name}" for name in ended.left_behind]
    try:
        life.wrong += subject.damage(folder)
        now = subject.finished(folder)
    except Exception as error:  # noqa: BLE001 - a reader that fails is what is looked for
        life.wrong.append(f"unreadable after it: {type(error).__name__}: {error}")
        return
    life.wrong += [f"lost: {scan_id}" for scan_id in sorted(seen - now)]
    seen |= now


def finish_life(
    life: Life, subject: Subject, undisturbed: Path, folder: Path, seen: set[str], *, keep: bool = False
) -> None:
    """Let a life come to its end, and compare it with the undisturbed run; it is kept where it differs."""
    ended = run_child(lambda: subject.run(folder), folder.with_suffix(".log"))
    life.seconds += ended.seconds
    note(life, subject, folder, ended, seen)
    if ended.code:
        life.wrong.append(f"it does not come to its end: code {ended.code}: {ended.output[-600:]}")
    expected, found = subject.outcome(undisturbed), subject.outcome(folder)
    life.wrong += [
        f"differs: {key}" for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)
    ]
    if not life.wrong and not keep:
        shutil.rmtree(folder)


def _half_written(folder: Path) -> list[Path]:
    """Return what a crash left to be cleared away."""
    return [*folder.glob("store/tmp/*"), *folder.rglob("*.part")]


def _seconds(undisturbed: Path) -> float:
    return float((undisturbed / "done").read_text())


def _set_seconds(undisturbed: Path, seconds: float, *, whole: bool) -> None:
    """Follow the speed of the machine, which changes with what else it does."""
    if whole:
        (undisturbed / "done").write_text(f"{seconds}")
