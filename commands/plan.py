"""`mass plan`: prediction of what `mass prepare` would do, its time, bytes and failures, from headers.

Reads:  RAW (names, headers), the store's index and ledger where there is one, bundled scans for the trial.
Writes: nothing, but for a store of the trial in the temporary folder, which is removed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.arguments import EXAMPLES
from commands.prepare.cluster import machine_memory
from commands.prepare.outcomes import counted_scans, failure_values
from commands.prepare.plan import Job, Plan, make_plan
from commands.prepare.prediction import Cost, Curve, run_trial, seconds_of_run, stored_share
from commands.prepare.settings import Settings, found_now, known_scans, wanted_digests
from commands.progress import duration
from commands.terminal import CommandError, counted, print_failures, print_table
from pipeline.discovery import Discovery, discover
from pipeline.errors import Failure, PipelineError, ScanError
from pipeline.ingest import read_scan_header
from storage import Store, StoreNotFound, open_store

TRIAL_SCANS = ("hippocampus_001", "example_mr_sm")
"""Bundled scans of the trial, a small and a middle one."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A scan that would be prepared, and its predicted cost."""

    job: Job
    cost: Cost


def run_plan(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass plan`; return the exit code and the results for --json."""
    settings = Settings.read(arguments.config)
    raw: Path = arguments.raw
    print(f"looking for scans in {raw.name}", file=sys.stderr)
    discovery = discover(
        raw,
        settings.ingest.series_rules,
        follow_links=arguments.follow_links,
        layout=arguments.layout,
    )
    store = _store(arguments.store)
    plan = planned(discovery, store, settings, retry_failed=arguments.retry_failed)
    _print_found(discovery, plan)
    curve, trial_seconds = _trial(settings) if plan.jobs else (Curve(()), 0.0)
    share = stored_share(store.entries.values(), curve) if store and plan.jobs else 1.0
    predicted, refused = predict(plan.jobs, settings, curve)
    failures = sorted([*discovery.failures, *plan.failed, *refused], key=lambda failure: failure.scan_id)
    document = _summary(predicted, share, arguments.workers, curve.slowdown)
    if predicted:
        _print_prediction(predicted, document, arguments.workers, trial_seconds, in_store=share != 1.0)
        _print_room(arguments.store, document)
    print_failures(failures)
    print(
        f"{counted_scans(len(predicted))} would be prepared, {counted_scans(len(plan.done))} are done, "
        f"{counted_scans(len(failures))} would fail for what headers show"
    )
    return int(bool(failures)), {
        **document,
        "scans": [_row(one, share) for one in predicted],
        "done": len(plan.done),
        "reasons": plan.reasons(),
        "failed": failure_values(failures),
        "trial": [vars(point) for point in curve.points],
    }


def _store(path: Path | None) -> Store | None:
    """Return the store, if there is one already."""
    if path is None:
        return None
    try:
        return open_store(path)
    except StoreNotFound:
        return None


def planned(discovery: Discovery, store: Store | None, settings: Settings, *, retry_failed: bool) -> Plan:
    """Return what `mass prepare` would do; a scan whose file has another time counts as changed, unread."""
    before: Mapping[str, Any] | None = store.info.config if store else None
    config = settings.values()
    wanted = wanted_digests(config, before if before != config else None)
    return make_plan(
        (found_now(source) for source in counted("compare with the store", discovery.sources)),
        known_scans(store) if store else {},
        wanted,
        digest=lambda source: None,
        retry_failed=retry_failed,
        elsewhere=[failure.scan_id for failure in discovery.failures],
    )


def predict(jobs: Sequence[Job], settings: Settings, curve: Curve) -> tuple[list[Predicted], list[Failure]]:
    """Return the predicted cost of each job, and the failures that headers show."""
    predicted, failures = [], []
    for job in counted("read headers", jobs):
        source = job.found.source
        try:
            header = read_scan_header(source, settings.ingest)
        except ScanError as error:
            failures.append(Failure.of(error, scan_id=source.scan_id, location=source.location))
        else:
            predicted.append(Predicted(job=job, cost=curve.cost(header, settings)))
    return predicted, failures


def _trial(settings: Settings) -> tuple[Curve, float]:
    """Prepare bundled scans with the user's settings on this machine.

    Raises:
        CommandError: They are not there, or cannot be prepared with these settings.
    """
    print("trial: two bundled scans are prepared, to measure this machine", file=sys.stderr)
    began = time.monotonic()
    if not EXAMPLES.exists():
        raise CommandError(f"the bundled scans are missing ({EXAMPLES.name}): run it from a clone of mass3d")
    found = {source.scan_id: source for source in discover(EXAMPLES, settings.ingest.series_rules).sources}
    try:
        curve = run_trial([found[scan_id] for scan_id in TRIAL_SCANS], settings, "auto")
    except PipelineError as error:
        raise CommandError(f"the trial failed with these settings: {error}") from error
    return curve, time.monotonic() - began


def _summary(predicted: Sequence[Predicted], share: float, workers: int, slowdown: float) -> dict[str, Any]:
    """Return the sums over all scans, for --json."""
    costs = [one.cost for one in predicted]
    return {
        "num_scans": len(costs),
        "workers": workers,
        "seconds": seconds_of_run(costs, workers=workers, cores=os.cpu_count() or 1, slowdown=slowdown),
        "processor_seconds": sum(cost.processor_seconds for cost in costs),
        "num_bytes": round(share * sum(cost.num_bytes for cost in costs)),
        "peak_bytes": max((cost.peak_bytes for cost in costs), default=0),
    }


def _row(one: Predicted, share: float) -> dict[str, Any]:
    cost = one.cost
    return {
        "scan": one.job.scan_id,
        "why": one.job.why,
        "processor_seconds": round(cost.processor_seconds, 2),
        "num_bytes": round(share * cost.num_bytes),
        "peak_bytes": cost.peak_bytes,
    }


def _print_found(discovery: Discovery, plan: Plan) -> None:
    for note in discovery.notes:
        print(f"  {note}")
    found = len(discovery.sources) + len(discovery.failures)
    print(f"{counted_scans(found)} found: {len(plan.jobs)} to do, {len(plan.done)} done before")
    for why, count in plan.reasons().items():
        print(f"  {counted_scans(count)}: {why}")


def _print_prediction(
    predicted: Sequence[Predicted], whole: Mapping[str, Any], workers: int, trial: float, *, in_store: bool
) -> None:
    """Print a table by data set, and the sums with their method."""
    groups: dict[str, list[Cost]] = {}
    for one in predicted:
        groups.setdefault(one.job.found.source.dataset, []).append(one.cost)
    rows = [
        (
            name,
            len(costs),
            duration(sum(cost.processor_seconds for cost in costs)),
            size(sum(cost.num_bytes for cost in costs)),
            size(max(cost.peak_bytes for cost in costs)),
        )
        for name, costs in sorted(groups.items())
    ]
    print_table("predicted", ("data set", "scans", "processor time", "bytes", "memory a worker"), rows)
    largest = max(predicted, key=lambda one: one.cost.peak_bytes)
    memory = machine_memory()
    print(
        f"time: {duration(whole['seconds'])} with --workers {workers}, as busy as this machine is now, "
        f"and the start; {duration(whole['processor_seconds'])} of processor time"
    )
    print(f"bytes: {size(whole['num_bytes'])} in the store")
    print(
        f"memory: {size(largest.cost.peak_bytes)} a worker at most, for {largest.job.scan_id}; of such scans "
        f"{max(1, memory // largest.cost.peak_bytes)} fit into this machine at once ({size(memory)})"
    )
    how = ", bytes corrected by the scans of the store" if in_store else ""
    print(
        f"how: from sizes in headers, and a trial of {duration(trial)} on this machine with these settings"
        f"{how}. It is right within a factor of 2 or so; what only voxels show (damage, labels) is not seen"
    )


def _print_room(store: Path | None, whole: Mapping[str, Any]) -> None:
    """Print a warning if the store will not fit on its disk."""
    folder = (store or Path()).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if store is not None and whole["num_bytes"] > free:
        print(f"warning: {size(free)} are free where the store is, {size(whole['num_bytes'])} are needed")


def size(num_bytes: float) -> str:
    """Return bytes as text: "850 kB", "2.4 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"
