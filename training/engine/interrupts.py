"""Signals that ask a training to end: noted, so that the step in hand is finished and saved.

*Valid* in the main thread. Under torchrun one Ctrl-C comes twice, from the terminal and from torchrun, so
that a second signal ends the process only after a pause.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PAUSE_SECONDS = 2.0
"""A signal that comes sooner after the first one is taken for its echo."""


@contextmanager
def noted_signals(received: list[int], *, aloud: bool = True) -> Iterator[None]:
    """Add SIGINT and SIGTERM to `received` in place of ending; a later one ends the process at once.

    Args:
        received: Is added to.
        aloud: Whether to say so on stderr.
    """
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and time.monotonic() - first > PAUSE_SECONDS:
            os._exit(128 + number)  # safe: checkpoints are whole or absent
        if not received:
            first = time.monotonic()
            if aloud:
                print(
                    "\nstopping: this step is finished and saved; once more to stop at once", file=sys.stderr
                )
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
