"""A run of `mass prepare` in progress: how it is run, what came back, what is written down."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands.prepare.outcomes import Outcome, RunReport
from commands.prepare.plan import Plan
from commands.prepare.scan_task import Device, Setup
from commands.prepare.settings import ledger_line
from commands.progress import Progress
from pipeline.discovery import Discovery
from storage import LedgerEntry, StoreFull, finish, sweep, write_ledger

LEDGER_SECONDS = 30.0
"""The ledger is written at least so often: after a kill, few sources' bytes have to be looked at again."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How `prepare` is to be run; none of it changes a byte of the store."""

    workers: int = 1
    """Processes on this machine; 1 works in this process."""
    scheduler: str = ""
    """Address of a Dask scheduler to use instead."""
    device: Device = "auto"
    """Where proposals are computed."""
    retry_failed: bool = False
    """Try failed scans again although nothing changed."""
    prune: bool = False
    """Remove scans from the store whose sources are gone."""


@dataclass(kw_only=True)
class Work:
    """A run in progress: what is left, what came back. Lives in this process and is never pickled."""

    store_path: Path
    options: Options
    setup: Setup
    plan: Plan
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lines: list[LedgerEntry] = field(default_factory=list)
    """Of the ledger, not written yet."""
    written: float = field(default_factory=time.monotonic)
    stop: str = ""
    """Why nothing more is begun."""
    interrupted: bool = False
    """Whether someone asked for the end."""
    ended: bool = False
    """Whether the last task has come back."""

    def take_up(self, outcomes: Iterable[Outcome]) -> None:
        """Note what became of some scans."""
        for outcome in outcomes:
            self.outcomes[outcome.scan_id] = outcome
            if outcome.state == "not done":
                self.stop = self.stop or outcome.reason
            else:
                self.lines.append(ledger_line(outcome, self.setup.wanted.config_digest))
        if time.monotonic() - self.written > LEDGER_SECONDS:
            self.write_ledger()

    def write_ledger(self) -> None:
        """Write down what is not written yet."""
        self.written = time.monotonic()
        try:
            write_ledger(self.store_path, self.lines)
        except StoreFull as error:
            self.stop = self.stop or str(error)
        else:
            self.lines.clear()

    def tidy_up(self) -> None:
        """Leave ledger and index complete and in order, and nothing of writers that died."""
        self.write_ledger()
        try:
            sweep(self.store_path)
            finish(self.store_path)
        except StoreFull as error:
            self.stop = self.stop or str(error)

    def progress(self, began: float) -> Progress:
        """How far the jobs are."""
        ended = [job for job in self.plan.jobs if job.scan_id in self.outcomes]
        return Progress(
            done=len(ended),
            total=len(self.plan.jobs),
            failed=sum(self.outcomes[job.scan_id].state != "committed" for job in ended),
            weight_done=sum(job.weight for job in ended),
            weight_total=sum(job.weight for job in self.plan.jobs),
            seconds=time.monotonic() - began,
        )

    def report(self, discovery: Discovery, *, absent: Sequence[str], seconds: float) -> RunReport:
        """The run, told."""
        left = [job for job in self.plan.jobs if job.scan_id not in self.outcomes]
        not_done = [outcome for outcome in self.outcomes.values() if outcome.state == "not done"] + [
            Outcome(
                scan_id=job.scan_id,
                location=job.found.source.location,
                state="not done",
                why=job.why,
                reason=self.stop,
            )
            for job in left
        ]
        ids = sorted(job.scan_id for job in self.plan.jobs)
        of_jobs = [self.outcomes[scan_id] for scan_id in ids if scan_id in self.outcomes]
        failures = [outcome.failure for outcome in self.outcomes.values() if outcome.state == "failed"]
        return RunReport(
            committed=tuple(outcome for outcome in of_jobs if outcome.state == "committed"),
            skipped=tuple(done.found.source.scan_id for done in self.plan.done),
            failed=tuple(sorted([*failures, *self.plan.failed], key=lambda failure: failure.scan_id)),
            not_done=tuple(not_done),
            reasons=self.plan.reasons(),
            notes=discovery.notes,
            absent=tuple(absent),
            seconds=seconds,
            stopped=self.stop if not_done else "",
            interrupted=self.interrupted and bool(not_done),
        )
