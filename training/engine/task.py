"""The interface of the trainer: `Task` (a network and functions to train it) and `TrainingResult`.

Pretraining (`training.pretraining.run`), fine-tuning and classification each define a `Task` for the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from training.engine.losses import LossTerms

BatchT = TypeVar("BatchT")
"""A batch from the loader."""
ViewsT = TypeVar("ViewsT")
"""A batch after `Task.prepare`, as the loss takes it."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[BatchT, ViewsT]):
    """A network and the functions to train it."""

    net: nn.Module
    """The network, on the device it is trained on."""
    batches: Callable[[int, int, int], Iterable[BatchT]]
    """(size, first, number) -> this process's batches, of `size` samples each, of samples first to
    first + number of the run. Sample i is the same in every process and after every restart."""
    prepare: Callable[[BatchT], ViewsT]
    """Moves samples to the device and augments them; called in full precision, without gradients."""
    loss: Callable[[nn.Module, ViewsT], LossTerms]
    """Mean loss over the samples; called in mixed precision, with the (compiled, distributed) network."""
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    """Returns figures of the averaged network by name; the one named by `score` selects the best weights."""
    score: str = "dice"
    """Name of the figure that selects the best weights; higher is better."""
    draw: Callable[[nn.Module, ViewsT, Path], object] | None = None
    """Writes a PNG file with predictions of the averaged network for the views of this step."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The outcome of a training: steps done, losses, speed, averaged network."""

    step: int
    """Steps done."""
    complete: bool
    """Whether all steps are done; otherwise a signal stopped the training, and its state is saved."""
    signal_number: int
    """The signal that stopped the training; 0 if it is complete."""
    first_loss: float
    """Mean loss of the first tenth of the steps done by this process; NaN if it did none."""
    last_loss: float
    """Mean loss of the last tenth of these steps."""
    seconds: float
    """Wall time of this process."""
    data_wait_fraction: float
    """Fraction of the steps' time spent waiting for samples, without the start of the loader."""
    samples_per_second: float
    """Samples per second over all processes, without the start of the loader, evaluations and pictures."""
    average: nn.Module
    """The network with averaged weights."""
