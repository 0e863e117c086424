"""A step whose loss or gradient is NaN or infinite: the run ends, and what led to it is kept for inspection.

*Writes* RUN/failures/step-N/rank-R.pt before any weight has changed: the samples of each process and, from
the first one, the whole state. `training.engine.checkpoints.read_checkpoint` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.engine.checkpoints import save_checkpoint
from training.errors import NonFiniteLoss

_TOLD = 3
"""Most weights that the message names."""


def refuse_not_finite(
    told: Mapping[str, float],
    net: nn.Module,
    batches: Sequence[Any],
    state: Callable[[], dict[str, Any]],
    folder: Path,
    *,
    rank: int,
) -> None:
    """Return if every number is finite; else keep what led to it, and say what it is.

    Args:
        told: Losses and the norm of the gradient, over all processes: all come to the same conclusion.
        net: The network, with its gradients.
        batches: This process's samples of the step.
        state: Gives the state before the step; "step" counts the steps done.
        folder: The run's.
        rank: Number of this process.

    Raises:
        NonFiniteLoss: A number is not finite.
    """
    bad = [name for name, value in told.items() if not math.isfinite(value)]
    if not bad:
        return
    now = state()
    weights = [name for name, weight in net.named_parameters() if not all_finite(weight)]
    gradients = [name for name, weight in net.named_parameters() if not all_finite(weight.grad)]
    place = folder / "failures" / f"step-{now['step'] + 1:08d}"
    save_checkpoint(
        place / f"rank-{rank}.pt",
        {
            **(now if rank == 0 else {"step": now["step"]}),
            "told": dict(told),
            "bad_weights": weights,
            "bad_gradients": gradients,
            "batches": [plain_batch(batch) for batch in batches],
        },
    )
    what = ", ".join(f"{name} is {told[name]}" for name in bad)
    where = f"; weights not finite before the step: {_some(weights)}" if weights else ""
    where += f"; gradients not finite: {_some(gradients)}" if gradients else ""
    raise NonFiniteLoss(
        f"step {now['step'] + 1}: {what}{where}. No weight was changed. State and samples are in {place}. "
        "Lower peak_rate or max_gradient_norm, or try precision float32, and begin a new run"
    )


def all_finite(tensor: torch.Tensor | None) -> bool:
    """Whether no value is NaN or infinite; a tensor that is not there has none."""
    return tensor is None or bool(torch.isfinite(tensor).all())


def plain_batch(batch: Any) -> Any:
    """A batch's fields by name, as a checkpoint can hold them."""
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return batch


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
