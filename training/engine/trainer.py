"""The trainer: runs the steps of a task, and saves and resumes its state in a run folder.

*Reads* the batches of a task (`training.engine.task`). *Writes* metrics, checkpoints and pictures into a run
folder (layout: `training.engine.run_folder`).

    one step: loss and gradients of each part of its samples -> mean over processes -> check that all are
    finite (otherwise the run ends) -> clip gradients -> update weights -> update averaged weights

On a GPU the values of a step are read, checked and recorded while the next step runs, so that the host never
waits for the GPU; but before a checkpoint, an evaluation or the end they are read at once. So no checkpoint
holds weights of a step that was not checked.

*Valid*: a resumed training gives the same weights as an uninterrupted one, bit for bit on a CPU with the same
number of threads and processes. With another number of processes the weights are equal up to rounding.
"""

from __future__ import annotations

import copy
import math
import signal
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
from training.engine.failures import check_finite
from training.engine.gpu.captured import CapturedStep, capture
from training.engine.gpu.compiling import compile_blocks
from training.engine.gpu.late_values import LateValues, send
from training.engine.interrupts import noted_signals
from training.engine.losses import LossTerms
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
from training.engine.run_folder import CHECKPOINTS, PICTURES, RunConfig
from training.engine.task import BatchT, Task, TrainingResult, ViewsT
from training.errors import CheckpointError, ConfigError
from training.network import recompute_stages

_SIGNALLED = "signalled"
"""Name of the value that is above 0 if any process got a signal to stop."""

_PROGRESS_STEPS = 20
"""Number of steps that the loss in the progress line is averaged over."""


@dataclass(kw_only=True)
class _Clock:
    """Time that this process spent on steps, waiting, evaluations and pictures."""

    began: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0
    """Waiting for batches, except the first one."""
    starting_seconds: float = 0.0
    """Waiting for the first batch, while the workers start."""
    evaluation_seconds: float = 0.0
    """Evaluations and pictures."""
    num_steps: int = 0
    """Steps done by this process."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def stepping_seconds(self) -> float:
        """Time of the steps: all but the loader's start, evaluations and pictures."""
        return max(self.seconds - self.starting_seconds - self.evaluation_seconds, 1e-9)


class Trainer(Generic[BatchT, ViewsT]):
    """Trains a task: `resume` restores the newest checkpoint, `run` does the steps."""

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
        """Create optimiser and averaged network.

        Args:
            task: Network, batches and loss.
            folder: Folder of the run; exists already.
            optimisation: Settings of the optimisation.
            run: Settings of logging, checkpoints and evaluations.
            ranks: Rank of this process.
            settings: All settings, plain values by table; written into checkpoints ("config").
            precision: Precision of the network; by default `optimisation.precision` on this device.
            on_progress: Called after every step, in the first process.

        Raises:
            ConfigError: The samples of a step cannot be divided equally among processes and parts.
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
                f"{optimisation.accumulation} times {self.ranks.world_size} processes: all take as many. Set "
                "[optimisation] batch_size (--config)"
            )
        self.device = next(task.net.parameters()).device
        self.average = copy.deepcopy(task.net).eval().requires_grad_(False)
        self.precision = precision or choose_precision(optimisation.precision, self.device)
        self.optimiser = make_optimiser(task.net, optimisation, bfloat16=self.precision.name == "bfloat16")
        if run.recompute_activations:
            recompute_stages(task.net)
        self.model = self._wrapped(task.net)
        self.reads_late = self.device.type == "cuda"
        self.pending: LateValues | None = None
        self.captured: CapturedStep | None = None
        self.step = 0
        self.window: dict[str, float] = {}
        self.best: float | None = None
        self.last_evaluated_step = 0
        self.clock = _Clock()
        self.checked: dict[str, float] = {}
        self.losses: list[float] = []

    def resume(self) -> None:
        """Restore the state of the newest checkpoint of the run.

        Raises:
            CheckpointError: There is no checkpoint, or it is damaged or of another network.
        """
        paths = list_checkpoints(self.folder / CHECKPOINTS)
        if not paths:
            raise CheckpointError(f"{self.folder}: no checkpoint to resume from. Begin a new run")
        state = read_checkpoint(paths[-1])
        try:
            self.task.net.load_state_dict(state["model"])
            self.average.load_state_dict(state["ema_model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{paths[-1]}: does not fit the network of this run: {error}") from error
        self.step, self.window, self.best = state["step"], state["window"], state["best"]
        self.last_evaluated_step = state["looked_at"]
        torch.set_rng_state(state["random_state"])

    def run(self) -> TrainingResult:
        """Train until the last step, or until SIGINT or SIGTERM.

        Returns:
            The outcome; equal in all processes, except for times.

        Raises:
            NonFiniteLoss: A loss or gradient is NaN or infinite; state and batch of the step are saved.
        """
        monitor = Monitor(self.folder, step=self.step) if self.ranks.is_first else None
        received: list[int] = []
        stopped = False
        try:
            with noted_signals(received, aloud=self.ranks.is_first), self._batch_iterator() as batches:
                self._evaluate_and_draw(monitor, None)  # an evaluation that a signal prevented
                while not (self._done or stopped):
                    stopped, views = self._one_step(batches, monitor, received)
                    if stopped or self._must_read_now:
                        stopped |= self._settle(monitor)
                    if not stopped:
                        self._evaluate_and_draw(monitor, views)
                    if stopped or self._done or self.step % self.watch.checkpoint_every == 0:
                        self._save(monitor)
        finally:
            if monitor:
                monitor.close()
        self.ranks.wait()
        return self._result(0 if self._done else (received or [signal.SIGTERM])[0])

    # ------------------------------------------------------------ a step

    def _one_step(
        self, batches: Iterator[BatchT], monitor: Monitor | None, received: list[int]
    ) -> tuple[bool, ViewsT]:
        """Do one step; return whether any process got a signal to stop, and the views of the last part."""
        self.optimiser.zero_grad(set_to_none=True)
        parts: list[BatchT] = []
        sums: dict[str, Any] = {}
        weight = 1 / self.config.accumulation
        for part in range(self.config.accumulation):
            parts.append(self._next(batches))
            with torch.no_grad():
                views = self.task.prepare(parts[-1])
            terms = self._loss_and_gradient(views, part)
            for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
                sums[name] = sums.get(name, 0.0) + weight * value.double()
        norm = gradient_norm(self.task.net)
        means = self.ranks.means([*sums.values(), float(bool(received))], self.device)
        values = torch.cat([means, norm.detach().double().reshape(1)])
        sent = send(values, (*sums, _SIGNALLED, "gradient_norm"), self.step + 1, parts)
        stopped = self._settle(monitor) if self.reads_late else self._read(sent, monitor)
        clip_gradients(self.task.net, norm, self.config.max_gradient_norm)
        set_rate(self.optimiser, rate_at(self.step, self.config))
        self.optimiser.step()
        update_average(self.average, self.task.net, self.config.ema_decay)
        self.step += 1
        if self.reads_late:
            self.pending = sent
        else:
            self._record_step(self.checked, sent.step, monitor)
        return stopped, views

    def _loss_and_gradient(self, views: ViewsT, part: int) -> LossTerms:
        """Return the loss of a part, and add its gradients; by a CUDA graph, if the run asks for one."""
        if not self._captures:
            return self._work(views, part)
        if self.captured is None or not self.captured.takes(views):  # the first step, or another window
            self.captured = capture(self.task.net, views, lambda kept: self._work(kept, part))
        return self.captured.run(views)

    def _work(self, views: ViewsT, part: int) -> LossTerms:
        with self._unsynchronised(part), autocast(self.precision, self.device):
            terms = self.task.loss(self.model, views)
        with self._unsynchronised(part):
            (terms.total * (1 / self.config.accumulation)).backward()  # type: ignore[no-untyped-call]
        return terms

    @property
    def _captures(self) -> bool:
        """Whether steps are replayed as a CUDA graph: on one GPU, a step in one part."""
        alone = self.ranks.world_size == 1 and self.config.accumulation == 1
        return self.watch.cuda_graph and alone and self.device.type == "cuda"

    # ------------------------------------------------------------ values of a step

    @property
    def _must_read_now(self) -> bool:
        """Whether a task that is due needs the values of the last step."""
        often = (self.watch.evaluate_every, self.watch.draw_every, self.watch.checkpoint_every)
        return any(self._due(every) for every in often)

    def _settle(self, monitor: Monitor | None) -> bool:
        """Read, check and record the values that are still being copied; return whether to stop."""
        sent, self.pending = self.pending, None
        if sent is None:
            return False
        stopped = self._read(sent, monitor)
        self._record_step(self.checked, sent.step, monitor)
        return stopped

    def _read(self, sent: LateValues, monitor: Monitor | None) -> bool:
        """Read and check the values of a step; return whether any process got a signal to stop."""
        values = sent.read()
        signalled = values.pop(_SIGNALLED)
        self.checked = values
        where = (self.task.net, sent.batches, self.state, self.folder)
        check_finite(values, *where, rank=self.ranks.rank, step=sent.step)
        return signalled > 0

    def _next(self, batches: Iterator[BatchT]) -> BatchT:
        """Return the next batch; the time of waiting is added to the clock."""
        began = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - began
        if self.clock.num_steps == 0 and not self.clock.starting_seconds:
            self.clock.starting_seconds = waited
        else:
            self.clock.waited_seconds += waited
        return batch

    @contextmanager
    def _batch_iterator(self) -> Iterator[Iterator[BatchT]]:
        """Yield the batches from this step on; the loader is shut down at the end of the block."""
        first, last = (steps * self.config.batch_size for steps in (self.step, self.config.num_steps))
        batches = iter(self.task.batches(self.part_size, first, last - first))
        try:
            yield batches
        finally:
            close = getattr(batches, "close", None)
            if close:
                close()

    def _wrapped(self, net: nn.Module) -> nn.Module:
        """Return the network that the loss calls: compiled, and with gradients averaged over processes."""
        if self.config.compile:
            compile_blocks(net)
        model: Any = net
        if self.ranks.world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            model = DistributedDataParallel(
                model,
                device_ids=ids,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                # All steps are alike, but parts without an exchange of gradients differ from the last one.
                static_graph=self.config.accumulation == 1,
            )
        wrapped: nn.Module = model
        return wrapped.train()

    def _unsynchronised(self, part: int) -> AbstractContextManager[Any]:
        """Return a context that averages gradients over processes for the last part of a step only."""
        if isinstance(self.model, DistributedDataParallel) and part < self.config.accumulation - 1:
            return self.model.no_sync()
        return nullcontext()

    # ------------------------------------------------------------ metrics, evaluations, checkpoints

    @property
    def _done(self) -> bool:
        return self.step >= self.config.num_steps

    def _record_step(self, values: Mapping[str, float], step: int, monitor: Monitor | None) -> None:
        """Add the values of a step to the sums in `window`; write their means every `log_every` steps."""
        self.clock.num_steps += 1
        self.losses.append(values["loss"])
        for name, value in {**values, "steps": 1.0}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        if step % self.watch.log_every == 0 or step == self.config.num_steps:
            count = self.window.pop("steps")
            means = {name: value / count for name, value in self.window.items()}
            self.window = {}
            if monitor:
                monitor.record(
                    "train",
                    step,
                    {
                        **means,
                        "rate": rate_at(step - 1, self.config),
                        "samples_per_second": self._samples_per_second,
                        "data_wait_fraction": self._wait_fraction,
                    },
                )
        if self.on_progress and self.ranks.is_first:
            self.on_progress(
                TrainingProgress(
                    step=step,
                    num_steps=self.config.num_steps,
                    loss=_mean(self.losses[-_PROGRESS_STEPS:]),
                    samples_per_second=self._samples_per_second,
                    data_wait_fraction=self._wait_fraction,
                    seconds=self.clock.seconds - self.clock.starting_seconds,
                    steps_here=self.clock.num_steps,
                )
            )

    @property
    def _samples_per_second(self) -> float:
        """Return the samples per second of all processes together."""
        return self.clock.num_steps * self.config.batch_size / self.clock.stepping_seconds

    @property
    def _wait_fraction(self) -> float:
        return self.clock.waited_seconds / self.clock.stepping_seconds

    def _evaluate_and_draw(self, monitor: Monitor | None, views: ViewsT | None) -> None:
        """Evaluate and draw, in the first process, if this is due and was not done for this step."""
        if monitor and self.last_evaluated_step < self.step:
            began = time.monotonic()
            if self.task.draw and views is not None and self._due(self.watch.draw_every):
                path = self.folder / PICTURES / f"step-{self.step:08d}.png"
                path.parent.mkdir(exist_ok=True)
                with torch.no_grad(), autocast(self.precision, self.device):
                    self.task.draw(self.average, views, path)
            if self.task.evaluate and self._due(self.watch.evaluate_every):
                with torch.no_grad():
                    values = dict(self.task.evaluate(self.average))
                monitor.record("evaluation", self.step, values)
                self._save_if_best(values.get(self.task.score, math.nan))
            self.clock.evaluation_seconds += time.monotonic() - began
        self.last_evaluated_step = self.step

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self._done)

    def _save_if_best(self, score: float) -> None:
        """Save the weights if their score is higher than all earlier ones; NaN never is."""
        if score > (-math.inf if self.best is None else self.best):
            self.best = score
            names = ("step", "model", "ema_model", "best", "config")
            state = self.state()
            save_checkpoint(self.folder / CHECKPOINTS / BEST, {name: state[name] for name in names})

    def state(self) -> dict[str, Any]:
        """Return everything that resuming needs: tensors and plain values."""
        return {
            "step": self.step,
            "model": self.task.net.state_dict(),
            "ema_model": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "window": dict(self.window),
            "best": self.best,
            "looked_at": self.last_evaluated_step,
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
