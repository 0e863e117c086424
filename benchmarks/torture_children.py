"""Runs work in forked children of a process that has imported everything, so that killing one is cheap.

Python, PyTorch, Prefect and Numba's compiled code take ten seconds and more to load, a fork takes
milliseconds, and a kill then falls into the work itself rather than into the start. The process of the
torture becomes the reaper of all its descendants: what a killed child leaves running is found, and counted.

Linux only (fork, /proc, prctl).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_END = 5.0
"""Longest time in which the children of a killed process must have ended."""

LONGEST_SECONDS = 600.0
"""A run that takes longer hangs."""

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Its exit code; None where it was killed."""
    seconds: float
    output: str
    """What it wrote to the terminal."""
    left_behind: tuple[str, ...]
    """Command lines of its descendants that were still there `SECONDS_TO_END` after it."""


def become_reaper(*, reaper: bool = True) -> None:
    """Let orphans among the descendants of this process become its children; or no more."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(reaper), 0, 0, 0)


def run_child(
    work: Callable[[], int],
    log: Path,
    *,
    kill_after: float | None = None,
    longest: float = LONGEST_SECONDS,
) -> Ended:
    """Do work in a child, and perhaps kill it.

    Args:
        work: Returns an exit code; an exception is printed, and is code 70.
        log: File that takes what the child writes to the terminal.
        kill_after: Seconds until SIGKILL; none lets it end by itself.
        longest: Seconds after which it is killed as one that hangs, which is a RuntimeError.
    """
    before = descendants(os.getpid())
    began = time.monotonic()
    with warnings.catch_warnings():
        # Of threads that a fork does not take along: the work begins those that it needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_child(work, log)
    deadline = began + (longest if kill_after is None else kill_after)
    status = None
    while status is None and time.monotonic() < deadline:
        time.sleep(0.005)
        status = _wait(child)
    seconds = time.monotonic() - began
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    left = _end_all(before)
    output = log.read_text(errors="replace") if log.exists() else ""
    if status is None and kill_after is None:
        raise RuntimeError(f"a run took more than {longest:.0f} s; its last words: {output[-2000:]}")
    code = None if status is None or os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Ended(code=code, seconds=seconds, output=output, left_behind=left)


def descendants(process: int) -> set[int]:
    """Return all descendants of a process, ended ones that nobody has asked for left out."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found: set[int] = set()
    pending = [process]
    while pending:
        parent_id = pending.pop()
        more = {child for child, of in parents.items() if of == parent_id} - found
        found |= more
        pending += more
    return found


def _be_child(work: Callable[[], int], log: Path) -> None:
    """Work in a session of its own, without a terminal; never returns."""
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, out), (2, out)):
            os.dup2(source, target)
        code = work()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it was, the parent sees it in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int | None:
    done, status = os.waitpid(child, os.WNOHANG)
    return status if done else None


def _end_all(before: set[int]) -> tuple[str, ...]:
    """Wait for the descendants that were not there before; kill those that stay, and name them."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := descendants(os.getpid()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
        _reap(left)
    names = tuple(sorted(_command_line(process) for process in left))
    for process in left:
        os.kill(process, signal.SIGKILL)
    return names


def _reap(processes: set[int]) -> None:
    for process in processes:
        try:
            os.waitpid(process, os.WNOHANG)
        except ChildProcessError:  # a grandchild: its parent asks for it, or is about to end
            continue


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return f"process {process}"
