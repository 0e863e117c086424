"""Prefect flows and the `mass` command: order, retries, concurrency. What is computed is in `pipeline`.

    prepare   discover -> plan -> flow: a task for each scan or batch of small ones -> finish -> report
    status    what the store has, what failed, what is stale
    verify    every committed byte against its checksum
    lift      a store of an older format version to the newest one
    score     proposals against the labels in the store
    inspect   pictures and numbers on a page
    pretrain  a network on the store's proposals; also under torchrun
    embed     an encoder's features of every scan
    classify  whole scans, by a frozen encoder or by all weights
    demo      all of it on the bundled scans, to the segmentation of one that was kept out

Nothing heavy is imported before a command runs, so that `mass --help` answers at once. Prefect is started
only where there is work, and brings its own server unless `PREFECT_API_URL` names one. Exit codes: 0 all is
well, 1 something failed (a table says what), 2 the command cannot be carried out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pickle
import queue
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commands.prepare.outcomes import Outcome, RunReport
    from commands.prepare.plan import Job
    from commands.prepare.run import Options, Work
    from commands.prepare.settings import Settings

BATCH_SCANS, BATCH_VOXELS = 8, 2_000_000
"""Most small scans that share a task, and most (estimated) voxels: a few seconds of work."""

RETRY_DELAYS_SECONDS = (2.0, 10.0)
"""Waits before another try where a disk or network failed."""

UNMANNED_SECONDS = 90.0
"""Longest wait for a Dask worker to come or to come back."""


# ---------------------------------------------------------------- prepare


def prepare(raw: Path, store_path: Path, settings: Settings, options: Options) -> RunReport:
    """Bring the store up to date with the scans in `raw`; safe to be killed and run again at any time.

    Args:
        raw: A folder, a manifest, or one file.
        store_path: The store; made where there is none.
        settings: What the stages are given.
        options: How it is run.

    Returns:
        What became of every scan.
    """
    from commands.prepare.run import Work
    from commands.prepare.scan_task import Setup
    from commands.prepare.settings import (
        make_the_plan,
        outcome_of_done,
        outcome_of_failure,
        tell_plan,
        wanted_digests,
        write_log,
    )
    from commands.terminal import CommandError
    from pipeline.compute import gpu_is_at_hand
    from pipeline.discovery import discover
    from storage import create_store, remove_scan, sweep, write_ledger

    began = time.monotonic()
    if options.device == "gpu" and not options.scheduler and not gpu_is_at_hand():
        raise CommandError(
            "--device gpu: there is no CUDA device that CuPy can use here. Leave it out, or use cpu"
        )
    print(f"looking for scans in {raw.name}", file=sys.stderr)
    discovery = discover(raw, settings.ingest.series_rules)
    config = settings.values()
    store = create_store(store_path, spacing_mm=settings.ingest.spacing_mm, config=config)
    store.require_current()
    before = store.info.config
    if before != config:
        store.set_config(config, spacing_mm=settings.ingest.spacing_mm)
    sweep(store_path)
    wanted = wanted_digests(config, before if before != config else None)
    plan = make_the_plan(discovery, store, wanted, retry_failed=options.retry_failed)
    work = Work(
        store_path=store_path,
        options=options,
        setup=Setup(settings=settings, wanted=wanted, device=options.device),
        plan=plan,
    )
    work.take_up(outcome_of_failure(failure) for failure in discovery.failures)
    work.take_up(outcome_of_done(done) for done in plan.done if not done.recorded)
    gone = [scan_id for scan_id in plan.absent if scan_id in store.entries]
    forgotten = sorted(set(plan.absent) - set(gone))
    tell_plan(discovery, plan, gone=gone, forgotten=forgotten, pruned=options.prune)
    write_ledger(store_path, (), remove=[*forgotten, *(gone if options.prune else [])])
    for scan_id in gone if options.prune else ():
        remove_scan(store_path, scan_id)
    try:
        if plan.jobs:
            run_flow(work)
    finally:
        write_log(work.outcomes.values())
        work.tidy_up()
    return work.report(discovery, absent=() if options.prune else gone, seconds=time.monotonic() - began)


_WORK: ContextVar[Work] = ContextVar("work")
"""The run that `run_batches` is about: as a parameter of the flow it would travel to every worker."""


def run_flow(work: Work) -> None:
    """Run the flow over all jobs of a plan."""
    from commands.prepare.prefect_server import prefect_server

    with prefect_server(work.options.scheduler, lambda: import_what_tasks_need(work.options)) as settings:
        from prefect import flow
        from prefect.settings import temporary_settings

        token = _WORK.set(work)
        try:
            with temporary_settings(updates=settings):
                decorate = flow(
                    name="prepare",
                    task_runner=task_runner(work.options),
                    log_prints=False,
                    persist_result=False,
                    validate_parameters=False,
                )
                try:
                    decorate(run_batches)()
                except Exception:
                    if not work.ended:
                        raise
                    print("Prefect's server is gone; all the work is done without it", file=sys.stderr)
        finally:
            _WORK.reset(token)


def run_batches() -> None:
    """The flow: hand out batches, a few ahead of the workers, and take up what comes back."""
    from commands.terminal import shown

    work, began = _WORK.get(), time.monotonic()
    handout = Handout(work)
    with shown("prepare") as show, stopped_by_signals(work):
        while handout.goes_on():
            handout.give()
            handout.take()
            show(work.progress(began))
    work.ended = True


class Handout:
    """Batches on their way to the workers and back. Stays in this process."""

    def __init__(self, work: Work) -> None:
        from commands.prepare.plan import batches

        self.work = work
        self.task = batch_task()
        self.waiting = deque(batches(work.plan.jobs, max_scans=BATCH_SCANS, max_weight=BATCH_VOXELS))
        self.flying: dict[Any, tuple[Job, ...]] = {}
        self.landed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.deaths: Counter[str] = Counter()
        self.manned = time.monotonic()
        """When a worker was last seen."""

    def goes_on(self) -> bool:
        """Whether anything is to be waited for or, unless the run is stopped, to be handed out."""
        return bool(self.flying or (self.waiting and not self.work.stop))

    def give(self) -> None:
        """Hand out batches: one a worker and, on Dask, one more, so that who is done first need not wait."""
        spare = 0 if in_this_process(self.work.options) else 1
        while self.waiting and not self.work.stop:
            if len(self.flying) >= num_workers(self.work.options) + spare:
                return
            batch = self.waiting.popleft()
            future = submit(self.task, self.work, batch)
            self.flying[future.task_run_id] = batch
            future.add_done_callback(self.landed.put)

    def take(self) -> None:
        """Take up the next batch that comes back, or give up where nobody is left to send one."""
        try:
            future = self.landed.get(timeout=0.5)
        except queue.Empty:
            if num_workers(self.work.options):
                self.manned = time.monotonic()
            elif time.monotonic() - self.manned > UNMANNED_SECONDS:
                self.work.stop = f"no Dask worker has been there for {UNMANNED_SECONDS:.0f} s"
                self.flying.clear()
            return
        batch = self.flying.pop(future.task_run_id)
        try:
            outcomes = future.result()
        except Exception as error:  # noqa: BLE001 - whatever a task dies of, the others go on
            outcomes = self.bury(batch, error)
        self.work.take_up(outcomes)

    def bury(self, batch: tuple[Job, ...], error: Exception) -> list[Outcome]:
        """What becomes of a batch that died as a whole: its worker was killed, its disk stayed away.

        Its scans are handed out again one by one, so that only the guilty one fails; the one that killed its
        worker, once more.
        """
        self.deaths.update(job.scan_id for job in batch)
        if len(batch) == 1 and not (was_killed(error) and self.deaths[batch[0].scan_id] <= 2):
            return [outcome_of_death(batch[0], error)]
        self.waiting.extendleft((job,) for job in reversed(batch))
        return []


def batch_task() -> Any:
    """The Prefect task: tried again, after a pause, only where a disk or network failed."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    from commands.prepare.scan_task import prepare_batch

    decorate = task(
        name="prepare scans",
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=list(RETRY_DELAYS_SECONDS),
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    return decorate(prepare_batch)


def worth_another_try(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a task failed by what may pass."""
    from pipeline.formats import is_transient

    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def submit(task: Any, work: Work, batch: Sequence[Job]) -> Any:
    """Hand a batch to the task runner; returns its future."""
    more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
    named = task.with_options(task_run_name=f"prepare {batch[0].scan_id}{more}")
    return named.submit(pickle.dumps((work.store_path.resolve(), work.setup, batch)))


def in_this_process(options: Options) -> bool:
    """Whether there is no Dask."""
    return options.workers == 1 and not options.scheduler


def task_runner(options: Options) -> Any:
    """Where tasks run: a thread of this process, processes on this machine, or a Dask cluster."""
    if in_this_process(options):
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=1)
    import dask
    from prefect_dask.task_runners import DaskTaskRunner

    for name in ("distributed", "distributed.scheduler", "distributed.nanny"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what happens to a scan, we tell ourselves
    if options.scheduler:
        return DaskTaskRunner(address=options.scheduler)
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    limits = dict.fromkeys(["NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"], threads)
    limits |= dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], threads)
    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": limits,
            "distributed.worker.memory.target": False,  # results are small: there is nothing to move to disk
            "distributed.worker.memory.spill": False,
            # A scan that kills its worker is tried once more by us, and alone.
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-saturation": 1.0,  # nothing waits at a worker, to be killed with it
        }
    )
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": options.workers,
            "threads_per_worker": 1,
            "processes": True,
            "preload": ["import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"],  # Ctrl-C is for us
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",  # a free port, for nobody: two runs must not want the same
            "scheduler_kwargs": {"dashboard": False},
            "silence_logs": logging.CRITICAL,
            "local_directory": tempfile.gettempdir(),
        }
    )


def import_what_tasks_need(options: Options) -> None:
    """Modules that take seconds to import, where tasks run here: while the server starts."""
    if in_this_process(options):
        import_module("commands.prepare.scan_task")
        import_module("storage.writing")


def num_workers(options: Options) -> int:
    """How many tasks can be worked on at once, right now."""
    if in_this_process(options):
        return 1
    from prefect.context import FlowRunContext

    context: Any = FlowRunContext.get()
    threads: Mapping[str, int] = context.task_runner.client.nthreads()
    return sum(threads.values())


def was_killed(error: Exception) -> bool:
    """Whether the worker died, rather than the task failed."""
    return type(error).__name__ == "KilledWorker"


def outcome_of_death(job: Job, error: Exception) -> Outcome:
    """A scan whose task ended without an outcome of its own."""
    from commands.prepare.outcomes import Outcome
    from commands.prepare.scan_task import without_paths

    if was_killed(error):
        reason = "the worker process died twice while it worked on this scan, most likely for lack of memory"
        remedy = "Use fewer --workers or a larger spacing_mm, or a machine with more memory"
    else:
        reason = f"given up after {len(RETRY_DELAYS_SECONDS) + 1} tries: {type(error).__name__}: {error}"
        remedy = "Check disk and network, then run the same command again"
    source = job.found.source
    return Outcome(
        scan_id=job.scan_id,
        location=source.location,
        state="failed",
        kind=type(error).__name__,
        reason=without_paths(reason, source),
        remedy=remedy,
        why=job.why,
    )


@contextmanager
def stopped_by_signals(work: Work) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the scans in hand be finished, the second ends the process at once."""

    def stop(number: int, frame: Any) -> None:
        if work.stop:
            os._exit(128 + number)  # safe: what is committed is whole, the rest is swept by the next run
        work.stop, work.interrupted = f"interrupted by {signal.Signals(number).name}", True
        print("\nstopping: the scans in hand are finished; once more to stop at once", file=sys.stderr)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


# ---------------------------------------------------------------- the command


def run_prepare(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Mass prepare."""
    from commands.prepare.run import Options
    from commands.prepare.settings import Settings, tell_report

    options = Options(
        workers=arguments.workers,
        scheduler=arguments.scheduler,
        device=arguments.device,
        retry_failed=arguments.retry_failed,
        prune=arguments.prune,
    )
    report = prepare(arguments.raw, arguments.store, Settings.read(arguments.config), options)
    tell_report(report)
    return report.exit_code, {"store": str(arguments.store), **report.to_json()}


def run_demo(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Mass demo."""
    from commands.inspect import inspect_store
    from commands.prepare.run import Options
    from commands.prepare.settings import Settings, tell_report
    from commands.score import score_scans
    from commands.terminal import CommandError
    from pipeline.quality import summarize, to_markdown
    from storage import open_store

    if not arguments.raw.exists():
        raise CommandError(
            f"{arguments.raw}: no bundled scans here. Run `mass demo` from a checkout, or give --raw"
        )
    began = time.monotonic()
    print(f"1. prepare {arguments.raw} in {arguments.store}")
    report = prepare(arguments.raw, arguments.store, Settings.read(None), Options(workers=arguments.workers))
    tell_report(report)
    print("2. score the proposals against the labels")
    ids = open_store(arguments.store).scan_ids
    scores, damaged = score_scans(arguments.store, ids, slic=False, workers=1)
    print(to_markdown(summarize(scores)).split("## By structure")[0])
    print("3. draw pictures")
    written = inspect_store(arguments.store, [], arguments.out, full=3)
    print(f"page: {written[0]}\npicture: {written[1]}")
    document = report.to_json() | {"written": [str(path) for path in written]}
    code = report.exit_code or int(bool(damaged))
    if arguments.steps:
        from commands.demo import bundled_or_named, check_unseen, demonstrate_use
        from commands.pretrain import pretrain_for_demo, to_document

        unseen, datasets = bundled_or_named(arguments)
        if unseen:
            check_unseen(arguments.store, unseen)
        print(f"4. pretrain a small network for {arguments.steps} steps, in {arguments.run_folder}")
        done = pretrain_for_demo(
            arguments.store, arguments.run_folder, steps=arguments.steps, workers=arguments.workers
        )
        document["pretrain"] = to_document(arguments.run_folder, done)
        code = code or (128 + done.result.signal_number if done.result.signal_number else 0)
        if done.weights and unseen:
            ended, told = demonstrate_use(
                arguments.store,
                done.weights,
                unseen,
                arguments.run_folder,
                datasets=datasets,
                steps=arguments.finetune_steps,
                workers=arguments.workers,
            )
            document |= told
            code = code or ended
    print(f"done in {time.monotonic() - began:.0f} s")
    return code, document


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    from commands.arguments import parser
    from commands.caches import choose_numba_cache

    arguments = parser().parse_args(argv)
    from commands.terminal import CommandError
    from pipeline.errors import PipelineError
    from storage import StorageError
    from training import TrainingError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is told comes in time, also through a pipe
    # Threads that spin while they wait for each other starve all where cores are shared: 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    choose_numba_cache(Path(__file__).parent / "pipeline" / "hierarchies")
    module, _, name = arguments.run.partition(":")
    try:
        code, document = getattr(import_module(module), name)(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except (CommandError, PipelineError, StorageError, TrainingError) as error:
        print(f"mass: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mass: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return int(code)


if __name__ == "__main__":
    # Under its own name, so that what is pickled for a worker is found there.
    sys.exit(import_module("flows").main())
