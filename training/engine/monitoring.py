"""What a training tells while it runs: lines for machines, curves for TensorBoard, a state for the terminal.

*Writes* RUN/metrics.jsonl, a JSON object a line: "kind" ("train" or "evaluation"), "step" (steps done), and
numbers by name; and RUN/tensorboard/. A run that goes on from step s first drops what was written beyond s,
so that every step is told once. Only the first process writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from training.files import write_atomically

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"

_LEAST_SECONDS = 3.0
"""Time left is not told before."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is."""

    step: int
    """Steps done, those of earlier processes too."""
    num_steps: int
    loss: float
    """A mean over about the last twenty steps."""
    samples_per_second: float
    data_wait_fraction: float
    """Part of the steps' time that was spent waiting for the loader; its start does not count."""
    seconds: float
    """Since this process has its first batch."""
    steps_here: int
    """Steps done by this process."""

    @property
    def fraction(self) -> float:
        """Part of the steps that is done."""
        return self.step / self.num_steps

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end, None where it is too early to tell."""
        if self.seconds < _LEAST_SECONDS or not self.steps_here:
            return None
        return self.seconds / self.steps_here * (self.num_steps - self.step)

    def line(self) -> str:
        """The state in a line: "step 120/600, loss 0.913, 5.1 samples/s, 1 % waiting for data, 2 s left"."""
        parts = [
            f"step {self.step}/{self.num_steps}",
            f"loss {self.loss:.3f}",
            f"{self.samples_per_second:.1f} samples/s",
            f"{100 * self.data_wait_fraction:.0f} % waiting for data",
        ]
        if self.seconds_left is not None and self.step < self.num_steps:
            parts.append(f"{_duration(self.seconds_left)} left")
        return ", ".join(parts)


class Monitor:
    """The metrics of a run, written as they come."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Open the metrics of the run in `folder`, of which `step` steps are done."""
        self._path = folder / METRICS
        if self._path.exists():
            drop_lines_after(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def tell(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step: a line, and a point of each curve; what is not finite is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Make what was told survive a power cut, before a checkpoint says that these steps are done."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; half a line at its end, from a process that was killed, is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def drop_lines_after(path: Path, step: int) -> None:
    """Remove the lines beyond `step` from a metrics file, in one step."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    data = "".join(json.dumps(line) + "\n" for line in kept).encode()
    write_atomically(path, lambda file: file.write(data))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
