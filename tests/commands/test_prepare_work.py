"""A run in progress: its counts are right at any moment, and its ledger is not written too often."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from commands.prepare import work as work_module
from commands.prepare.outcomes import Outcome
from commands.prepare.plan import Found, Job, Plan, Wanted
from commands.prepare.scan_task import Setup
from commands.prepare.settings import Settings
from commands.prepare.work import Options, Work
from pipeline.discovery import Discovery, Source
from pipeline.errors import Failure
from storage import create_store, read_ledger


def job(scan_id: str, num_bytes: int) -> Job:
    source = Source(scan_id=scan_id, format="file", files=(Path(f"{scan_id}.nii"),), location=scan_id)
    files = ((scan_id, num_bytes, 1),)
    return Job(found=Found(source=source, files=files, choices_digest="c"), stage="ingest", why="new")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    create_store(tmp_path / "store", spacing_mm=1.0, config={})
    return Work(
        store_path=tmp_path / "store",
        options=Options(),
        setup=Setup(settings=Settings.read(None), wanted=Wanted(ingest="i", proposals="p"), device="cpu"),
        plan=Plan(jobs=(job("a", 800), job("b", 200)), done=(), failed=(), absent=()),
        raw=tmp_path,
        discovery=Discovery(sources=(), failures=(), notes=()),
    )


def failed(scan_id: str) -> Outcome:
    failure = Failure(scan_id=scan_id, location=scan_id, reason="flat", remedy="look", kind="K")
    return Outcome(scan_id=scan_id, location=scan_id, state="failed", failure=failure)


def test_progress_counts_jobs_once_and_nothing_else(work: Work) -> None:
    began = time.monotonic()
    work.record([failed("of the search")])
    assert (work.progress(began).done, work.progress(began).failed) == (0, 0)
    work.record([failed("b")])
    work.record([failed("b")])
    now = work.progress(began)
    assert (now.done, now.total, now.failed) == (1, 2, 1)
    assert now.fraction == pytest.approx(0.2)
    work.record([Outcome(scan_id="a", location="a", state="committed")])
    assert (work.progress(began).done, work.progress(began).fraction) == (2, 1.0)


def test_a_ledger_that_takes_long_to_write_is_written_seldom(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "LEDGER_SECONDS", 0.0)
    work.record([failed("a")])
    assert set(read_ledger(work.store_path)) == {"a"}
    work.writing_seconds = 60.0
    work.record([failed("b")])
    assert set(read_ledger(work.store_path)) == {"a"}
    work.close()
    assert set(read_ledger(work.store_path)) == {"a", "b"}
