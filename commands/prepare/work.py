"""A run of `mass prepare` in progress: its options, its outcomes, and the ledger."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from commands.disk_errors import warn_of_locks
from commands.prepare.local_records import Search, remember_search, remember_seconds
from commands.prepare.outcomes import Outcome, RunReport
from commands.prepare.plan import Job, Plan
from commands.prepare.scan_task import Device, Setup
from commands.prepare.settings import (
    Settings,
    ledger_line,
    make_the_plan,
    outcome_of_done,
    outcome_of_failure,
    print_plan,
    wanted_digests,
    write_log,
)
from commands.progress import Progress
from commands.terminal import CommandError
from pipeline.compute import gpu_is_at_hand
from pipeline.discovery import Discovery, discover
from storage import (
    LedgerEntry,
    StoreFull,
    StorePath,
    create_store,
    finish,
    open_store,
    remove_scan,
    sweep,
    write_ledger,
)

LEDGER_SECONDS = 30.0
"""Seconds between two writings of the ledger: after a kill, few sources' bytes have to be read again."""

LEDGER_SHARE = 0.02
"""Largest fraction of a run's time for writing the ledger. It is written as a whole, so in a large store it
is written less often."""


@dataclass(kw_only=True)
class Tally:
    """Counts of the jobs that have ended; updated with each, since a run may have 100,000."""

    weights: Mapping[str, int]
    """Weight of each job, by scan."""
    total: int
    ended: set[str] = field(default_factory=set)
    failed: int = 0
    weight_ended: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Tally:
        """Return the tally of a plan before any work."""
        weights = {job.scan_id: job.weight for job in jobs}
        return cls(weights=weights, total=sum(weights.values()))

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of a scan, if it is one of the jobs and not counted yet."""
        weight = self.weights.get(outcome.scan_id)
        if weight is None or outcome.scan_id in self.ended:
            return
        self.ended.add(outcome.scan_id)
        self.weight_ended += weight
        self.failed += outcome.failure is not None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run of `prepare`; none changes a byte of a stored scan."""

    workers: int = 1
    """Number of processes on this machine; 1: this process."""
    scheduler: str = ""
    """Address of a Dask scheduler to use instead."""
    device: Device = "auto"
    """Where proposals are computed."""
    retry_failed: bool = False
    """Try failed scans again although nothing changed."""
    prune: bool = False
    """Remove scans from the store whose sources are gone."""
    follow_links: bool = False
    """Follow links that lead to folders outside of the searched one."""
    watch: bool = False
    """Keep a page of the run up to date."""
    layout: str = "auto"
    """Layout of the folder, one of `pipeline.discovery.LAYOUT_NAMES`."""
    embedded_server: bool = False
    """Use the embedded Prefect server, even if PREFECT_API_URL names another."""


@dataclass(kw_only=True)
class Work:
    """A run in progress: plan, options and outcomes. It stays in this process and is never pickled."""

    store_path: StorePath
    options: Options
    setup: Setup
    plan: Plan
    raw: Path
    """The searched folder, manifest or file."""
    discovery: Discovery
    gone: tuple[str, ...] = ()
    """Scans that the store has and the search did not find."""
    server_is_kept: bool = True
    """Whether Prefect's server outlives the run, so that artifacts can be viewed later."""
    began: float = field(default_factory=time.monotonic)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    last_ended: float = field(default_factory=time.monotonic)
    """Time of the last outcome, on the monotonic clock."""
    lines: list[LedgerEntry] = field(default_factory=list)
    """Lines of the ledger that are not written yet."""
    written: float = field(default_factory=time.monotonic)
    writing_seconds: float = 0.0
    """Seconds of the last writing of the ledger."""
    tally: Tally = field(init=False)
    stop: str = ""
    """Why no more scans are begun; empty if they are."""
    interrupted: bool = False
    """Whether the user interrupted the run."""
    ended: bool = False
    """Whether the last task has ended."""
    closed: bool = False

    def __post_init__(self) -> None:
        self.tally = Tally.of(self.plan.jobs)

    @cached_property
    def config_digest(self) -> str:
        """Digest of the store's settings when the first task is submitted; workers compare it with theirs."""
        return open_store(self.store_path).info.config_digest

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Record the outcomes of some scans."""
        for outcome in outcomes:
            self.outcomes[outcome.scan_id] = outcome
            self.tally.add(outcome)
            self.last_ended = time.monotonic()
            if outcome.state == "not done":
                self.stop = self.stop or outcome.stop
            else:
                self.lines.append(ledger_line(outcome, self.setup.wanted.config_digest))
        if time.monotonic() - self.written > max(LEDGER_SECONDS, self.writing_seconds / LEDGER_SHARE):
            self.write_ledger()

    def write_ledger(self) -> None:
        """Write the lines of the ledger that are not written yet."""
        began = time.monotonic()
        try:
            write_ledger(self.store_path, self.lines)
        except StoreFull as error:
            self.stop = self.stop or str(error)
        else:
            self.lines.clear()
        done = (one for one in self.outcomes.values() if one.state == "committed" and one.why)
        remember_seconds(self.store_path, {one.scan_id: one.seconds for one in done})
        self.written = time.monotonic()
        self.writing_seconds = self.written - began

    def close(self) -> None:
        """Complete log, ledger and index, and remove the files of dead writers; done once."""
        if self.closed:
            return
        self.closed = True
        write_log(self.outcomes.values())
        self.write_ledger()
        try:
            if self.plan.jobs:  # otherwise the sweep before the plan was enough
                sweep(self.store_path)
            finish(self.store_path)
        except StoreFull as error:
            self.stop = self.stop or str(error)

    def progress(
        self,
        began: float,
        *,
        ahead: Mapping[str, float] | None = None,
        in_hand: tuple[str, float] = ("", 0.0),
    ) -> Progress:
        """Return the progress of the jobs.

        Args:
            began: Start of the work, on the monotonic clock.
            ahead: Scans that are committed while their batch is in flight, with the time.
            in_hand: The scan in progress, or the first of several, and its start.
        """
        early = {scan_id: when for scan_id, when in (ahead or {}).items() if scan_id not in self.outcomes}
        weights = [self.tally.weights[scan_id] for scan_id in early if scan_id in self.tally.weights]
        now = time.monotonic()
        name, since = in_hand
        return Progress(
            done=len(self.tally.ended) + len(weights),
            total=len(self.plan.jobs),
            failed=self.tally.failed,
            weight_done=self.tally.weight_ended + sum(weights),
            weight_total=self.tally.total,
            seconds=now - began,
            still_seconds=now - max(began, self.last_ended, *early.values()),
            in_hand=name,
            in_hand_seconds=now - since if name else 0.0,
        )

    def report(self) -> RunReport:
        """Return the outcome of every scan."""
        left = [job for job in self.plan.jobs if job.scan_id not in self.outcomes]
        not_done = [outcome for outcome in self.outcomes.values() if outcome.state == "not done"] + [
            Outcome(
                scan_id=job.scan_id,
                location=job.found.source.location,
                state="not done",
                why=job.why,
                stop=self.stop,
            )
            for job in left
        ]
        ids = sorted(job.scan_id for job in self.plan.jobs)
        of_jobs = [self.outcomes[scan_id] for scan_id in ids if scan_id in self.outcomes]
        failures = [outcome.failure for outcome in self.outcomes.values() if outcome.failure]
        return RunReport(
            committed=tuple(outcome for outcome in of_jobs if outcome.state == "committed"),
            skipped=tuple(done.found.source.scan_id for done in self.plan.done),
            failed=tuple(sorted([*failures, *self.plan.failed], key=lambda failure: failure.scan_id)),
            not_done=tuple(not_done),
            reasons=self.plan.reasons(),
            notes=self.discovery.notes,
            absent=() if self.options.prune else self.gone,
            seconds=time.monotonic() - self.began,
            stopped=self.stop if not_done else "",
            interrupted=self.interrupted and bool(not_done),
        )


_WORK: ContextVar[Work | None] = ContextVar("work", default=None)


def current_work() -> Work | None:
    """Return the run that this process works on, if it is planned already.

    It is not a parameter of the flow, since Prefect sends parameters to every worker.
    """
    return _WORK.get()


@contextmanager
def working_on(work: Work) -> Iterator[None]:
    """Make a run the current one inside the block."""
    token = _WORK.set(work)
    try:
        yield
    finally:
        _WORK.reset(token)


def plan_work(raw: Path, store_path: StorePath, settings: Settings, options: Options) -> Work:
    """Search for scans, compare them with the store, and print what there is to do.

    Args:
        raw: A folder, a manifest, or one file.
        store_path: The store; made where there is none.
        settings: Settings of ingest and proposals.
        options: Options of the run.

    Raises:
        CommandError: There is no such device.
    """
    began = time.monotonic()
    if options.device == "gpu" and not options.scheduler and not gpu_is_at_hand():
        raise CommandError(
            "--device gpu: there is no CUDA device that CuPy can use here. Leave it out, or use cpu"
        )
    print(f"looking for scans in {raw.name}", file=sys.stderr)
    discovery = discover(
        raw, settings.ingest.series_rules, follow_links=options.follow_links, layout=options.layout
    )
    config = settings.values()
    store = create_store(store_path, spacing_mm=settings.ingest.spacing_mm, config=config)
    store.require_current()
    before = store.info.config
    if before != config:
        store.set_config(config, spacing_mm=settings.ingest.spacing_mm)
    warn_of_locks(store_path)
    sweep(store_path)
    search = Search(raw=str(raw.absolute()), layout=options.layout, follow_links=options.follow_links)
    remember_search(store_path, search)
    wanted = wanted_digests(config, before if before != config else None)
    plan = make_the_plan(discovery, store, wanted, retry_failed=options.retry_failed)
    gone = tuple(scan_id for scan_id in plan.absent if scan_id in store.entries)
    forgotten = sorted(set(plan.absent) - set(gone))
    print_plan(discovery, plan, gone=gone, forgotten=forgotten, pruned=options.prune)
    work = Work(
        store_path=store_path,
        options=options,
        setup=Setup(settings=settings, wanted=wanted, device=options.device),
        plan=plan,
        raw=raw,
        discovery=discovery,
        gone=gone,
        began=began,
    )
    work.record(outcome_of_failure(failure) for failure in discovery.failures)
    work.record(outcome_of_done(done) for done in plan.done if not done.recorded)
    write_ledger(store_path, (), remove=[*forgotten, *(gone if options.prune else [])])
    for scan_id in gone if options.prune else ():
        remove_scan(store_path, scan_id)
    return work
