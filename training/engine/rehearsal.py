"""Rehearsal: a few steps of a training, to measure time and memory; no run begins.

*Reads* the batches of the trainer's task. *Writes* nothing but the weights of the network it is given.
"""

from __future__ import annotations

import resource
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.trainer import Trainer

WARM_UP_STEPS = 3
"""Steps before the measured ones: libraries choose algorithms, workers fill their queues."""
MEASURED_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Time and memory of a step, in one process."""

    num_parameters: int
    """Weights of the network."""
    step_seconds: float
    """Mean over the measured steps, with waiting for data; without evaluations and pictures."""
    data_wait_fraction: float
    """Part of this time in which the step waited for data."""
    state_bytes: int
    """Bytes of weights, gradients, averaged weights and the optimiser's moments."""
    activation_bytes: int
    """Bytes kept from the forward to the backward pass, for the samples of one part of a step."""
    peak_bytes: int
    """Most memory in use: on a GPU what PyTorch allocated there, on a CPU this process's resident memory."""


def rehearse(trainer: Trainer[Any, Any]) -> Rehearsal:
    """Do `WARM_UP_STEPS` and `MEASURED_STEPS` steps of a trainer that has not begun."""
    device, net = trainer.device, trainer.task.net
    kept: dict[int, int] = {}
    with trainer._batch_iterator() as batches:
        for step in range(WARM_UP_STEPS):
            watched = step == 0 and not trainer._captures
            with _kept_tensors(net, kept) if watched else nullcontext():
                trainer._one_step(batches, None, [])
        _wait(device)
        began, waited = time.monotonic(), trainer.clock.waited_seconds
        for _ in range(MEASURED_STEPS):
            trainer._one_step(batches, None, [])
        _wait(device)
        seconds = time.monotonic() - began
    return Rehearsal(
        num_parameters=sum(weight.numel() for weight in net.parameters()),
        step_seconds=seconds / MEASURED_STEPS,
        data_wait_fraction=(trainer.clock.waited_seconds - waited) / seconds,
        state_bytes=_state_bytes(trainer),
        activation_bytes=sum(kept.values()),
        peak_bytes=_peak_bytes(device),
    )


def _kept_tensors(net: nn.Module, kept: dict[int, int]) -> Any:
    """Return a context that adds to `kept` the bytes of each block kept for the backward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def _state_bytes(trainer: Trainer[Any, Any]) -> int:
    """Return the bytes of weights and gradients, averaged weights, moments."""
    tensors: list[Tensor] = [*trainer.task.net.parameters(), *trainer.average.parameters()]
    tensors += [weight for weight in trainer.task.net.parameters() if weight.requires_grad]  # their gradients
    for state in trainer.optimiser.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
