"""Scheduling of batches: submitting them to workers, collecting outcomes, repeating failed tasks.

Reads:  a `Work`, and the Prefect task that prepares a batch.
Writes: outcomes into the work.
Bounds: runs in the process of the flow, inside a flow run whose task runner is `task_runner(options)`.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from commands.prepare.cluster import in_this_process, memory_for_workers, num_workers, on_fit_workers
from commands.prepare.memory import peak_of_job
from commands.prepare.outcomes import Outcome
from commands.prepare.payload import WorkerUnfitError, pack
from commands.prepare.plan import Job, batches
from commands.prepare.scan_task import without_paths
from commands.prepare.work import Work
from commands.terminal import State, shown
from pipeline.errors import Failure
from pipeline.formats import hurry_reads
from storage import IndexTail

BATCH_SCANS, BATCH_VOXELS = 8, 2_000_000
"""Most small scans that share a task, and most (estimated) voxels: a few seconds of work."""

RETRY_DELAYS_SECONDS = (2.0, 10.0)
"""Seconds before each further try after an error of a disk or network."""

NO_WORKER_SECONDS = 90.0
"""Longest time without any Dask worker, in seconds."""

POLL_SECONDS = 0.5

OURS = ("commands", "flows", "pipeline", "storage")
"""Packages of this project that a worker needs."""


class BatchScheduler:
    """Submits batches, a few ahead of the workers, and records their outcomes."""

    def __init__(self, work: Work, task: Any) -> None:
        self.work = work
        self.task = task
        """The Prefect task; takes a payload, returns outcomes."""
        self.waiting = deque(batches(work.plan.jobs, max_scans=BATCH_SCANS, max_weight=BATCH_VOXELS))
        self.in_flight: dict[Any, tuple[Job, ...]] = {}
        """Batches by the id of their task run."""
        self.finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Futures that are done."""
        self.memory = memory_for_workers(work.options) or math.inf
        """Bytes that batches in flight may take together."""
        self.peaks: dict[Any, int] = {}
        """Predicted peak of each batch in flight, in bytes; 0 if the workers limit their memory
        themselves."""
        self.in_hand_since: dict[Any, float] = {}
        """Time of their submission."""
        self.ahead: dict[str, float] = {}
        """Scans that are committed while their batch is in flight, with the time when this was seen."""
        self.index = IndexTail(work.store_path)
        self.deaths: Counter[str] = Counter()
        """Number of times that a scan was in a batch whose task died."""
        self.last_worker_seen = time.monotonic()

    def run(self) -> None:
        """Work until all batches are done, or the run is stopped and those in flight are done."""
        began = time.monotonic()
        with self.watched() as page, shown("prepare", page) as show, stopped_by_signals(self.work):
            while self.in_flight or (self.waiting and not self.work.stop):
                self.submit_batches()
                self.collect_one()
                self.look_ahead()
                show(self.work.progress(began, ahead=self.ahead, in_hand=self.in_hand()))
        self.work.ended = True

    def watched(self) -> AbstractContextManager[Callable[[State], None] | None]:
        """Return a context that keeps a page of the run up to date, if --watch is given."""
        if not self.work.options.watch:
            return nullcontext()
        from commands.pages.preparing import watched_preparing

        return watched_preparing(self.work)

    def submit_batches(self) -> None:
        """Submit one batch per worker and, on Dask, one more, so that no worker has to wait for the next."""
        spare = 0 if in_this_process(self.work.options) else 1
        while self.waiting and not self.work.stop:
            if len(self.in_flight) >= num_workers(self.work.options) + spare:
                return
            peak = self.peak_of(self.waiting[0])
            if self.in_flight and sum(self.peaks.values()) + peak > self.memory:
                return
            batch = self.waiting.popleft()
            future = submit(self.task, self.work, batch)
            self.peaks[future.task_run_id] = peak
            self.in_flight[future.task_run_id] = batch
            self.in_hand_since[future.task_run_id] = time.monotonic()
            future.add_done_callback(self.finished.put)

    def collect_one(self) -> None:
        """Record the next finished batch; stop the run if there has been no worker for long."""
        try:
            future = self.finished.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if num_workers(self.work.options):
                self.last_worker_seen = time.monotonic()
            elif time.monotonic() - self.last_worker_seen > NO_WORKER_SECONDS:
                self.work.stop = (
                    f"no Dask worker has been there for {NO_WORKER_SECONDS:.0f} s, or all were paused for "
                    "lack of memory (see --memory-limit)"
                )
                self.in_flight.clear()
                self.in_hand_since.clear()
                self.peaks.clear()
            return
        batch = self.in_flight.pop(future.task_run_id)
        del self.in_hand_since[future.task_run_id], self.peaks[future.task_run_id]
        try:
            outcomes = future.result()
        except Exception as error:  # noqa: BLE001 - any error of a task; the others go on
            outcomes = self.after_death(batch, error)
        self.work.record(outcomes)
        for job in batch:
            self.ahead.pop(job.scan_id, None)

    def look_ahead(self) -> None:
        """Look for scans that are committed though their batch is not finished."""
        now = time.monotonic()
        new = (scan_id for scan_id in self.index.new_ids() if scan_id not in self.work.outcomes)
        self.ahead |= dict.fromkeys(new, now)

    def peak_of(self, batch: tuple[Job, ...]) -> int:
        """Return the predicted peak of a batch, whose scans are prepared one after the other, in bytes."""
        if self.memory == math.inf:
            return 0
        return max(peak_of_job(job, None, self.work.setup.settings) for job in batch)

    def in_hand(self) -> tuple[str, float]:
        """Return the scan in progress and its start; with several workers, that of the oldest batch.

        A batch returns its outcomes only when all are done; until then the index shows which are committed.
        """
        if not self.in_hand_since:
            return "", 0.0
        oldest, since = min(self.in_hand_since.items(), key=lambda item: item[1])
        batch = self.in_flight[oldest]
        last = max((k for k, job in enumerate(batch) if job.scan_id in self.ahead), default=-1)
        if last >= 0:
            since = max(since, self.ahead[batch[last].scan_id])
        return batch[min(last + 1, len(batch) - 1)].scan_id, since

    def after_death(self, batch: tuple[Job, ...], error: Exception) -> list[Outcome]:
        """Return the outcomes of a batch whose task died as a whole: worker killed, disk gone.

        Its scans are submitted again one by one, so that only the scan at fault fails. A single scan that
        killed its worker is tried once more.
        """
        if unfit := reason_to_stop(error):
            self.work.stop = self.work.stop or unfit
            return []
        self.deaths.update(job.scan_id for job in batch)
        if len(batch) == 1 and not (was_killed(error) and self.deaths[batch[0].scan_id] <= 2):
            return [outcome_of_death(batch[0], error)]
        self.waiting.extendleft((job,) for job in reversed(batch))
        return []


def submit(task: Any, work: Work, batch: Sequence[Job]) -> Any:
    """Submit a batch to the task runner of the flow, named after its scans; returns the future."""
    more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
    named = task.with_options(
        task_run_name=f"prepare {batch[0].scan_id}{more}",
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=list(RETRY_DELAYS_SECONDS),
    )
    payload = pack(work.store_path, work.raw, work.config_digest, work.setup, batch)
    with on_fit_workers(work.options):
        return named.submit(payload)


def reason_to_stop(error: Exception) -> str:
    """Return why a run cannot go on after the error of a task; "" if only this task is concerned."""
    if isinstance(error, WorkerUnfitError):
        return str(error)
    name = (getattr(error, "name", "") or "").split(".")[0]
    if isinstance(error, ImportError) and name in OURS:
        return f"a Dask worker cannot import `{name}`: install mass3d, of the same version, where workers run"
    return ""


def was_killed(error: Exception) -> bool:
    """Return whether the worker died, rather than the task failed."""
    return type(error).__name__ == "KilledWorker"


def outcome_of_death(job: Job, error: Exception) -> Outcome:
    """Return the failure of a scan whose task ended without an outcome of its own."""
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
        failure=Failure(
            scan_id=job.scan_id,
            location=source.location,
            reason=without_paths(reason, source),
            remedy=remedy,
            kind=type(error).__name__,
        ),
        why=job.why,
    )


@contextmanager
def stopped_by_signals(work: Work) -> Iterator[None]:
    """Finish the scans in flight after the first Ctrl-C or SIGTERM; the second ends the process at once.

    Does nothing outside of the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if work.stop:
            os._exit(128 + number)  # safe: committed scans are complete, the next run removes the rest
        work.stop, work.interrupted = f"interrupted by {signal.Signals(number).name}", True
        hurry_reads()
        print("\nstopping: the scans in hand are finished; once more to stop at once", file=sys.stderr)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        hurry_reads(False)
        for number in numbers:
            signal.signal(number, before[number])
