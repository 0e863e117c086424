"""Ends a run if a loss or gradient is NaN or infinite, and saves state and samples for inspection.

*Writes* RUN/failures/step-N/rank-R.pt: the samples of each process and, in the file of the first process, the
whole state; `training.engine.checkpoints.read_checkpoint` reads it. On a CPU no weight was updated by then;
on a GPU, where values are read a step late (`gpu/late_values.py`), some were.
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

_MAX_NAMES = 3
"""Largest number of weights that the message names."""


def check_finite(
    values: Mapping[str, float],
    net: nn.Module,
    batches: Sequence[Any],
    state: Callable[[], dict[str, Any]],
    folder: Path,
    *,
    rank: int,
    step: int | None = None,
) -> None:
    """Raise an error if a value is NaN or infinite, after saving the state and the samples of the step.

    Args:
        values: Losses and gradient norm, equal in all processes, so that all raise the error or none.
        net: The network, with its gradients.
        batches: The samples of this process in the step.
        state: Returns the state before the step; its "step" is the number of steps done.
        folder: Folder of the run.
        rank: Number of this process.
        step: Number of the step, from 1; by default the one after those done. If it is among those done, its
            values were read late, and weights were changed since.

    Raises:
        NonFiniteLoss: A value is not finite.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    now = state()
    weights = [name for name, weight in net.named_parameters() if not all_finite(weight)]
    gradients = [name for name, weight in net.named_parameters() if not all_finite(weight.grad)]
    step = now["step"] + 1 if step is None else step
    failure_folder = folder / "failures" / f"step-{step:08d}"
    save_checkpoint(
        failure_folder / f"rank-{rank}.pt",
        {
            **(now if rank == 0 else {"step": now["step"]}),
            "told": dict(values),
            "bad_weights": weights,
            "bad_gradients": gradients,
            "batches": [plain_batch(batch) for batch in batches],
        },
    )
    what = ", ".join(f"{name} is {values[name]}" for name in bad)
    where = f"; weights not finite before the step: {_first_names(weights)}" if weights else ""
    where += f"; gradients not finite: {_first_names(gradients)}" if gradients else ""
    if now["step"] < step:
        after = "No weight was changed"
    else:
        after = "Weights were changed before this was known; every checkpoint is of an earlier step"
    raise NonFiniteLoss(
        f"step {step}: {what}{where}. {after}. State and samples are in "
        f"{failure_folder}. Lower peak_rate or max_gradient_norm, or try precision float32, and begin a new "
        "run"
    )


def all_finite(tensor: torch.Tensor | None) -> bool:
    """Whether no value is NaN or infinite; True for None."""
    return tensor is None or bool(torch.isfinite(tensor).all())


def plain_batch(batch: Any) -> Any:
    """Return the fields of a batch by name, so that a checkpoint can hold them."""
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return batch


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
