"""One training: batches in, weights out, and a run folder that it can go on from.

*Reads* the batches of a task (`training.engine.task`). *Writes* into a run's folder (its layout:
`training.engine.run_folder`) metrics, checkpoints and pictures.

    step: its samples, part after part -> loss, gradients -> averaged over processes -> all finite? or the run
    ends before a weight is touched -> clipped -> weights -> averaged weights

*Valid*: going on gives the same weights as not having stopped, bit for bit on a CPU with the same number of
threads and processes. With another number of processes the curve is the same but for rounding.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.engine.checkpoints import (
    BEST,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from training.engine.distributed import Ranks
from training.engine.failures import refuse_not_finite
from training.engine.interrupts import noted_signals
from training.engine.monitoring import Monitor, TrainingProgress
from training.engine.optimisation import (
    OptimisationConfig,
    clip_gradients,
    gradient_norm,
    make_optimiser,
    rate_at,
    set_rate,
    update_average,
)
from training.engine.precision import ChosenPrecision, autocast, choose_precision
from training.engine.run_folder import CHECKPOINTS, RunConfig
from training.engine.task import BatchT, Task, TrainingResult, ViewsT
from training.errors import CheckpointError, ConfigError

_SHOWN_STEPS = 20
"""The loss that is shown is the mean of so many steps."""


@dataclass(kw_only=True)
class _Clock:
    """Where the time of this process went."""

    began: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0
    """For batches, without the first: workers start meanwhile."""
    starting_seconds: float = 0.0
    """For the first batch."""
    looked_seconds: float = 0.0
    """For evaluations and pictures."""
    num_steps: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def stepping_seconds(self) -> float:
        """For steps: all but the loader's start, evaluations and pictures."""
        return max(self.seconds - self.starting_seconds - self.looked_seconds, 1e-9)


class Trainer(Generic[BatchT, ViewsT]):
    """A training in progress. `run` does it; the rest are its parts."""

    def __init__(
        self,
        task: Task[BatchT, ViewsT],
        folder: Path,
        *,
        optimisation: OptimisationConfig,
        run: RunConfig,
        ranks: Ranks | None = None,
        settings: Mapping[str, Any] | None = None,
        precision: ChosenPrecision | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        """Make what a training needs.

        Args:
            task: What is trained, on what.
            folder: The run's folder, made already.
            optimisation: How weights are changed.
            run: How the run is watched.
            ranks: This process among those that train together.
            settings: All settings, plain values by table; kept in checkpoints for who loads them.
            precision: Of the network's arithmetic; by default what `optimisation` asks for on this device.
            on_progress: Told after every step, in the first process.
        """
        self.task, self.folder, self.config, self.watch = task, folder, optimisation, run
        self.ranks = ranks or Ranks()
        self.settings = dict(settings or {})
        self.on_progress = on_progress
        self.part_size, rest = divmod(
            optimisation.batch_size, optimisation.accumulation * self.ranks.world_size
        )
        if rest:
            raise ConfigError(
                f"batch_size {optimisation.batch_size} must be a multiple of accumulation "
                f"{optimisation.accumulation} times {self.ranks.world_size} processes: all take as many"
            )
        self.device = next(task.net.parameters()).device
        self.average = copy.deepcopy(task.net).eval().requires_grad_(False)
        self.precision = precision or choose_precision(optimisation.precision, self.device)
        self.optimiser = make_optimiser(task.net, optimisation, bfloat16=self.precision.name == "bfloat16")
        self.model = self._wrapped(task.net)
        self.step = 0
        self.window: dict[str, float] = {}
        self.best: float | None = None
        self.looked_at = 0
        self.clock = _Clock()
        self.losses: list[float] = []

    def resume(self) -> None:
        """Take up the newest checkpoint of the run.

        Raises:
            CheckpointError: There is none, or it is damaged or of another network.
        """
        paths = list_checkpoints(self.folder / CHECKPOINTS)
        if not paths:
            raise CheckpointError(f"{self.folder}: no checkpoint to go on from. Begin the run anew")
        state = read_checkpoint(paths[-1])
        try:
            self.task.net.load_state_dict(state["model"])
            self.average.load_state_dict(state["ema_model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{paths[-1]}: does not fit the network of this run: {error}") from error
        self.step, self.window, self.best = state["step"], state["window"], state["best"]
        self.looked_at = state["looked_at"]
        torch.set_rng_state(state["random_state"])

    def run(self) -> TrainingResult:
        """Train until the last step, or until a signal asks for the end.

        Returns:
            How it ended. All processes get the same, but for times.

        Raises:
            NonFiniteLoss: A loss or gradient is NaN or infinite; state and batch of the step are saved.
        """
        monitor = Monitor(self.folder, step=self.step) if self.ranks.is_first else None
        received: list[int] = []
        stopped = False
        try:
            with noted_signals(received, aloud=self.ranks.is_first), self._fed() as feed:
                self._look(monitor, None)  # what a signal left undone
                while not (self._done or stopped):
                    stopped, views = self._one_step(feed, monitor, received)
                    if not stopped:
                        self._look(monitor, views)
                    if stopped or self._done or self.step % self.watch.checkpoint_every == 0:
                        self._save(monitor)
        finally:
            if monitor:
                monitor.close()
        self.ranks.wait()
        return self._result(0 if self._done else (received or [signal.SIGTERM])[0])

    # ------------------------------------------------------------ a step

    def _one_step(
        self, feed: Iterator[BatchT], monitor: Monitor | None, received: list[int]
    ) -> tuple[bool, ViewsT]:
        """Do a step; returns whether any process was asked to stop, and the views of its last part."""
        self.optimiser.zero_grad(set_to_none=True)
        seen: list[BatchT] = []
        sums: dict[str, Any] = {}
        weight = 1 / self.config.accumulation
        for part in range(self.config.accumulation):
            seen.append(self._next(feed))
            with torch.no_grad():
                views = self.task.prepare(seen[-1])
            with self._unsynchronised(part), autocast(self.precision, self.device):
                terms = self.task.loss(self.model, views)
            with self._unsynchronised(part):
                (terms.total * weight).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
                sums[name] = sums.get(name, 0.0) + weight * value.double()
        norm = gradient_norm(self.task.net)
        *values, asked = self.ranks.mean([*sums.values(), float(bool(received))], self.device)
        told = dict(zip(sums, values, strict=True)) | {"gradient_norm": float(norm)}
        refuse_not_finite(told, self.task.net, seen, self.state, self.folder, rank=self.ranks.rank)
        clip_gradients(self.task.net, norm, self.config.max_gradient_norm)
        set_rate(self.optimiser, rate_at(self.step, self.config))
        self.optimiser.step()
        update_average(self.average, self.task.net, self.config.ema_decay)
        self.step += 1
        self._tell(told, monitor)
        return asked > 0, views

    def _next(self, feed: Iterator[BatchT]) -> BatchT:
        began = time.monotonic()
        batch = next(feed)
        waited = time.monotonic() - began
        if self.clock.num_steps == 0 and not self.clock.starting_seconds:
            self.clock.starting_seconds = waited
        else:
            self.clock.waited_seconds += waited
        return batch

    @contextmanager
    def _fed(self) -> Iterator[Iterator[BatchT]]:
        """The batches from this step on; what reads them is shut down at the end."""
        first, last = (steps * self.config.batch_size for steps in (self.step, self.config.num_steps))
        feed = iter(self.task.batches(self.part_size, first, last - first))
        try:
            yield feed
        finally:
            close = getattr(feed, "close", None)
            if close:
                close()

    def _wrapped(self, net: nn.Module) -> nn.Module:
        """The network as the loss calls it: compiled, and its gradients averaged over processes."""
        if self.config.compile:
            separate_compiled_code(self.device)
        model: Any = torch.compile(net) if self.config.compile else net
        if self.ranks.world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            model = DistributedDataParallel(
                model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        wrapped: nn.Module = model
        return wrapped.train()

    def _unsynchronised(self, part: int) -> AbstractContextManager[Any]:
        """Gradients are averaged over processes with the last part only."""
        if isinstance(self.model, DistributedDataParallel) and part < self.config.accumulation - 1:
            return self.model.no_sync()
        return nullcontext()

    # ------------------------------------------------------------ beside the steps

    @property
    def _done(self) -> bool:
        return self.step >= self.config.num_steps

    def _tell(self, told: Mapping[str, float], monitor: Monitor | None) -> None:
        """Add a step to the means of its window; write the window when it is full."""
        self.clock.num_steps += 1
        self.losses.append(told["loss"])
        for name, value in {**told, "steps": 1.0}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        if self.step % self.watch.log_every == 0 or self._done:
            count = self.window.pop("steps")
            means = {name: value / count for name, value in self.window.items()}
            self.window = {}
            if monitor:
                monitor.tell(
                    "train",
                    self.step,
                    {
                        **means,
                        "rate": rate_at(self.step - 1, self.config),
                        "samples_per_second": self._samples_per_second,
                        "data_wait_fraction": self._wait_fraction,
                    },
                )
        if self.on_progress and self.ranks.is_first:
            self.on_progress(
                TrainingProgress(
                    step=self.step,
                    num_steps=self.config.num_steps,
                    loss=_mean(self.losses[-_SHOWN_STEPS:]),
                    samples_per_second=self._samples_per_second,
                    data_wait_fraction=self._wait_fraction,
                    seconds=self.clock.seconds - self.clock.starting_seconds,
                    steps_here=self.clock.num_steps,
                )
            )

    @property
    def _samples_per_second(self) -> float:
        """Over all processes."""
        return self.clock.num_steps * self.config.batch_size / self.clock.stepping_seconds

    @property
    def _wait_fraction(self) -> float:
        return self.clock.waited_seconds / self.clock.stepping_seconds

    def _look(self, monitor: Monitor | None, views: ViewsT | None) -> None:
        """Evaluate and draw where it is due and not done yet, in the first process."""
        if monitor and self.looked_at < self.step:
            began = time.monotonic()
            if self.task.draw and views is not None and self._due(self.watch.draw_every):
                path = self.folder / "pictures" / f"step-{self.step:08d}.png"
                path.parent.mkdir(exist_ok=True)
                with torch.no_grad(), autocast(self.precision, self.device):
                    self.task.draw(self.average, views, path)
            if self.task.evaluate and self._due(self.watch.evaluate_every):
                with torch.no_grad():
                    values = dict(self.task.evaluate(self.average))
                monitor.tell("evaluation", self.step, values)
                self._note_best(values.get(self.task.score, math.nan))
            self.clock.looked_seconds += time.monotonic() - began
        self.looked_at = self.step

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self._done)

    def _note_best(self, score: float) -> None:
        """Save these weights if no earlier ones scored as high; NaN is no score."""
        if score > (-math.inf if self.best is None else self.best):
            self.best = score
            names = ("step", "model", "ema_model", "best", "config")
            state = self.state()
            save_checkpoint(self.folder / CHECKPOINTS / BEST, {name: state[name] for name in names})

    def state(self) -> dict[str, Any]:
        """Everything that going on needs: tensors and plain values."""
        return {
            "step": self.step,
            "model": self.task.net.state_dict(),
            "ema_model": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "window": dict(self.window),
            "best": self.best,
            "looked_at": self.looked_at,
            "random_state": torch.get_rng_state(),
            "config": self.settings,
        }

    def _save(self, monitor: Monitor | None) -> None:
        if monitor:
            monitor.sync()
            save_checkpoint(checkpoint_path(self.folder / CHECKPOINTS, self.step), self.state())
            remove_old_checkpoints(self.folder / CHECKPOINTS, self.watch.keep_last)

    def _result(self, signal_number: int) -> TrainingResult:
        tenth = max(1, len(self.losses) // 10)
        return TrainingResult(
            step=self.step,
            complete=self._done,
            signal_number=signal_number,
            first_loss=_mean(self.losses[:tenth]),
            last_loss=_mean(self.losses[-tenth:]),
            seconds=self.clock.seconds,
            data_wait_fraction=self._wait_fraction,
            samples_per_second=self._samples_per_second,
            average=self.average,
        )


def separate_compiled_code(device: torch.device) -> None:
    """Let torch.compile keep a CPU's code by instruction set; TORCHINDUCTOR_CACHE_DIR stays where it is set.

    PyTorch 2.13 takes code that was compiled under ATEN_CPU_CAPABILITY=avx2 for its own without it, and the
    process dies of damaged memory.
    """
    if device.type == "cpu":
        name = f"torchinductor_{os.getuid()}_{torch.backends.cpu.get_cpu_capability().lower()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / name))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
