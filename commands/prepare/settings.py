"""Before and after the work of `mass prepare`: settings, plan, ledger, and what is printed.

What a task does is in `scan_task`, which tasks run where in `scheduler`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.caches import cache_folder
from commands.prepare.outcomes import Outcome, RunReport, counted_scans
from commands.prepare.plan import Done, Found, Known, Plan, Wanted, make_plan
from commands.terminal import counted, print_failures, print_table, printable
from pipeline.discovery import Discovery, Source, choices_digest, source_digest, source_stat
from pipeline.errors import Failure, UnreadableFile
from pipeline.ingest import IDLE_SETTINGS, INGEST_VERSION, LATER_SETTINGS, REFUSALS_VERSION, IngestConfig
from pipeline.proposals import ALGORITHM_VERSION, ProposalConfig
from pipeline.toml_settings import config_values, describe_change, parse_config, read_tables
from storage import LedgerEntry, LedgerFile, Store, digest_of, read_failed, read_ledger

MOST_NOTES = 30
"""Notes on scans that are printed after a run; all are in the store and in the file of --json."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `mass prepare`: a table of the TOML file each."""

    ingest: IngestConfig
    proposals: ProposalConfig

    @classmethod
    def read(cls, path: Path | None) -> Settings:
        """The settings in a TOML file; the defaults where there is none."""
        tables = read_tables(path, ["ingest", "proposals"]) if path else {"ingest": {}, "proposals": {}}
        return cls(
            ingest=parse_config(tables["ingest"], IngestConfig, where="[ingest]"),
            proposals=parse_config(tables["proposals"], ProposalConfig, where="[proposals]"),
        )

    @classmethod
    def stored(cls, config: Mapping[str, Any]) -> Settings:
        """The settings that a store was prepared with, as store.json has them; a null stands for none."""
        tables = {
            name: {key: value for key, value in config.get(name, {}).items() if value is not None}
            for name in ("ingest", "proposals")
        }
        return cls(
            ingest=parse_config(tables["ingest"], IngestConfig, where="[ingest]"),
            proposals=parse_config(tables["proposals"], ProposalConfig, where="[proposals]"),
        )

    def values(self) -> dict[str, dict[str, Any]]:
        """All settings as JSON, by table."""
        return {"ingest": config_values(self.ingest), "proposals": config_values(self.proposals)}


def wanted_digests(config: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Wanted:
    """What the stages would be given now: the settings in `config` (as store.json has them) and this code.

    Args:
        config: Settings by table.
        before: Settings that the store had, to tell what differs.
    """
    code = {"ingest": INGEST_VERSION, "proposals": ALGORITHM_VERSION}
    digests = {
        stage: digest_of({"settings": _counted(config.get(stage, {})), "code": code[stage]}) for stage in code
    }
    change = {
        stage: describe_change(_counted(before.get(stage, {})), _counted(config[stage])) if before else ""
        for stage in code
    }
    return Wanted(
        **digests,
        refusals=REFUSALS_VERSION,
        ingest_change=change["ingest"],
        proposals_change=change["proposals"],
    )


def _counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make stored scans stale if they change; newer ones at their default do not."""
    return {
        name: value
        for name, value in settings.items()
        if name not in IDLE_SETTINGS and (name not in LATER_SETTINGS or value != LATER_SETTINGS[name])
    }


def found_now(source: Source) -> Found:
    """A source with the state of its files."""
    try:
        files = tuple(source_stat(source))
    except UnreadableFile:
        files = ()
    return Found(source=source, files=files, choices_digest=choices_digest(source))


def known_scans(store: Store) -> dict[str, Known]:
    """What the store and its ledger have recorded of every scan."""
    known = {
        scan_id: Known(committed=entry.digests, case=entry.case) for scan_id, entry in store.entries.items()
    }
    for scan_id, line in read_ledger(store.path).items():
        known[scan_id] = replace(
            known.get(scan_id, Known()),
            failure=failure_in(line),
            config_digest=line.config_digest,
            source_digest=line.source_digest,
            files=tuple((file.location, file.size, file.mtime_ns) for file in line.files),
            choices_digest=line.choices_digest,
        )
    return known


def known_failures(store: Store) -> dict[str, Failure]:
    """The failures that the ledger records, by scan, sorted."""
    failures = {scan_id: failure_in(line) for scan_id, line in read_failed(store.path).items()}
    return {scan_id: failure for scan_id, failure in failures.items() if failure is not None}


def failure_in(line: LedgerEntry) -> Failure | None:
    """The failure that a line of the ledger records, if it does."""
    if line.state != "failed":
        return None
    return Failure(
        scan_id=line.scan_id, location=line.location, reason=line.reason, remedy=line.remedy, kind=line.kind
    )


def ledger_line(outcome: Outcome, config_digest: str) -> LedgerEntry:
    """The ledger's line for a scan: committed, or failed and why."""
    failure = outcome.failure
    return LedgerEntry(
        scan_id=outcome.scan_id,
        location=outcome.location,
        state="failed" if failure else "committed",
        kind=failure.kind if failure else "",
        reason=failure.reason if failure else "",
        remedy=failure.remedy if failure else "",
        source_digest=outcome.source_digest,
        files=tuple(
            LedgerFile(location=what, size=size, mtime_ns=mtime) for what, size, mtime in outcome.files
        ),
        choices_digest=outcome.choices_digest,
        config_digest=config_digest if outcome.lasting else "",
    )


def make_the_plan(discovery: Discovery, store: Store, wanted: Wanted, *, retry_failed: bool) -> Plan:
    """What there is to do, from what was found and what the store knows."""

    def digest(source: Source) -> str | None:
        try:
            return source_digest(source)
        except UnreadableFile:
            return None

    return make_plan(
        (found_now(source) for source in counted("compare with the store", discovery.sources)),
        known_scans(store),
        wanted,
        digest=digest,
        retry_failed=retry_failed,
        elsewhere=[failure.scan_id for failure in discovery.failures],
    )


def outcome_of_failure(failure: Failure) -> Outcome:
    """A scan that the search found no way to read."""
    return Outcome(scan_id=failure.scan_id, location=failure.location, state="failed", failure=failure)


def outcome_of_done(done: Done) -> Outcome:
    """A scan that is in the store already."""
    found = done.found
    return Outcome(
        scan_id=found.source.scan_id,
        location=found.source.location,
        state="committed",
        source_digest=done.source_digest,
        choices_digest=found.choices_digest,
        files=found.files,
    )


def print_plan(
    discovery: Discovery, plan: Plan, *, gone: Sequence[str], forgotten: Sequence[str], pruned: bool
) -> None:
    """Print what was found and what is going to be done, before it is."""
    for note in discovery.notes:
        print(f"  {printable(note)}")
    found = len(discovery.sources) + len(discovery.failures)
    print(f"{counted_scans(found)} found: {len(plan.jobs)} to do, {len(plan.done)} done before")
    for why, count in plan.reasons().items():
        print(f"  {counted_scans(count)}: {why}")
    if plan.failed:
        print(
            f"  {counted_scans(len(plan.failed))} failed before and nothing changed: not tried again "
            "(--retry-failed does)"
        )
    if gone:
        fate = "removed from the store" if pruned else "kept; --prune removes them"
        print(f"  {counted_scans(len(gone))} of the store without a source now: {fate}")
    if forgotten:
        print(f"  {counted_scans(len(forgotten))} failed in an earlier run and the source is gone: forgotten")


def print_report(report: RunReport) -> None:
    """Print what became of the scans."""
    if report.committed:
        columns = ("data set", "scans", "proposals a scan", "seconds a scan")
        print_table("prepared", columns, report.groups())
    noted = report.noted()
    if noted:
        more = f", the first {MOST_NOTES}" if len(noted) > MOST_NOTES else ""
        print_table(f"notes ({len(noted)}{more})", ("scan", "note"), noted[:MOST_NOTES])
    print_failures(report.failed)
    if report.stopped:
        print(f"stopped before the end: {report.stopped}")
    if report.not_done:
        names = ", ".join(outcome.scan_id for outcome in report.not_done[:10])
        more = f" and {len(report.not_done) - 10} more" if len(report.not_done) > 10 else ""
        print(f"not done: {names}{more}; the same command goes on from here")
    print(report.summary())


def write_log(outcomes: Iterable[Outcome]) -> None:
    """Keep the tracebacks of failures that nobody foresaw, outside of the store."""
    traces = [f"{outcome.scan_id}\n{outcome.traceback}" for outcome in outcomes if outcome.traceback]
    if traces:
        folder = cache_folder() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime(f"prepare-%Y%m%d-%H%M%S-{os.getpid()}.log")
        path.write_text("\n".join(traces), encoding="utf-8")
        print(f"tracebacks of {len(traces)} unforeseen failures: {path}")
