"""What goes wrong with one scan stops no other, is told with a remedy, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from commands.prepare import command, scan_task as one_scan, scheduler
from commands.prepare.command import prepare_store
from commands.prepare.plan import Job
from commands.prepare.settings import Settings
from commands.prepare.work import Options, Work
from pipeline.errors import TransientReadError
from pipeline.ingest.reading import read_source
from storage import StoreFull, commit_scan, open_store, read_ledger
from tests.phantom import phantom, write_dicom
from tests.waits import PATIENT_SECONDS

SABOTAGE = """
import os, sys
if "spawn_main" in " ".join(sys.orig_argv):
    import pipeline.ingest.reading as reading
    whole = reading.read_source
    def read_source(source, config):
        if source.scan_id == "ben_ct":
            os.kill(os.getpid(), 9)
        return whole(source, config)
    reading.read_source = read_source
"""
"""For a worker process: die of one scan, as by the kernel's out-of-memory killer."""


def spoil(raw: Path) -> dict[str, str]:
    """Adds a bad scan of every kind to a folder; returns the expected kind of failure by scan id."""
    good = phantom()
    whole = (raw / "ann_ct.nii.gz").read_bytes()
    (raw / "cut_ct.nii.gz").write_bytes(whole[: len(whole) // 2])
    (raw / "text_ct.nii.gz").write_bytes(gzip.compress(b"no image at all"))
    (raw / "empty_ct.nii.gz").write_bytes(b"")
    (raw / "link_ct.nii.gz").symlink_to(raw / "nowhere")
    (raw / os.fsdecode(b"M\xfcller_ct.nii.gz")).write_bytes(whole)
    good.replace(image=np.full_like(good.image, 7)).write(raw / "flat_ct.nii.gz")
    nan = good.image.astype(np.float32)
    nan[np.random.default_rng(0).random(nan.shape) < 0.7] = np.nan
    good.replace(image=nan).write(raw / "nan_ct.nii.gz")
    good.replace(image=np.minimum(good.image, -900)).write(raw / "air_ct.nii.gz")
    good.write(raw / "grid_ct.nii.gz")
    other = phantom(shape_zyx=(30, 60, 70))
    other.write_labels(raw / "grid_ct_seg.nii.gz")
    write_dicom(raw / "gap", good, skip=(9,), series_uid="1.2.3.4")
    write_dicom(raw / "tilt", good, tilt_mm=0.4, series_uid="1.2.3.5")
    return {
        "cut_ct": "CorruptImage",
        "text_ct": "NotAnImage",
        "empty_ct": "UnreadableFile",
        "link_ct": "UnreadableFile",
        "M-ller_ct": "UnreadableFile",
        "flat_ct": "ConstantImage",
        "nan_ct": "NotFinite",
        "air_ct": "EmptyForeground",
        "grid_ct": "LabelMismatch",
        "gap": "DicomSeriesError",
        "tilt": "DicomSeriesError",
    }


def test_bad_scans_are_listed_and_stop_no_other(
    raw: Path, tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = spoil(raw)
    store = tmp_path / "store"
    report = prepare_store(raw, store, settings, Options())
    assert report.exit_code == 1
    assert {failure.scan_id: failure.kind for failure in report.failed} == expected
    assert all(failure.reason and failure.remedy and failure.location for failure in report.failed)
    assert [outcome.scan_id for outcome in report.committed] == ["ann_ct", "ben_ct", "cis_ct"]
    assert open_store(store).scan_ids == ("ann_ct", "ben_ct", "cis_ct")
    assert {path.name for path in store.iterdir()} == {
        "store.json", "index.jsonl", "ledger.jsonl", "store.lock", "scans",
    }  # fmt: skip
    assert len(list((store / "scans").glob("*/*"))) == 3
    assert "DOE" not in "".join(str(path.read_bytes()) for path in store.glob("*.jsonl"))


def test_failures_are_told_again_without_being_done_again(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = phantom()
    good.replace(image=np.full_like(good.image, 7)).write(raw / "flat_ct.nii.gz")
    store = tmp_path / "store"
    first = prepare_store(raw, store, settings, Options())
    with monkeypatch.context() as patch:
        patch.setattr(command, "run_flow", lambda work: pytest.fail("a known failure was tried again"))
        second = prepare_store(raw, store, settings, Options())
    assert (second.exit_code, second.failed) == (1, first.failed)

    third = prepare_store(raw, store, settings, Options(retry_failed=True))
    assert (third.reasons, third.failed) == ({"failed before": 1}, first.failed)

    good.write(raw / "flat_ct.nii.gz")
    mended = prepare_store(raw, store, settings, Options())
    assert (mended.exit_code, mended.failed) == (0, ())
    assert read_ledger(store)["flat_ct"].state == "committed"


def test_a_failure_is_forgotten_when_its_source_is_gone(
    raw: Path, tmp_path: Path, settings: Settings
) -> None:
    (raw / "text_ct.nii.gz").write_bytes(b"no image at all")
    prepare_store(raw, tmp_path / "store", settings, Options())
    assert "text_ct" in read_ledger(tmp_path / "store")
    (raw / "text_ct.nii.gz").unlink()
    assert prepare_store(raw, tmp_path / "store", settings, Options()).exit_code == 0
    assert "text_ct" not in read_ledger(tmp_path / "store")


def test_a_bad_new_version_keeps_the_committed_scan_and_fails(
    raw: Path, prepared: Path, settings: Settings
) -> None:
    (raw / "ben_ct.nii.gz").write_bytes(b"no image any more")
    report = prepare_store(raw, prepared, settings, Options())
    assert [failure.scan_id for failure in report.failed] == ["ben_ct"]
    assert "ben_ct" in open_store(prepared).scan_ids


def sabotage(
    monkeypatch: pytest.MonkeyPatch, name: str, whole: Callable[..., Any], error: Exception, *, times: int
) -> list[str]:
    """Lets a step of the work on `ben_ct` fail so many times; returns the ids that reached it."""
    seen: list[str] = []

    def step(*arguments: Any, **options: Any) -> Any:
        scan_id = next(a.scan_id for a in arguments if hasattr(a, "scan_id"))
        seen.append(scan_id)
        if scan_id == "ben_ct" and seen.count("ben_ct") <= times:
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(one_scan, name, step)
    monkeypatch.setattr(scheduler, "RETRY_DELAYS_SECONDS", (0.01, 0.01))
    return seen


def test_a_disk_that_comes_back_is_tried_again_and_finished_scans_are_not(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = TransientReadError("the disk is away", path="ben", remedy="wait")
    seen = sabotage(monkeypatch, "read_source", read_source, error, times=2)
    report = prepare_store(raw, tmp_path / "store", settings, Options())
    assert (report.exit_code, len(report.committed)) == (0, 3)
    assert sorted(seen) == ["ann_ct", "ben_ct", "ben_ct", "ben_ct", "cis_ct"]


def test_a_disk_that_stays_away_fails_its_scan_only_and_the_next_run_tries_again(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = TransientReadError("the disk is away", path="ben", remedy="wait")
    sabotage(monkeypatch, "read_source", read_source, error, times=99)
    report = prepare_store(raw, tmp_path / "store", settings, Options())
    assert [failure.scan_id for failure in report.failed] == ["ben_ct"]
    assert "given up after 3 tries" in report.failed[0].reason
    assert len(report.committed) == 2
    monkeypatch.undo()
    assert prepare_store(raw, tmp_path / "store", settings, Options()).exit_code == 0


def test_a_bug_in_one_scan_is_a_failure_of_that_scan_with_its_traceback_outside_of_the_store(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = raw / "DOE_JOHN"
    named.mkdir()
    shutil.move(raw / "ben_ct.nii.gz", named / "ben_ct.nii.gz")

    def broken(source: Any, config: Any) -> Any:
        if "ben" in source.scan_id:
            raise ZeroDivisionError(f"cannot divide {source.files[0]}")
        return read_source(source, config)

    monkeypatch.setattr(one_scan, "read_source", broken)
    report = prepare_store(raw, tmp_path / "store", settings, Options())
    assert report.exit_code == 1
    (failure,) = report.failed
    assert failure.kind == "ZeroDivisionError"
    assert failure.reason.startswith("ZeroDivisionError: cannot divide")
    assert len(report.committed) == 2
    (log,) = (Path(os.environ["XDG_CACHE_HOME"]) / "mass3d" / "logs").iterdir()
    assert str(log) in capsys.readouterr().out
    text = log.read_text()
    log.unlink()
    assert "ZeroDivisionError" in text
    assert str(named) not in text + failure.reason, "no path of a source is told"


def test_a_full_disk_stops_the_run_and_the_rest_is_listed_as_not_done(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(scheduler, "BATCH_SCANS", 1)
    full = StoreFull("no space left on the disk of the store")
    seen = sabotage(monkeypatch, "commit_scan", commit_scan, full, times=1)
    report = prepare_store(raw, tmp_path / "store", settings, Options())
    assert (report.exit_code, report.failed) == (1, ())
    assert report.stopped == "no space left on the disk of the store"
    assert {outcome.scan_id for outcome in report.not_done} | set(seen) == {"ann_ct", "ben_ct", "cis_ct"}
    assert "ben_ct" in {outcome.scan_id for outcome in report.not_done}
    monkeypatch.undo()
    again = prepare_store(raw, tmp_path / "store", settings, Options())
    assert (again.exit_code, len(again.committed)) == (0, len(report.not_done))


class KilledWorker(Exception):  # noqa: N818
    """Named as Dask's."""


def test_a_scan_whose_workers_die_is_tried_twice_alone_and_fails_by_itself(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, died = scheduler.submit, []

    def submit(task: Any, work: Work, batch: Sequence[Job]) -> Any:
        if all(job.scan_id != "ben_ct" for job in batch):
            return whole(task, work, batch)
        died.append([job.scan_id for job in batch])
        future: Any = Future()
        future.task_run_id = uuid4()
        future.set_exception(KilledWorker())
        return future

    monkeypatch.setattr(scheduler, "submit", submit)
    report = prepare_store(raw, tmp_path / "store", settings, Options())
    assert (sorted(died[0]), died[1:]) == (["ann_ct", "ben_ct", "cis_ct"], [["ben_ct"], ["ben_ct"]])
    assert [outcome.scan_id for outcome in report.committed] == ["ann_ct", "cis_ct"]
    (failure,) = report.failed
    assert (failure.scan_id, failure.kind) == ("ben_ct", "KilledWorker")
    assert "lack of memory" in failure.reason
    assert read_ledger(tmp_path / "store")["ben_ct"].config_digest == "", "the next run tries it again"


@pytest.mark.long
def test_a_worker_that_is_killed_costs_its_scan_only(
    raw: Path, tmp_path: Path, config: Path, mass: Callable[..., Any]
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SABOTAGE)
    path = os.pathsep.join([str(hook), str(Path(__file__).parents[2])])
    store = tmp_path / "store"
    run = mass("prepare", raw, store, "--config", config, "--workers", 2, PYTHONPATH=path)
    out, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 1, out
    assert open_store(store).scan_ids == ("ann_ct", "cis_ct")
    line = read_ledger(store)["ben_ct"]
    assert line.kind == "KilledWorker"
    assert "lack of memory" in line.reason
    assert line.config_digest == "", "the next run tries it again"
