"""`mass repair`: make damaged scans again from their sources; nothing else is touched.

    verify ─┬─ the index, the ledger    written again from the undamaged rest
            ├─ a file of no scan        removed
            ├─ a scan's COMMIT.json     written again, if its other files are undamaged
            └─ a damaged scan           made again, if its source still has the same bytes; imported masks
                                        are kept if their own files are undamaged

Reads:  the store; the folders or manifests that it was prepared from (`commands.prepare.local_records`).
Writes: damaged scans, the index. With the same settings and code a scan has the bytes of before.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commands.disk_errors import warn_of_locks
from commands.prepare.command import run_flow
from commands.prepare.local_records import Search, remembered_searches
from commands.prepare.outcomes import RunReport, counted_scans, failure_values
from commands.prepare.plan import Job, Plan
from commands.prepare.scan_task import Setup
from commands.prepare.settings import Settings, found_now, print_report, wanted_digests
from commands.prepare.work import Options, Work
from commands.terminal import CommandError, print_failures, print_table
from commands.verify import verified
from pipeline.discovery import Discovery, Source, discover, source_digest
from pipeline.errors import Failure, UnreadableFile
from storage import (
    COMMIT_FILE,
    IndexEntry,
    Problem,
    Store,
    imported_sources,
    mend_ledger,
    open_store,
    read_ledger,
    remove_stray,
    restore_commit,
    sweep,
    verify_scan,
)
from storage.reading import read_index


def run_repair(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass repair`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    store.require_current()
    num_scans, problems = verified(store.path)
    entries = read_index(store.path).entries  # before the sweep, which forgets scans without a COMMIT.json
    warn_of_locks(store.path)
    restored = _restore_commits(store, problems, entries)
    current = _current(store, problems, restored)
    damaged = _damaged(current)
    searches = _searches(arguments) if damaged else ()
    removed = _remove_strays(store, current, damaged)
    sweep(store.path)
    mend_ledger(store.path)
    failures: list[Failure] = []
    report: RunReport | None = None
    if damaged:
        jobs, failures = plan_repair(store, damaged, entries, searches)
        if jobs:
            report = _make_again(store, jobs, Path(searches[0].raw), arguments)
            print_report(report)
    made = [outcome.scan_id for outcome in report.committed] if report else []
    lost = _lost_imports(store, made, entries)
    left = _problems_left(store, problems)
    if left:
        rows = [(problem.scan_id or "(the store)", problem.key, problem.what) for problem in left]
        print_table(f"left ({len(left)})", ("scan", "file", "what"), rows)
    print_failures(failures)
    print(
        f"{len(problems)} problems in {counted_scans(num_scans)}: {counted_scans(len(made))} made again, "
        f"{len(removed)} files removed, {len(left)} problems left"
    )
    failed = [*failures, *(report.failed if report else ())]
    return report.exit_code if report and report.interrupted else int(bool(left or failed or lost)), {
        "store": str(arguments.store),
        "num_scans": num_scans,
        "problems": [asdict(problem) for problem in problems],
        "made_again": made,
        "commit_written_again": restored,
        "lost_imports": lost,
        "removed": removed,
        "failed": failure_values(failed),
        "left": [asdict(problem) for problem in left],
    }


def _restore_commits(
    store: Store, problems: Sequence[Problem], entries: Mapping[str, IndexEntry]
) -> list[str]:
    """Write damaged COMMIT.json files again where the scan is whole otherwise; return the scans' ids."""
    named = {p.scan_id for p in problems if p.scan_id in entries and p.key.endswith(COMMIT_FILE)}
    ids = sorted(scan_id for scan_id in named if scan_id is not None)
    restored = [scan_id for scan_id in ids if restore_commit(store.path, entries[scan_id])]
    for scan_id in restored:
        print(f"{scan_id}: {COMMIT_FILE} written again")
    return restored


def _current(store: Store, problems: Sequence[Problem], restored: Sequence[str]) -> list[Problem]:
    """Return the remaining problems: with a damaged COMMIT.json, files of its scan may look like strays."""
    others = [problem for problem in problems if problem.scan_id not in restored]
    return [*others, *(problem for scan_id in restored for problem in verify_scan(store.path, scan_id))]


def _damaged(problems: Sequence[Problem]) -> list[str]:
    """Return the scans that have to be made again, sorted."""
    return sorted({p.scan_id for p in problems if p.scan_id is not None and p.cure == "make again"})


def _lost_imports(
    store: Store, made: Sequence[str], before: Mapping[str, IndexEntry]
) -> dict[str, list[str]]:
    """Print and return the imported sources that scans have lost by being made again, by scan."""
    after = read_index(store.path).entries
    lost = {}
    for scan_id in made:
        had = imported_sources(before[scan_id].digests) if scan_id in before else ()
        gone = [name for name in had if name not in imported_sources(after[scan_id].digests)]
        if gone:
            lost[scan_id] = gone
            print(f"{scan_id}: imported masks of {', '.join(gone)} are lost: mass import-masks them again")
    return lost


def _searches(arguments: Namespace) -> Sequence[Search]:
    """Return where sources are searched: as the user says, else as `mass prepare` did on this machine.

    Raises:
        CommandError: Neither is known.
    """
    named = [Search(raw=str(raw.absolute()), layout=arguments.layout) for raw in arguments.raw]
    searches = named or remembered_searches(arguments.store)
    if not searches:
        raise CommandError(
            f"{arguments.store}: has damaged scans, and nothing on this machine says what it was prepared "
            "from. Name the folder or manifest: mass repair STORE --raw RAW (may be repeated)"
        )
    return searches


def _remove_strays(store: Store, problems: Sequence[Problem], damaged: Sequence[str]) -> list[str]:
    """Remove files that are no part of their scan; a scan that is made again loses them anyway."""
    removed = []
    for problem in problems:
        if problem.cure == "remove" and problem.scan_id is not None and problem.scan_id not in damaged:
            remove_stray(store.path, problem.scan_id, problem.key)
            removed.append(f"{problem.scan_id}/{problem.key}")
            print(f"removed: {removed[-1]}")
    return removed


def plan_repair(
    store: Store, damaged: Sequence[str], entries: Mapping[str, IndexEntry], searches: Sequence[Search]
) -> tuple[list[Job], list[Failure]]:
    """Return a job for each damaged scan whose source is as it was, and failures of the others.

    Args:
        store: The store.
        damaged: Ids of the scans.
        entries: Index lines from before the repair.
        searches: Where their sources are searched, in this order.
    """
    ledger = read_ledger(store.path)
    then = {scan_id: line.source_digest for scan_id, line in ledger.items() if line.source_digest}
    then |= {scan_id: entry.digests.get("source", "") for scan_id, entry in entries.items()}
    jobs: dict[str, Job] = {}
    failures: dict[str, Failure] = {}
    for search in searches:
        wanted = {scan_id for scan_id in damaged if scan_id not in jobs}
        for source in _sources(search, store, wanted):
            made = _job_or_failure(source, then.get(source.scan_id, ""))
            if isinstance(made, Job):
                jobs[source.scan_id] = made
            else:
                failures[source.scan_id] = made
    for scan_id in damaged:
        line = ledger.get(scan_id)
        gone = Failure(
            scan_id=scan_id,
            location=line.location if line else "",
            reason="damaged, and its source is not where it was",
            remedy="Bring the source back, or name where it is: --raw RAW",
            kind="SourceGone",
        )
        failures.setdefault(scan_id, gone)
    return list(jobs.values()), [failures[scan_id] for scan_id in damaged if scan_id not in jobs]


def _sources(search: Search, store: Store, wanted: set[str]) -> list[Source]:
    """Return the sources of some scans in a folder or manifest; none if it is gone."""
    raw = Path(search.raw)
    if not wanted or not raw.exists():
        return []
    print(f"looking for {counted_scans(len(wanted))} in {raw.name}", file=sys.stderr)
    rules = Settings.stored(store.info.config).ingest.series_rules
    found = discover(raw, rules, follow_links=search.follow_links, layout=search.layout)
    return [source for source in found.sources if source.scan_id in wanted]


def _job_or_failure(source: Source, then: str) -> Job | Failure:
    """Return a job that makes a scan again, or the failure of a scan whose source has changed.

    Args:
        source: The source, with its present files.
        then: Digest of the source that the scan was made from.
    """
    try:
        digest = source_digest(source)
    except UnreadableFile as error:
        return Failure.of(error, scan_id=source.scan_id, location=source.location)
    if digest != then:
        return Failure(
            scan_id=source.scan_id,
            location=source.location,
            reason="damaged, and its source has changed since it was prepared",
            remedy="`mass prepare RAW STORE` makes the scan from what is there now",
            kind="SourceChanged",
        )
    return Job(found=found_now(source), stage="ingest", why="damaged", source_digest=digest, again=True)


def _make_again(store: Store, jobs: Sequence[Job], raw: Path, arguments: Namespace) -> RunReport:
    """Run the flow on some scans alone."""
    config = store.info.config
    settings = Settings.stored(config)
    work = Work(
        store_path=store.path,
        options=Options(workers=arguments.workers, device=arguments.device),
        setup=Setup(settings=settings, wanted=wanted_digests(config), device=arguments.device),
        plan=Plan(jobs=tuple(jobs), done=(), failed=(), absent=()),
        raw=raw,
        discovery=Discovery(sources=(), failures=(), notes=()),
    )
    try:
        run_flow(work)
    finally:
        work.close()
    return work.report()


def _problems_left(store: Store, problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems that are still there: of the scans that had one, and of the store."""
    left = [problem for problem in problems if problem.scan_id is None and problem.cure == "by hand"]
    for scan_id in sorted({problem.scan_id for problem in problems if problem.scan_id is not None}):
        left += verify_scan(store.path, scan_id)
    return left
