"""The flows: what Prefect runs, schedules and shows.

    from flows import prepare, pretrain, run_all

    prepare("RAW", "STORE")                     # a folder or manifest of scans -> a store of mask proposals
    pretrain("STORE", "RUN", recipe="small")    # a store -> weights
    run_all("RAW", "STORE", "RUN")              # both

    prepare.serve(name="nightly", cron="0 2 * * *", parameters={"raw": "/data/raw", "store": "/data/store"})

prepare   plan -> a task per scan, or per batch of small ones -> index and ledger -> artifacts
pretrain  one task, which trains -> artifacts
run_all   prepare, then pretrain

The work of a task is in `commands.prepare.scan_task`, the scheduling of batches in
`commands.prepare.scheduler`. `mass prepare` calls the same flow. A run leaves a table and a link (artifacts).
"""

# No `from __future__ import annotations`: Prefect reads the types of a flow from a module that it loads.

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from commands.caches import set_process_defaults
from commands.prepare import scan_task
from commands.prepare.cluster import task_runner
from commands.prepare.outcomes import Outcome, RunReport
from commands.prepare.scan_task import Device
from commands.prepare.scheduler import BatchScheduler
from commands.prepare.settings import Settings
from commands.prepare.work import Options, current_work, plan_work, working_on
from storage import StorePath, parse_store_path

MOST_REPORTED_SCANS = 24
"""Scans drawn on the page that a run of `prepare` links to; the page takes a quarter of a second for each."""


@flow(name="prepare", persist_result=False)
def prepare(
    raw: Path,
    store: str | Path,
    config: Path | None = None,
    workers: int | str = 1,
    device: Device = "auto",
    retry_failed: bool = False,
    prune: bool = False,
    layout: str = "auto",
) -> RunReport:
    """Bring a store up to date with the scans in RAW; safe to be killed and run again at any time.

    Args:
        raw: A folder, a manifest (.csv, .tsv, .jsonl), or one file.
        store: The store; made where there is none.
        config: A TOML file with the tables [ingest] and [proposals].
        workers: Processes on this machine, 1 works in this process; or the address of a Dask scheduler.
        device: Where proposals are computed; it changes no byte of them.
        retry_failed: Whether failed scans are tried again although nothing changed.
        prune: Whether scans are removed from the store whose sources are gone.
        layout: Layout of the folder, such as "bids"; "auto" recognises it.

    Returns:
        The outcome of every scan; failures of single scans do not fail the flow.
    """
    set_process_defaults()
    options = Options(
        workers=1 if isinstance(workers, str) else workers,
        scheduler=workers if isinstance(workers, str) else "",
        device=device,
        retry_failed=retry_failed,
        prune=prune,
        layout=layout,
    )
    place = parse_store_path(store)
    work = current_work() or plan_work(raw, place, Settings.read(config), options)
    try:
        if work.plan.jobs:
            with working_on(work):
                prepare_scans.with_options(task_runner=task_runner(work.options))()
    finally:
        work.close()
    report = work.report()
    if work.server_is_kept:
        publish_scans(report, place)
    return report


@flow(name="prepare scans", persist_result=False)
def prepare_scans() -> None:
    """Run the tasks of the current work, with the task runner that the flow `prepare` has chosen."""
    work = current_work()
    if work is None:
        raise RuntimeError("`prepare scans` is a part of the flow `prepare`: run that")
    BatchScheduler(work, prepare_batch).run()


@task(
    name="prepare scans", retry_condition_fn=scan_task.may_pass, cache_policy=NO_CACHE, persist_result=False
)
def prepare_batch(payload: bytes) -> list[Outcome]:
    """Prepare some scans: read, standardise, propose masks, commit (see `scan_task.prepare_batch`)."""
    return scan_task.prepare_batch(payload)


def publish_scans(report: RunReport, store: StorePath) -> None:
    """Publish artifacts of the flow run: a table of its scans, and a link to a page on the store."""
    from commands.inspect import inspect_store

    create_table_artifact(key="prepared-scans", table=report.rows(), description=report.summary())
    if isinstance(store, Path) and (report.committed or report.skipped):  # the page is beside the store
        page = store.resolve().with_name(f"{store.name}-report.html")
        inspect_store(store, [], page, full=0, most=MOST_REPORTED_SCANS)
        create_link_artifact(key="store-report", link=page.as_uri(), link_text=page.name)


@flow(name="pretrain", persist_result=False)
def pretrain(
    store: str | Path,
    run: Path,
    recipe: Literal["whole", "large", "small", "published"] = "whole",
    config: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Path | None:
    """Train a network on a store's proposals, in this process.

    Args:
        store: The store; a folder, or a URL.
        run: Folder for checkpoints, metrics, pictures and weights; made new.
        recipe: Settings to begin with.
        config: A TOML file with settings that differ, by table.
        resume: Go on with the run in `run`, with its own settings.
        workers: Processes that read samples; by default the recipe's.
        device: Where to compute.

    Returns:
        The weights; None where a signal stopped the training.
    """
    set_process_defaults()
    name = None if resume and config is None else recipe  # else the run goes on with its own settings
    results, weights = train(store, run, name, config, resume, workers, device)
    create_table_artifact(key="pretraining", table=[results], description=f"pretraining in {run.name}")
    if weights:
        create_link_artifact(key="weights", link=weights.resolve().as_uri(), link_text=weights.name)
    return weights


@task(name="train", task_run_name="train {run.name}", cache_policy=NO_CACHE, persist_result=False)
def train(
    store: str | Path,
    run: Path,
    recipe: Any,
    config: Path | None,
    resume: bool,
    workers: int | None,
    device: Any,
) -> tuple[dict[str, Any], Path | None]:
    """Train; return the results as plain values, and the path of the weights."""
    from commands.pretrain import pretrain_with, to_document

    done = pretrain_with(
        parse_store_path(store), run, recipe, config, resume=resume, workers=workers, device=device
    )
    return to_document(run, done), done.weights


@flow(name="run all", persist_result=False)
def run_all(
    raw: Path,
    store: str | Path,
    run: Path,
    config: Path | None = None,
    recipe: Literal["whole", "large", "small", "published"] = "whole",
    pretrain_config: Path | None = None,
    workers: int = 1,
) -> Path | None:
    """Prepare the scans in RAW, then pretrain a network on them.

    Args:
        raw: A folder, a manifest (.csv, .tsv, .jsonl), or one file.
        store: The store; made where there is none.
        run: Folder of the pretraining; a run in it that was stopped goes on.
        config: Settings of `prepare`.
        recipe: Settings of the pretraining to begin with.
        pretrain_config: Settings that differ from the recipe's.
        workers: Processes that prepare scans.

    Raises:
        RuntimeError: There is no scan to train on.
    """
    report = prepare(raw, store, config=config, workers=workers)
    if not (report.committed or report.skipped):
        raise RuntimeError(f"no scan of {raw} could be prepared: {report.summary()}")
    if (run / "run.json").exists():
        return pretrain(store, run, resume=True)
    return pretrain(store, run, recipe=recipe, config=pretrain_config)
