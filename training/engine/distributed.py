"""One training in several processes, as torchrun starts them: who this process is, means over all of them.

*Reads* RANK, WORLD_SIZE and LOCAL_RANK from the environment; without them there is one process. *Writes*
nothing. On GPUs the processes talk over NCCL, on CPUs over gloo. A process that fails ends the others:
torchrun sees to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed

from training.engine.precision import Support, bfloat16_support
from training.errors import ConfigError

PATIENCE = timedelta(hours=2)
"""Longest wait for another process: the first one evaluates and saves while the others wait."""

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    """Its number, from 0; the first one writes files and talks."""
    world_size: int = 1
    """How many there are, on all machines."""
    local_rank: int = 0
    """Its number on this machine: which GPU is its own."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, values: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
        """The mean of each value over all processes; each has to call it, and gets the same."""
        stacked = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
        )
        if self.world_size > 1:
            distributed.all_reduce(stacked)
        means: list[float] = (stacked / self.world_size).tolist()
        return means

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            distributed.barrier()


def choose_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """The device that is meant: "auto" is this process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: A GPU is asked for that PyTorch cannot use here.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device cuda: PyTorch can use no GPU here. Use cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            "Start torchrun with as many processes as GPUs (--nproc-per-node)"
        )
    return torch.device("cuda", local_rank)


def common_support(ranks: Ranks, device: torch.device) -> Support:
    """Whether every process has bfloat16 instructions, on this machine or another; each has to call it."""
    support = bfloat16_support(device)
    everywhere = ranks.mean([float(support.has_bfloat16)], device)[0] == 1
    if support.has_bfloat16 and not everywhere:
        return Support(
            has_bfloat16=False, why="another process of this training has no bfloat16 instructions"
        )
    return support


@contextmanager
def joined_processes(name: DeviceName) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes of this training for the time of the block.

    Yields:
        This process among them, and its device.
    """
    environment = os.environ
    ranks = Ranks(
        rank=int(environment.get("RANK", 0)),
        world_size=int(environment.get("WORLD_SIZE", 1)),
        local_rank=int(environment.get("LOCAL_RANK", 0)),
    )
    device = choose_device(name, ranks.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        yield ranks, device
        return
    if device.type == "cuda":
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    yield ranks, device
    distributed.destroy_process_group()  # not after an error: the others might never come
