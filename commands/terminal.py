"""Output in the terminal: progress while a command works, tables when it is done.

Progress goes to stderr, results to stdout. Nothing here decides anything.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from commands.progress import Progress
from pipeline.errors import Failure

Thing = TypeVar("Thing")

_TICK_SECONDS = 1.0
"""Seconds between two drawings of the same state."""

_DRAW_SECONDS = 0.1
"""Least seconds between two drawings of new states."""

_LINE_WIDTH = 90
"""Columns of the line beside a bar, if the terminal is wide enough."""


class CommandError(Exception):
    """A command cannot be carried out; the message says why and what to do."""


class State(Protocol):
    """Progress of a run, as `shown` takes it."""

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done."""

    def line(self) -> str:
        """Return the progress in one line."""

    def later(self, seconds: float) -> State:
        """Return the progress some seconds later, if nothing was done since."""


class Precision(Protocol):
    """Precision of a training, as `print_precision` takes it."""

    @property
    def line(self) -> str:
        """The choice and its reason in one line."""

    @property
    def warning(self) -> str:
        """Warning on the cost of the choice; empty if there is none."""


@contextmanager
def shown(title: str, watch: Callable[[State], None] | None = None) -> Iterator[Callable[[State], None]]:
    """Show progress: a live bar in a terminal; else a line every five seconds, later every thirty.

    Both continue without new states: the time since the last one is part of the line.

    Args:
        title: Name of the work.
        watch: Called with every state too, about once a second, from another thread.

    Yields:
        A function that takes the newest state.
    """
    with _live_bar(title) if sys.stderr.isatty() else _lines(title) as draw, _Ticker() as ticker:
        ticker.draw = draw
        ticker.watch = watch
        yield ticker.take


class _Ticker:
    """Draws the newest state when it comes, and about once a second, from its own thread."""

    def __init__(self) -> None:
        self.draw: Callable[[State], None] = lambda state: None
        self.watch: Callable[[State], None] | None = None
        self._newest: tuple[State, float] | None = None
        self._drawn = -math.inf
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._newest and self.watch:
            self.watch(self._newest[0])

    def take(self, state: State) -> None:
        """Take the newest state; draw it, unless one was drawn just before."""
        now = time.monotonic()
        self._newest = (state, now)
        if now - self._drawn >= _DRAW_SECONDS:
            self._draw(state)

    def _draw(self, state: State) -> None:
        with self._lock:
            self._drawn = time.monotonic()
            self.draw(state)

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            if self._newest:
                state, since = self._newest
                now = state.later(time.monotonic() - since)
                self._draw(now)
                if self.watch:
                    self.watch(now)


@contextmanager
def _lines(title: str) -> Iterator[Callable[[State], None]]:
    """Print a line every few seconds."""
    last = 0.0

    def say(state: State) -> None:
        nonlocal last
        if state.seconds - last >= (5 if state.seconds < 60 else 30):
            last = state.seconds
            print(f"{title}: {state.line()}", file=sys.stderr, flush=True)

    yield say


@contextmanager
def _live_bar(title: str) -> Iterator[Callable[[State], None]]:
    """Draw a bar with the line; in a narrow terminal without the bar, or with the line wrapped."""
    import rich.console
    import rich.progress
    import rich.table

    console = rich.console.Console(stderr=True)
    bar_width = min(30, max(6, console.width - _LINE_WIDTH - len(title)))
    columns = (
        rich.progress.TextColumn(title, table_column=rich.table.Column(no_wrap=True)),
        rich.progress.BarColumn(bar_width),
        rich.progress.TextColumn(
            "{task.description}",
            markup=False,
            table_column=rich.table.Column(ratio=1),
        ),
    )
    with rich.progress.Progress(*columns, console=console, transient=True, expand=True) as bar:
        line = bar.add_task("", total=1.0)
        yield lambda state: bar.update(line, completed=state.fraction, description=state.line())


def print_precision(chosen: Precision) -> None:
    """Print the precision of a training and its reason, and a warning if it is slow."""
    print(chosen.line, flush=True)
    if chosen.warning:
        print(f"warning: {chosen.warning}", flush=True)


def counted(title: str, things: Sequence[Thing], *, failed: Sized = ()) -> Iterator[Thing]:
    """Yield things one by one, with progress.

    Args:
        title: Name of the work.
        things: Things to count, such as names of scans.
        failed: Grows by one with each thing that fails.
    """
    began = time.monotonic()
    with shown(title) as show:

        def report(done: int) -> None:
            name = things[done] if done < len(things) else ""
            show(
                Progress.of_equals(
                    done,
                    len(things),
                    time.monotonic() - began,
                    failed=len(failed),
                    in_hand=name if isinstance(name, str) else "",
                )
            )

        for number, thing in enumerate(things):
            report(number)
            yield thing
        report(len(things))


def printable(text: object) -> str:
    """Return a text without control characters, which names in files may contain."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def decimals(value: float, digits: int = 3) -> str:
    """Return a number with so many decimals; "-" for NaN, the mean of nothing."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def json_number(value: float) -> float | None:
    """Return a number for a JSON document, which cannot hold NaN: None in its place."""
    return None if math.isnan(value) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table to stdout, as wide as the terminal (120 without one); numbers are right-aligned."""
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
        cells = (f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row)
        table.add_row(*(rich.text.Text(cell) for cell in cells))
    rich.console.Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_failures(failures: Sequence[Failure]) -> None:
    """Print failures with their reasons."""
    if failures:
        rows = [(f.scan_id, f.location, f.reason, f.remedy) for f in failures]
        print_table(f"failed ({len(failures)})", ("scan", "file", "reason", "remedy"), rows)
