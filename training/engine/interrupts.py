"""Records SIGINT, SIGTERM and SIGUSR1 during a training, so that the current step can be finished and saved.

SLURM sends SIGUSR1 some time before a job's limit, if the job asks for it (examples/slurm).

*Valid* in the main thread. Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun.
Therefore a second signal ends the process only if it comes after a pause.
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
"""A signal within this time after the first one is taken to be its duplicate."""


@contextmanager
def noted_signals(received: list[int], *, aloud: bool = True) -> Iterator[None]:
    """Append SIGINT, SIGTERM and SIGUSR1 to `received` and continue; a later signal ends the process at once.

    Args:
        received: Signal numbers; extended in place.
        aloud: Whether to print a message to stderr at the first signal.
    """
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and time.monotonic() - first > PAUSE_SECONDS:
            os._exit(128 + number)  # safe, because checkpoints are written atomically
        if not received:
            first = time.monotonic()
            if aloud:
                print(
                    "\nstopping: this step is finished and saved; once more to stop at once", file=sys.stderr
                )
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
