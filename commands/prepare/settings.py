"""Before and after the work of `mass prepare`: settings, plan, ledger, and what is printed.

The work of a task is in `scan_task`, the scheduling of tasks in `scheduler`.
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
"""Most notes on scans that are printed after a run; all are in the store and in the file of --json."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `mass prepare`; each field is a table of the TOML file."""

    ingest: IngestConfig
    proposals: ProposalConfig

    @classmethod
    def read(cls, path: Path | None) -> Settings:
        """Return the settings in a TOML file; the defaults without a file."""
        tables = read_tables(path, ["ingest", "proposals"]) if path else {"ingest": {}, "proposals": {}}
        return cls(
            ingest=parse_config(tables["ingest"], IngestConfig, where="[ingest]"),
            proposals=parse_config(tables["proposals"], ProposalConfig, where="[proposals]"),
        )

    @classmethod
    def stored(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings in a store.json; null stands for None."""
        tables = {
            name: {key: value for key, value in config.get(name, {}).items() if value is not None}
            for name in ("ingest", "proposals")
        }
        return cls(
            ingest=parse_config(tables["ingest"], IngestConfig, where="[ingest]"),
            proposals=parse_config(tables["proposals"], ProposalConfig, where="[proposals]"),
        )

    def values(self) -> dict[str, dict[str, Any]]:
        """Return all settings as JSON, by table."""
        return {"ingest": config_values(self.ingest), "proposals": config_values(self.proposals)}


def wanted_digests(config: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Wanted:
    """Return the digests of the stages' present inputs: the settings in `config` and this code.

    Args:
        config: Settings by table.
        before: Settings that the store had, to describe the differences.
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
    """Return a source with the state of its files."""
    try:
        files = tuple(source_stat(source))
    except UnreadableFile:
        files = ()
    return Found(source=source, files=files, choices_digest=choices_digest(source))


def known_scans(store: Store) -> dict[str, Known]:
    """Return the records of every scan in the store and its ledger."""
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
    """Return the failures in the ledger, by scan, sorted."""
    failures = {scan_id: failure_in(line) for scan_id, line in read_failed(store.path).items()}
    return {scan_id: failure for scan_id, failure in failures.items() if failure is not None}


def failure_in(line: LedgerEntry) -> Failure | None:
    """Return the failure in a line of the ledger, or None."""
    if line.state != "failed":
        return None
    return Failure(
        scan_id=line.scan_id, location=line.location, reason=line.reason, remedy=line.remedy, kind=line.kind
    )


def ledger_line(outcome: Outcome, config_digest: str) -> LedgerEntry:
    """Return the ledger's line for a scan: committed, or failed with the reason."""
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
    """Return the plan, from the found sources and the store's records."""

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
    """Return the outcome of a scan that the search could not read."""
    return Outcome(scan_id=failure.scan_id, location=failure.location, state="failed", failure=failure)


def outcome_of_done(done: Done) -> Outcome:
    """Return the outcome of a scan that is in the store already."""
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
    """Print what was found and what will be done."""
    for note in discovery.notes:
        print(f"  {printable(note)}")
    found = len(discovery.sources) + len(discovery.failures)
    print(f"{counted_scans(found)} found: {len(plan.jobs)} to do, {len(plan.done)} done before")
    for why, count in plan.reasons().items():
        print(f"  {counted_scans(count)}: {why}")
    if any("settings changed (" in why for why in plan.reasons()):
        print("  if that is not meant: stop now (Ctrl-C), and give the --config of before")
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
    """Print the outcomes of the scans."""
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
    """Write the tracebacks of unexpected failures to a file outside of the store."""
    traces = [f"{outcome.scan_id}\n{outcome.traceback}" for outcome in outcomes if outcome.traceback]
    if traces:
        folder = cache_folder() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / time.strftime(f"prepare-%Y%m%d-%H%M%S-{os.getpid()}.log")
        path.write_text("\n".join(traces), encoding="utf-8")
        print(f"tracebacks of {len(traces)} unforeseen failures: {path}")
