"""The command `mass prepare`: plan, run the flow if there is work, report.

Prefect is started only if there is work, and brings its own server unless PREFECT_API_URL names one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from commands.caches import has_compiled
from commands.prepare.cluster import check_cluster
from commands.prepare.outcomes import RunReport
from commands.prepare.prefect_server import prefect_server
from commands.prepare.settings import Settings, print_report
from commands.prepare.work import Options, Work, plan_work, working_on
from storage import StorePath


def run_prepare(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass prepare`; return the exit code and the results for --json."""
    options = Options(
        workers=arguments.workers,
        scheduler=arguments.scheduler,
        device=arguments.device,
        retry_failed=arguments.retry_failed,
        prune=arguments.prune,
        follow_links=arguments.follow_links,
        layout=arguments.layout,
        embedded_server=arguments.embedded_server,
        watch=arguments.watch,
    )
    report = prepare_store(arguments.raw, arguments.store, Settings.read(arguments.config), options)
    print_report(report)
    return report.exit_code, {"store": str(arguments.store), **report.to_json()}


def prepare_store(raw: Path, store: StorePath, settings: Settings, options: Options) -> RunReport:
    """Bring a store up to date with the scans in `raw`; safe to be killed and run again at any time.

    Args:
        raw: A folder, a manifest, or one file.
        store: The store; made where there is none.
        settings: Settings of ingest and proposals.
        options: Settings of the run that change no byte.

    Returns:
        The outcome of every scan.
    """
    work = plan_work(raw, store, settings, options)
    try:
        if work.plan.jobs:
            run_flow(work)
    finally:
        work.close()
    return work.report()


def run_flow(work: Work) -> None:
    """Run the flow `prepare` with a finished plan."""
    options = work.options
    if options.scheduler:
        print(check_cluster(options), file=sys.stderr)
    embedded = options.embedded_server
    work.server_is_kept = bool(os.environ.get("PREFECT_API_URL")) and not embedded
    importing = partial(import_for_tasks, options)
    with prefect_server(options.scheduler, importing, embedded=embedded) as settings:
        from prefect.settings import temporary_settings

        from flows import prepare

        try:
            say_where_to_look(work, settings)
            with working_on(work), temporary_settings(updates=settings):
                prepare(
                    work.raw,
                    work.store_path if isinstance(work.store_path, Path) else str(work.store_path),
                    workers=options.scheduler or options.workers,
                    device=options.device,
                    retry_failed=options.retry_failed,
                    prune=options.prune,
                    layout=options.layout,
                )
        except Exception:
            if not work.ended:
                raise
            print("Prefect's server is gone; all the work is done without it", file=sys.stderr)


def say_where_to_look(work: Work, settings: Mapping[Any, Any]) -> None:
    """Print where the run can be watched: Prefect's page, if the server has one."""
    from prefect.settings import PREFECT_UI_URL, temporary_settings

    if not work.options.scheduler and not has_compiled():
        print(
            "first run here: the first scan waits for code to be compiled (a minute or two)", file=sys.stderr
        )
    if work.server_is_kept:
        with temporary_settings(updates=settings):
            print(f"to look: Prefect's page {PREFECT_UI_URL.value()}", file=sys.stderr)
    elif not work.options.watch:
        print("to look: --watch keeps a page of the run up to date", file=sys.stderr)


def import_for_tasks(options: Options) -> None:
    """Import slow modules while the server starts, if tasks run in this process."""
    import_module("flows")
    if options.workers == 1 and not options.scheduler:
        import_module("commands.prepare.scan_task")
        _ = import_module("storage.writing").write_scan  # the package loads its modules at first use
