"""Bring a store of an older format version to the newest one, scan by scan; no proposal is made anew."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from commands.disk_errors import warn_of_locks
from commands.prepare.outcomes import counted_scans, failure_values
from commands.terminal import counted, print_failures
from pipeline.errors import Failure
from storage import (
    FORMAT_VERSION,
    StorageError,
    StoreFull,
    finish,
    lift_scan,
    open_store,
    scans_to_lift,
    sweep,
)


def run_lift(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass lift`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    before = store.info.format_version
    warn_of_locks(store.path)
    sweep(store.path)
    if before != FORMAT_VERSION:
        # Before the first scan: a store with scans of both versions must not be read by an older mass3d.
        store.raise_version()
    store = open_store(arguments.store)
    ids = scans_to_lift(store)
    lifted: list[str] = []
    failed: list[Failure] = []
    stopped = ""
    for scan_id in counted("lift", ids, failed=failed):
        try:
            lift_scan(store.path, scan_id)
        except StoreFull as error:
            stopped = str(error)
            break
        except StorageError as error:
            failed.append(
                Failure.of(error, scan_id=scan_id, remedy="Remove the scan's folder and run `mass prepare`")
            )
        else:
            lifted.append(scan_id)
    finish(store.path)
    print_failures(failed)
    if stopped:
        print(f"stopped before the end: {stopped}")
    left = len(ids) - len(lifted) - len(failed)
    print(
        f"{counted_scans(len(lifted))} lifted to format version {FORMAT_VERSION}, "
        f"{len(store) - len(ids)} had it before, {len(failed)} failed, {left} not done"
    )
    return int(bool(failed or left)), {
        "store": str(arguments.store),
        "from_format_version": before,
        "format_version": FORMAT_VERSION,
        "lifted": lifted,
        "failed": failure_values(failed),
        "not_done": list(ids[len(ids) - left :]) if left else [],
    }
