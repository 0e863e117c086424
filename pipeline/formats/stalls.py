"""A time limit for reads without progress, as on a network disk that does not answer.

*Reads*: what a thread of this process has read and computed so far (/proc of Linux; elsewhere there is no
limit). *Writes*: nothing. A thread that the system holds cannot be ended: it is left behind, and ends with
the process.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.errors import StalledRead

Result = TypeVar("Result")

HURRIED_SECONDS = 5.0
"""Time limit in seconds while a user waits for the end of the run."""

_POLL_SECONDS = 0.5

_hurried = threading.Event()
"""Set while a user waits for the end of the run; a signal handler has no other way to say so."""


def hurry_reads(hurried: bool = True) -> None:
    """Give up stalled reads of this process after `HURRIED_SECONDS`; False: after their own limits again."""
    if hurried:
        _hurried.set()
    else:
        _hurried.clear()


def until_stalled(read: Callable[[], Result], *, seconds: float, shown: str) -> Result:
    """Return the result of a function that reads files, in a thread of its own.

    Args:
        read: The function.
        seconds: Longest time in which its thread may neither get a byte nor compute.
        shown: Name of the scan in the message.

    Raises:
        StalledRead: The thread made no progress for longer.
    """
    thread = _Reading(read)
    thread.start()
    poll = min(_POLL_SECONDS, seconds / 4)
    last, idle = _activity(thread.native_id), 0.0
    while True:
        thread.join(poll)
        if not thread.is_alive():
            return thread.outcome()
        now = _activity(thread.native_id)
        # Polls are counted, not the time on a clock: a process that was stopped has not waited.
        idle = 0.0 if now is None or now != last else idle + poll
        last = now
        limit = min(seconds, HURRIED_SECONDS) if _hurried.is_set() else seconds
        if idle >= limit:
            raise StalledRead(
                f"not a byte came for {limit:g} s while it was read",
                path=shown,
                remedy="Check the disk or network that it lies on; the next run tries again",
            )


class _Reading(threading.Thread, Generic[Result]):
    """A thread that calls a function and keeps its result or its error."""

    def __init__(self, read: Callable[[], Result]) -> None:
        super().__init__(name="reading", daemon=True)
        self._read = read
        self._context = contextvars.copy_context()
        self._results: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._results.append(self._context.run(self._read))
        except BaseException as error:  # noqa: BLE001 - raised again by `outcome`
            self._error = error

    def outcome(self) -> Result:
        """Return what the function returned, or raise what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # else the frames of the error would keep it, and it them
        return self._results.pop()


def _activity(thread: int | None) -> tuple[str, ...] | None:
    """Return bytes read and processor time of a thread so far; None where the system does not say."""
    folder = Path(f"/proc/self/task/{thread}")
    try:
        # After the command's name, which is in parentheses: fields 14 and 15 are user and system time.
        times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    try:
        return (*times, (folder / "io").read_text().partition("\n")[0])
    except OSError:  # some containers hide it; processor time remains, which reading takes too
        return tuple(times)
