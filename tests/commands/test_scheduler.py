"""Which scan is in hand, as far as a batch of them tells; and what happens to a batch whose task died."""

from __future__ import annotations

import time
from pathlib import Path

from commands.prepare.plan import Found, Job, Plan, Wanted
from commands.prepare.scan_task import Setup
from commands.prepare.scheduler import BatchScheduler
from commands.prepare.settings import Settings
from commands.prepare.work import Options, Work
from pipeline.discovery import Discovery, Source
from tests.waits import PATIENT_SECONDS


def job(scan_id: str, size: int) -> Job:
    source = Source(scan_id=scan_id, format="file", files=(Path(f"{scan_id}.nii.gz"),), location=scan_id)
    return Job(
        found=Found(source=source, files=((scan_id, size, 1),), choices_digest="c"), stage="ingest", why="new"
    )


def scheduler(tmp_path: Path, jobs: tuple[Job, ...]) -> BatchScheduler:
    work = Work(
        store_path=tmp_path,
        options=Options(),
        setup=Setup(settings=Settings.read(None), wanted=Wanted(ingest="i", proposals="p"), device="cpu"),
        plan=Plan(jobs=jobs, done=(), failed=(), absent=()),
        raw=tmp_path,
        discovery=Discovery(sources=(), failures=(), notes=()),
    )
    return BatchScheduler(work, task=None)


def test_of_a_batch_the_scan_after_the_last_committed_one_is_in_hand(tmp_path: Path) -> None:
    jobs = (job("ann", 40), job("bob", 30), job("cid", 30))
    made = scheduler(tmp_path, jobs)
    assert made.in_hand() == ("", 0.0)
    now = time.monotonic()
    made.in_flight, made.in_hand_since = {1: jobs}, {1: now - 5000}
    made.work.last_ended = now - 9000
    assert made.in_hand() == ("ann", now - 5000)
    made.ahead["ann"] = now - 20
    assert made.in_hand() == ("bob", now - 20)
    state = made.work.progress(now - 5000, ahead=made.ahead, in_hand=made.in_hand())
    assert (state.done, state.failed, state.in_hand) == (1, 0, "bob")
    assert state.fraction == 0.4
    assert 20 <= state.in_hand_seconds < PATIENT_SECONDS
    assert 20 <= state.still_seconds < PATIENT_SECONDS


def test_of_several_workers_the_oldest_batch_is_told(tmp_path: Path) -> None:
    jobs = (job("ann", 40), job("bob", 30))
    made = scheduler(tmp_path, jobs)
    made.in_flight = {1: jobs[:1], 2: jobs[1:]}
    made.in_hand_since = {1: 30.0, 2: 20.0}
    assert made.in_hand() == ("bob", 20.0)


def test_scans_of_a_batch_that_died_are_tried_one_by_one_and_a_single_one_fails(tmp_path: Path) -> None:
    ann, bob, cid = job("ann", 40), job("bob", 30), job("cid", 30)
    made = scheduler(tmp_path, ())
    made.waiting.append((cid,))
    assert made.after_death((ann, bob), RuntimeError("the disk is gone")) == []
    assert list(made.waiting) == [(ann,), (bob,), (cid,)]
    (outcome,) = made.after_death((ann,), RuntimeError("the disk is gone"))
    assert (outcome.scan_id, outcome.failure is not None) == ("ann", True)
    assert list(made.waiting) == [(ann,), (bob,), (cid,)]
