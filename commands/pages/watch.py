"""A page that is updated while a command works: `--watch`.

Writes: one HTML file, replaced atomically each time, so that a browser never reads half of it. The page makes
the browser reload it; the last version, at the end of the command, does not. Bounds: there is no server: the
file is opened from the disk, or wherever its folder is shown.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands.terminal import CommandError, State

REFRESH_SECONDS = 10
"""Least seconds between two versions of a page."""

MakePage = Callable[[str, int], str]
"""Takes the progress in one line, and the seconds after which the page is reloaded (0: never). Returns the
page, or "" while there is nothing to show."""


@contextmanager
def watched(path: Path | None, make: MakePage) -> Iterator[Callable[[State], None] | None]:
    """Keep a page up to date during the block; write it a last time at its end.

    Args:
        path: The page; None for none.
        make: Returns the page.

    Yields:
        A function that takes each state, for `commands.terminal.shown`.
    """
    if path is None:
        yield None
        return
    writer = _Writer(path, make)
    print(f"page, renewed every {REFRESH_SECONDS} s: {path.resolve().as_uri()}", file=sys.stderr)
    ended = ""
    try:
        yield writer
    except BaseException as error:
        ended = f"Stopped: {type(error).__name__}."
        raise
    finally:
        writer.end(ended)


class _Writer:
    def __init__(self, path: Path, make: MakePage) -> None:
        self._path, self._make = path, make
        self._written = -float(REFRESH_SECONDS)
        self._failed = False

    def __call__(self, state: State) -> None:
        """Write the page anew, if the last one is old enough."""
        if time.monotonic() - self._written >= REFRESH_SECONDS:
            self._write(state.line(), REFRESH_SECONDS)

    def end(self, text: str) -> None:
        """Write the page a last time."""
        self._write(text, 0)

    def _write(self, text: str, refresh_seconds: int) -> None:
        """Write the page. An error of the disk does not end the work: it is printed once."""
        if self._failed:
            return
        self._written = time.monotonic()
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            page = self._make(text, refresh_seconds)
            if page:
                part.write_text(page, encoding="utf-8")
                os.replace(part, self._path)
        except (OSError, CommandError) as error:
            self._failed = True
            print(
                f"warning: {self._path}: the page cannot be written ({error}); the work goes on",
                file=sys.stderr,
            )
