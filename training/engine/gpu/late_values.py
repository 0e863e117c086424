"""Losses and norms of a step, read one step late: the host does not wait for the step it has just queued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LateValues:
    """The values of a step, while they are copied from the device to the host."""

    step: int
    """Number of steps done, including this one."""
    names: tuple[str, ...]
    """Names of the values."""
    numbers: Tensor
    """float64 (N,), on the host; complete when `ready` is."""
    ready: Any
    """A CUDA event; None if the numbers are there."""
    batches: Sequence[Any]
    """Samples of the step, for the report if a value is not finite."""

    def read(self) -> dict[str, float]:
        """Return the values by name; waits until the device has done the step."""
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.numbers.tolist(), strict=True))


def send(values: Tensor, names: Sequence[str], step: int, batches: Sequence[Any]) -> LateValues:
    """Begin the copy of a step's values (N,), float64, from their device to the host."""
    ready = None
    if values.device.type == "cuda":
        numbers = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        numbers.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    else:
        numbers = values.clone()
    return LateValues(step=step, names=tuple(names), numbers=numbers, ready=ready, batches=batches)
