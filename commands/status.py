"""`mass status`: the scans of a store, failures, and scans that are out of date."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from commands.prepare.outcomes import counted_scans, failure_values
from commands.prepare.plan import Wanted
from commands.prepare.settings import known_failures, wanted_digests
from commands.terminal import counted, print_failures, print_table
from storage import IndexEntry, imported_sources, open_store, scans_to_lift, stored_bytes


def run_status(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass status`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    wanted = wanted_digests(store.info.config)
    failures = known_failures(store)
    failed = list(failures.values())
    stale = {
        scan_id: why
        for scan_id, entry in store.entries.items()
        if (why := staleness(entry.digests, wanted, failed=scan_id in failures))
    }
    sizes = stored_bytes(store)
    groups: dict[tuple[str, str], list[int]] = {}
    for scan_id in counted("status", store.scan_ids):
        entry = store.entries[scan_id]
        row = groups.setdefault((entry.dataset, entry.modality), [0, 0, 0, 0])
        values = (1, len(entry.labels) > 0, entry.num_proposals, sizes[scan_id])
        for column, value in enumerate(values):
            row[column] += value
    rows = [(*group, *values) for group, values in sorted(groups.items())]
    columns = ("data set", "modality", "scans", "with labels", "proposals", "bytes")
    print(
        f"{arguments.store}: {len(store)} scans at {store.info.spacing_mm:g} mm, "
        f"format version {store.info.format_version}"
    )
    print_table("scans", columns, rows)
    if store.entries:
        print(cases_line(store.entries.values()))
    print_failures(failed)
    for why, count in Counter(stale.values()).items():
        print(f"stale: {counted_scans(count)}: {why}")
    imported = Counter(name for entry in store.entries.values() for name in imported_sources(entry.digests))
    for name, count in sorted(imported.items()):
        print(f"imported: masks of {name} in {counted_scans(count)}")
    older = scans_to_lift(store)
    if older:
        print(f"older: {counted_scans(len(older))} of an older format version; `mass lift` brings them up")
    document = {
        "num_scans": len(store),
        "num_cases": len({entry.case_key for entry in store.entries.values()}),
        "spacing_mm": store.info.spacing_mm,
        "groups": [dict(zip(columns, row, strict=True)) for row in rows],
        "failed": failure_values(failed),
        "stale": stale,
        "to_lift": list(older),
        "imported": dict(sorted(imported.items())),
    }
    return int(bool(failed)), document


def cases_line(entries: Collection[IndexEntry]) -> str:
    """Return the number of cases (patients), and of those with several scans, in one line."""
    sizes = Counter(entry.case_key for entry in entries).values()
    several = sum(size > 1 for size in sizes)
    unnamed = sum(not entry.case for entry in entries)
    line = f"cases (patients): {len(sizes):,}"
    if several:
        line += f", {several:,} of them with several scans (at most {max(sizes)})"
    if unnamed:
        line += f"; {counted_scans(unnamed)} with no case given, each a case of its own"
    return line


def staleness(digests: Mapping[str, str], wanted: Wanted, *, failed: bool) -> str:
    """Return why a committed scan is out of date; "" if it is up to date."""
    if failed:
        return "the source changed, and its new version failed"
    if digests.get("ingest") != wanted.ingest:
        return "made with other ingest settings or code"
    if digests.get("proposals") != wanted.proposals:
        return "made with other proposals settings or code"
    return ""
