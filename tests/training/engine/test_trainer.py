"""The trainer on a task of one convolution: going on is not having stopped, and what ends a run says so."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from training.engine.checkpoints import list_checkpoints, read_checkpoint
from training.engine.distributed import Ranks
from training.engine.gpu.compiling import separate_compiled_code
from training.engine.losses import LossTerms
from training.engine.monitoring import METRICS, TrainingProgress, read_metrics
from training.engine.optimisation import OptimisationConfig
from training.engine.run_folder import RunConfig
from training.engine.task import Task, TrainingResult
from training.engine.trainer import Trainer
from training.errors import CheckpointError, ConfigError, NonFiniteLoss

STEPS = OptimisationConfig(
    optimiser="adamw", peak_rate=0.05, num_steps=12, batch_size=4, warm_up_fraction=0.25, precision="float32"
)
WATCH = RunConfig(num_workers=0, log_every=5, checkpoint_every=4, evaluate_every=3, draw_every=0)

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(index: int) -> Tensor:
    return torch.randn(1, 6, 6, 6, generator=torch.Generator().manual_seed(index))


def make_task(
    *,
    on_batch: Callable[[int], None] = lambda first: None,
    spoil: Callable[[int, Tensor], Tensor] = lambda first, batch: batch,
    dice: Callable[[nn.Module], float] | None = None,
) -> Task[Tensor, Tensor]:
    """A convolution learns to blur. `on_batch` and `spoil` are given the number of a batch's first sample."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1))

    def batches(size: int, first: int, number: int) -> Iterator[Tensor]:
        for start in range(first, first + number, size):
            on_batch(start)
            yield spoil(start, torch.stack([sample(index) for index in range(start, start + size)]))

    def loss(model: nn.Module, batch: Tensor) -> LossTerms:
        blurred = torch.nn.functional.avg_pool3d(batch, 3, stride=1, padding=1)
        total = (model(batch).float() - blurred).square().mean()
        return LossTerms(total=total, parts={"square": total.detach()})

    def evaluate(average: nn.Module) -> Mapping[str, float]:
        assert dice is not None
        torch.randn(1)  # what goes on beside the steps must not change them
        return {"dice": dice(average)}

    return Task(
        net=net, batches=batches, prepare=lambda batch: batch, loss=loss, evaluate=evaluate if dice else None
    )


def train(
    folder: Path,
    *,
    config: OptimisationConfig = STEPS,
    watch: RunConfig = WATCH,
    resume: bool = False,
    told: list[TrainingProgress] | None = None,
    **how: Any,
) -> tuple[TrainingResult, dict[str, Any]]:
    """Train, and return also the state at the end."""
    task = make_task(**how)
    trainer = Trainer(
        task, folder, optimisation=config, run=watch, on_progress=told.append if told is not None else None
    )
    folder.mkdir(exist_ok=True)
    if resume:
        trainer.resume()
    return trainer.run(), trainer.state()


def same(first: Any, second: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    """Send this process a signal while it makes the batch of a step, counted from 1."""

    def on_batch(first: int) -> None:
        if first == (step - 1) * STEPS.batch_size:
            os.kill(os.getpid(), number)

    return on_batch


@pytest.mark.parametrize("optimiser", ["adamw", "lamb"])
def test_training_lowers_the_loss_and_tells_its_way(optimiser: str, tmp_path: Path) -> None:
    told: list[TrainingProgress] = []
    result, state = train(tmp_path / "run", config=replace(STEPS, optimiser=optimiser), told=told)
    assert result.complete
    assert result.last_loss < 0.7 * result.first_loss
    assert [progress.step for progress in told] == list(range(1, 13))
    assert not same(state["model"], state["ema_model"])


@settings(max_examples=8)
@given(stops=st.sets(st.integers(1, 11), min_size=1, max_size=3))
def test_a_run_stopped_anywhere_and_gone_on_with_is_as_if_undisturbed(
    stops: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    _, undisturbed = train(folder / "a", dice=weight_norm)
    for place, step in enumerate(sorted(stops)):
        number = (signal.SIGTERM, signal.SIGUSR1)[place % 2]
        result, _ = train(folder / "b", resume=place > 0, on_batch=stop_at(step, number), dice=weight_norm)
        assert (result.step, result.complete, result.signal_number) == (step, False, number)
    result, state = train(folder / "b", resume=True, dice=weight_norm)
    assert result.complete
    assert same(state, undisturbed)
    lines = [
        [{name: line[name] for name in ("kind", "step", "loss", "dice") if name in line} for line in read]
        for read in (read_metrics(folder / name / METRICS) for name in ("a", "b"))
    ]
    assert sorted(lines[0], key=str) == sorted(lines[1], key=str)


def weight_norm(net: nn.Module) -> float:
    return float(torch.stack([weight.norm() for weight in net.parameters()]).sum())


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(tmp_path: Path) -> None:
    """As after SIGKILL: the folder as it was at step 6, when the newest checkpoint was of step 4."""
    folder, killed = tmp_path / "run", tmp_path / "killed"

    def copy(first: int) -> None:
        if first == 6 * STEPS.batch_size:
            shutil.copytree(folder, killed)

    watch = replace(WATCH, log_every=1)
    _, undisturbed = train(folder, watch=watch, on_batch=copy)
    result, state = train(killed, watch=watch, resume=True)
    assert result.step == 12
    assert same(state, undisturbed)
    steps = [line["step"] for line in read_metrics(killed / METRICS)]
    assert steps == list(range(1, 13))


def test_ctrl_c_is_told_apart_from_an_end_that_was_asked_for(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    result, _ = train(tmp_path / "run", on_batch=stop_at(3, signal.SIGINT))
    assert (result.step, result.signal_number) == (3, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from training.engine import interrupts\n"
        "interrupts.PAUSE_SECONDS = 1e6\n"
        "with interrupts.noted_signals([]):\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    interrupts.PAUSE_SECONDS = -1.0\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (128 + signal.SIGTERM, "still here\n"), run.stderr


def test_a_step_in_parts_is_the_step_as_a_whole(tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole")
    for parts in (2, 4):
        _, state = train(tmp_path / f"in {parts}", config=replace(STEPS, accumulation=parts))
        for name, weight in whole["model"].items():
            assert torch.allclose(state["model"][name], weight, atol=1e-6), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_touches_a_weight(
    value: float, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def spoil(first: int, batch: Tensor) -> Tensor:
        return batch * value if first == 4 * STEPS.batch_size else batch

    with pytest.raises(NonFiniteLoss, match=r"step 5: loss is .*gradients not finite: 0\.weight"):
        train(folder, spoil=spoil)
    kept = read_checkpoint(folder / "failures" / "step-00000005" / "rank-0.pt")
    (saved,) = list_checkpoints(folder / "checkpoints")
    assert same(kept["model"], read_checkpoint(saved)["model"])
    assert not torch.isfinite(kept["batches"][0]).any()
    assert [line["step"] for line in read_metrics(folder / METRICS)] == []  # log_every is 5


def test_a_gradient_that_overflows_is_noticed_although_the_loss_is_fine(tmp_path: Path) -> None:
    task = make_task()
    task.net[2].weight.register_hook(lambda gradient: gradient * 1e38 * 10)
    (tmp_path / "run").mkdir()
    with pytest.raises(NonFiniteLoss, match="gradient_norm is inf"):
        Trainer(task, tmp_path / "run", optimisation=STEPS, run=WATCH).run()


def test_the_best_weights_are_kept_though_later_ones_are_worse(tmp_path: Path) -> None:
    scores = iter([0.2, math.nan, 0.7, 0.3])
    watch = replace(WATCH, checkpoint_every=1, keep_last=2)
    train(tmp_path / "run", watch=watch, dice=lambda net: next(scores))
    folder = tmp_path / "run" / "checkpoints"
    best = read_checkpoint(folder / "best.pt")
    assert (best["step"], best["best"]) == (9, 0.7)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000011.pt", "step-00000012.pt"]


def test_mixed_precision_calls_the_network_in_bfloat16_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    task = make_task()
    task.net[0].register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    (tmp_path / "run").mkdir()
    config = replace(STEPS, precision="bfloat16")
    result = Trainer(task, tmp_path / "run", optimisation=config, run=WATCH).run()
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in task.net.parameters()} == {torch.float32}
    assert result.last_loss < result.first_loss


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, while it compiles
def test_a_compiled_network_trains_as_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the cache of the machine: from code that was made for other instructions PyTorch 2.13 crashes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes for two small kernels
    config = replace(STEPS, num_steps=3)
    _, plain = train(tmp_path / "plain", config=config)
    _, compiled = train(tmp_path / "compiled", config=replace(config, compile=True))
    assert plain["model"].keys() == compiled["model"].keys()
    for name, weight in plain["model"].items():
        assert torch.allclose(compiled["model"][name], weight, atol=1e-5), name


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", on_batch=stop_at(2))
    task = make_task()
    other = replace(task, net=nn.Conv3d(1, 1, 3))
    with pytest.raises(CheckpointError, match=r"step-00000002\.pt: does not fit"):
        Trainer(other, tmp_path / "run", optimisation=STEPS, run=WATCH).resume()


def test_a_batch_that_processes_cannot_share_evenly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 4 must be a multiple of .* 3 processes"):
        Trainer(make_task(), tmp_path, optimisation=STEPS, run=WATCH, ranks=Ranks(world_size=3))


def test_compiled_code_of_another_instruction_set_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back at the end
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        separate_compiled_code(torch.device("cpu"))
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folders[0] != folders[1]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    separate_compiled_code(torch.device("cpu"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
