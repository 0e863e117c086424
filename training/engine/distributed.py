"""Training in several processes, as torchrun starts them: ranks, device, means over all processes.

*Reads* RANK, WORLD_SIZE and LOCAL_RANK from the environment; without them there is one process. *Writes*
nothing. Processes communicate over NCCL on GPUs and over gloo on CPUs. If a process fails, torchrun ends the
others.
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

TIMEOUT = timedelta(hours=2)
"""Longest wait for another process; the others wait while the first one evaluates and saves."""

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The rank of this process among the processes of a training."""

    rank: int = 0
    """Number of this process, from 0; the first process writes files and prints messages."""
    world_size: int = 1
    """Number of processes, on all machines."""
    local_rank: int = 0
    """Number of this process on its machine; it uses the GPU of this number."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def mean(self, values: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
        """Return the mean of each value over all processes.

        Every process must call this; all get the same result. It waits for the device.

        Args:
            values: Scalars, the same number in each process.
            device: Device of this process.
        """
        means: list[float] = self.means(values, device).tolist()
        return means

    def means(self, values: Sequence[torch.Tensor | float], device: torch.device) -> torch.Tensor:
        """Return the values of `mean` as float64 (N,) on the device, without waiting for it."""
        stacked = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
        )
        if self.world_size > 1:
            distributed.all_reduce(stacked)
        return stacked / self.world_size

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world_size > 1:
            distributed.barrier()


def choose_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """Return the device to train on.

    Args:
        name: "auto" is this process's GPU if PyTorch can use one, otherwise the CPU.
        local_rank: Number of this process on its machine.

    Raises:
        ConfigError: PyTorch cannot use the requested GPU.
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


def use_threads(number: int) -> None:
    """Let PyTorch use so many threads in this process, one of several that share the processors."""
    torch.set_num_threads(number)


def common_support(ranks: Ranks, device: torch.device) -> Support:
    """Return the bfloat16 support that all processes have, on all machines; every process must call this."""
    support = bfloat16_support(device)
    all_have_it = ranks.mean([float(support.has_bfloat16)], device)[0] == 1
    if support.has_bfloat16 and not all_have_it:
        return Support(
            has_bfloat16=False, why="another process of this training has no bfloat16 instructions"
        )
    return support


@contextmanager
def joined_processes(name: DeviceName) -> Iterator[tuple[Ranks, torch.device]]:
    """Connect this process to the other processes of its training while the block runs.

    Args:
        name: Device to train on.

    Yields:
        The rank of this process, and its device.
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
        distributed.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    yield ranks, device
    distributed.destroy_process_group()  # not after an error: it could wait for the others forever
