"""What the trainer trains: a few functions around a network, and what comes out of it.

Pretraining (`training.pretraining.run`) and fine-tuning make a `Task` each and share the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from training.engine.losses import LossTerms

BatchT = TypeVar("BatchT")
"""Samples as the loader gives them."""
ViewsT = TypeVar("ViewsT")
"""Samples as the loss takes them."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[BatchT, ViewsT]):
    """What is trained, on what."""

    net: nn.Module
    """The network, on the device it is trained on."""
    batches: Callable[[int, int, int], Iterable[BatchT]]
    """(size, first, number): of the samples first .. first + number of the run this process's share, `size`
    at a time. Sample i is the same whenever and wherever it is asked for."""
    prepare: Callable[[BatchT], ViewsT]
    """Moves samples to the device and augments them; called in full precision, without gradients."""
    loss: Callable[[nn.Module, ViewsT], LossTerms]
    """The mean over the samples; called in mixed precision, with the network as it is to be called."""
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    """Numbers about the averaged network; the one called `score` says which weights are the best."""
    score: str = "dice"
    """The number of an evaluation that is the higher, the better the weights."""
    draw: Callable[[nn.Module, ViewsT, Path], object] | None = None
    """Writes a picture of what the averaged network makes of this step's views, a PNG file."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended."""

    step: int
    """Steps done."""
    complete: bool
    """Whether these are all; else it was stopped by a signal, and its state is saved."""
    signal_number: int
    """The signal that stopped it, 0 if none did."""
    first_loss: float
    """Mean loss of the first tenth of the steps done by this process, NaN where there was none."""
    last_loss: float
    """Mean loss of the last tenth."""
    seconds: float
    """Time of this process."""
    data_wait_fraction: float
    """Part of the steps' time that was spent waiting for samples; the start of the loader does not count."""
    samples_per_second: float
    """Over all processes; without the start of the loader, evaluations and pictures."""
    average: nn.Module
    """The averaged network."""
