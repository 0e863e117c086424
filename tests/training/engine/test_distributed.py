"""Two processes that exchange gradients over gloo, each with its step in parts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.training.engine.test_trainer import STEPS, WATCH, make_task, sample
from training.engine.distributed import Ranks
from training.engine.trainer import Trainer

ROOT = Path(__file__).parents[3]
NUM_STEPS = 3

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # PyTorch 2.13 has a new name for it, which older versions do not know.
    pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning"),
]


def trained(rank: int, meeting: Path, folder: Path) -> tuple[Trainer[Tensor, Tensor], list[int]]:
    """Train as one of two processes, two parts of one sample a step; and the sizes of what was exchanged."""
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)

    def batches(size: int, first: int, number: int) -> Iterator[Tensor]:
        assert size == 1
        for step in range(NUM_STEPS):
            for part in range(2):
                yield sample(4 * step + 2 * rank + part)[None]

    exchanged: list[int] = []

    def hook(group: Any, bucket: Any) -> Any:
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(group, bucket)

    hook.__annotations__.clear()  # PyTorch compares them with its own types, and these are texts
    folder.mkdir()
    trainer = Trainer(
        replace(make_task(), batches=batches),
        folder,
        optimisation=replace(STEPS, accumulation=2, num_steps=NUM_STEPS),
        run=replace(WATCH, evaluate_every=0),
        ranks=Ranks(rank=rank, world_size=2),
    )
    model: Any = trainer.model
    model.register_comm_hook(None, hook)
    trainer.run()
    distributed.destroy_process_group()
    return trainer, exchanged


def test_two_processes_in_parts_exchange_gradients_once_a_step(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from tests.training.engine.test_distributed import trained\n"
        "trained(1, Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    meeting = tmp_path / "meeting"
    other = subprocess.Popen([sys.executable, "-c", code, str(meeting), str(tmp_path / "1")], cwd=ROOT)
    try:
        trainer, exchanged = trained(0, meeting, tmp_path / "0")
        assert other.wait(timeout=300) == 0
    finally:
        other.kill()
        other.wait()
    weights = dict(trainer.task.net.named_parameters())
    assert exchanged == [sum(weight.numel() for weight in weights.values())] * NUM_STEPS
    buckets = {
        weight.grad.untyped_storage().data_ptr() for weight in weights.values() if weight.grad is not None
    }
    assert len(buckets) == 1  # no copies of the gradients beside what is exchanged
    alone = Trainer(
        make_task(),
        tmp_path,
        optimisation=replace(STEPS, accumulation=4, num_steps=NUM_STEPS),
        run=replace(WATCH, evaluate_every=0),
    )
    alone.run()
    for name, weight in alone.task.net.named_parameters():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5)
