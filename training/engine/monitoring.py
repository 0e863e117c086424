"""Records the metrics of a training (JSON lines, TensorBoard) and its progress (one line for the terminal).

*Writes* RUN/metrics.jsonl, with one JSON object per line: "kind" ("train" or "evaluation"), "step" (steps
done), numbers by name, and "checksum" (`storage.sealed_line`); and RUN/tensorboard/. A run that resumes at
step s first removes what was written for later steps, so that every step is recorded once. Only the first
process writes.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from storage import sealed_line, unsealed_line, write_atomically
from training.engine.precision import ChosenPrecision
from training.errors import RunError

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"

_LEAST_SECONDS = 3.0
"""The time left is not estimated before this time."""

_STILL_SECONDS = 20.0
"""If no step has ended for this long, the line says so."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Progress of a training: steps done, loss, speed, time left."""

    step: int
    """Steps done, including those before the run was resumed."""
    num_steps: int
    """Steps of the whole run."""
    loss: float
    """Mean over about the last twenty steps."""
    samples_per_second: float
    """Samples per second, over all processes."""
    data_wait_fraction: float
    """Fraction of the steps' time spent waiting for the loader, without the start of the loader."""
    seconds: float
    """Time since this process got its first batch."""
    steps_here: int
    """Steps done by this process."""
    still_seconds: float = 0.0
    """Time since the last step ended."""

    def later(self, seconds: float) -> TrainingProgress:
        """Return the progress some seconds later, if no step has ended since."""
        return replace(self, still_seconds=self.still_seconds + seconds)

    @property
    def fraction(self) -> float:
        """Fraction of the steps that are done."""
        return self.step / self.num_steps

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end; None while it is too early for an estimate."""
        if self.seconds < _LEAST_SECONDS or not self.steps_here:
            return None
        return self.seconds / self.steps_here * (self.num_steps - self.step)

    def line(self) -> str:
        """Return one line: "step 120/600, loss 0.913, 5.1 samples/s, 1 % waiting for data, 2 s left"."""
        parts = [
            f"step {self.step}/{self.num_steps}",
            f"loss {self.loss:.3f}",
            f"{self.samples_per_second:.1f} samples/s",
            f"{100 * self.data_wait_fraction:.0f} % waiting for data",
        ]
        if self.seconds_left is not None and self.step < self.num_steps:
            parts.append(f"{_duration(self.seconds_left)} left")
        if self.still_seconds >= _STILL_SECONDS:
            parts.append(f"no step for {_duration(self.still_seconds)}: evaluating or saving")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that a run calls while it works, in its first process; None for no call."""

    progress: Callable[[TrainingProgress], None] | None = None
    """After every step."""
    precision: Callable[[ChosenPrecision], None] | None = None
    """Before the first step."""
    warning: Callable[[str], None] | None = None
    """Before the first step, if the scans were prepared differently from those of the checkpoint's
    training."""
    scan: Callable[[str, int, int], None] | None = None
    """After each scan that is encoded or evaluated: "encode" or "report", scans done, number of scans."""


class Monitor:
    """Writes the metrics of a run while it trains."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Open the metrics files of a run, and remove their records of steps after `step`.

        Args:
            folder: Folder of the run.
            step: Steps done.
        """
        self._path = folder / METRICS
        if self._path.exists():
            drop_lines_after(self._path, step)
        self._hook = threading.excepthook
        threading.excepthook = self._note_thread_error
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step to both files; values that are not finite are left out.

        Args:
            kind: "train" or "evaluation".
            step: Steps done.
            values: Numbers by name.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"kind": kind, "step": step, **finite}) + "\n"
        self._file.write(sealed_line(line.encode()).decode())
        self._file.flush()
        for name, value in finite.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Flush to disk; done before a checkpoint, so that the metrics of its steps survive a power cut."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Close the files."""
        threading.excepthook = self._hook
        self._file.close()
        self._board.close()

    def _note_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Print the error that ends a thread, except of TensorBoard's writer: its next call raises it."""
        if not isinstance(error.exc_value, OSError):
            self._hook(error)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a metrics file, without an incomplete last line of a killed process.

    Raises:
        RunError: A line is damaged.
    """
    return [values for _, values in _lines(path)]


def drop_lines_after(path: Path, step: int) -> None:
    """Remove the lines for steps after `step` from a metrics file, atomically."""
    data = b"".join(line + b"\n" for line, values in _lines(path) if values["step"] <= step)
    write_atomically(path, lambda file: file.write(data))


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each complete line of a metrics file, and its values."""
    data = path.read_bytes()
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            values = json.loads(unsealed_line(line))
            if "step" not in values:
                raise ValueError("no step")
            found.append((line, values))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path}: line {number} is damaged ({error}). Remove that line: no weight depends on it"
            ) from error
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
