"""Commits scans in a process of its own, to be killed.

    python -m tests.storage.writer STORE [ID...] [--die-at POINT:N]

POINT is a moment, N which of them: `array` before an array is written, `commit` before COMMIT.json, `rename`
before a folder is renamed, `append` before an index line, `torn` within it, `unlink` before clearing up.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storage.reading.index
import storage.writing.committing
import storage.writing.scan_writer
from storage import commit_scan, open_store
from tests.storage.drawn_record import SMALL, draw_record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--die-at", default="never:0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replace", action="store_true")
    options = parser.parse_args(arguments)
    plan_death(*options.die_at.split(":"))
    records = [draw_record(scan_id, shape=SMALL, seed=options.seed) for scan_id in options.ids]
    print("ready", flush=True)
    for record in records:
        known = open_store(options.store).entries.get(record.scan_id)
        if known is None or options.replace:
            commit_scan(options.store, record, replace=options.replace)
            print(record.scan_id, flush=True)
    return 0


def plan_death(point: str, number: str = "1") -> None:
    match point:
        case "rename":
            die_in(Path, "rename", int(number))
        case "append":
            die_in(storage.writing.committing, "append_entry", int(number))
        case "torn":
            write_half(int(number))
        case "commit":
            die_in(storage.writing.committing, "write_file", int(number))
        case "array":
            die_in(storage.writing.scan_writer, "_write_array", int(number))
        case "unlink":
            die_in(storage.writing.committing, "remove_tree", int(number))


def die_in(owner: Any, name: str, number: int) -> None:
    """Make the `number`-th call of owner.name the process's last."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, number + 1))

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) == number:
            die()
        return real(*args, **kwargs)

    setattr(owner, name, dying)


def write_half(number: int) -> None:
    """Make the `number`-th index line the process's last, half of it written."""
    real = os.write
    calls = iter(range(1, number + 1))

    def torn(handle: int, data: bytes) -> int:
        if next(calls, None) == number:
            real(handle, data[: len(data) // 2])
            die()
        return real(handle, data)

    storage.reading.index.os.write = torn  # type: ignore[attr-defined]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
