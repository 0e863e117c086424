"""What the terminal shows: progress while a command works, tables when it is done.

Progress goes to stderr, results to stdout. Nothing here decides anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from commands.progress import Progress
from pipeline.errors import Failure

Thing = TypeVar("Thing")


class CommandError(Exception):
    """A command cannot be carried out; the message says why and what to do."""


class State(Protocol):
    """How far a long work is, as `shown` takes it."""

    @property
    def seconds(self) -> float:
        """Since the work began."""

    @property
    def fraction(self) -> float:
        """Part of the work that is done."""

    def line(self) -> str:
        """The state in one line."""


class Precision(Protocol):
    """What a training computes in, as `print_precision` takes it."""

    @property
    def line(self) -> str:
        """The choice and its reason in one line."""

    @property
    def warning(self) -> str:
        """What the choice costs; empty where it costs nothing."""


@contextmanager
def shown(title: str) -> Iterator[Callable[[State], None]]:
    """A live bar where there is a terminal; else a line every five seconds, later every thirty."""
    if not sys.stderr.isatty():
        last = 0.0

        def say(progress: State) -> None:
            nonlocal last
            if progress.seconds - last >= (5 if progress.seconds < 60 else 30):
                last = progress.seconds
                print(f"{title}: {progress.line()}", file=sys.stderr, flush=True)

        yield say
        return
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn(title),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.description}"),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=1.0)

        def draw(progress: State) -> None:
            bar.update(line, completed=progress.fraction, description=progress.line())

        yield draw


def print_precision(chosen: Precision) -> None:
    """Print what a training computes in and why, with what that costs where it costs much."""
    print(chosen.line, flush=True)
    if chosen.warning:
        print(f"warning: {chosen.warning}", flush=True)


def counted(title: str, things: Sequence[Thing]) -> Iterator[Thing]:
    """The things one by one, with progress shown."""
    began = time.monotonic()
    with shown(title) as show:
        for number, thing in enumerate(things):
            yield thing
            show(Progress.of_equals(number + 1, len(things), time.monotonic() - began))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table to stdout, as wide as the terminal (120 where there is none); numbers to the right."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    body = [list(row) for row in rows]
    table = rich.table.Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = bool(body) and all(isinstance(row[number], int | float) for row in body)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        table.add_row(*(rich.text.Text(cell) for cell in cells))
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_failures(failures: Sequence[Failure]) -> None:
    """Print what failed and why."""
    if failures:
        rows = [(f.scan_id, f.location, f.reason, f.remedy) for f in failures]
        print_table(f"failed ({len(failures)})", ("scan", "file", "reason", "remedy"), rows)
