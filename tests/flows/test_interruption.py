"""A run may be killed, interrupted, or run twice at once; the store comes out the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.many_scans import FAST
from commands.prepare import scheduler
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from tests.phantom import phantom
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]

HOLD_A_SERVER = """
import os, subprocess, sys, time
from commands.prepare.prefect_server import prefect_server
start = subprocess.Popen
def remember(*a, **k):
    process = start(*a, **k)
    print(process.pid, flush=True)
    return process
subprocess.Popen = remember
with prefect_server():
    print("up", flush=True)
    time.sleep(3600)
"""


HELD = """
import sys
if "commands" in sys.orig_argv:
    import os, time
    import commands.prepare.scheduler as scheduler
    import storage.writing.scan_writer as writer
    scheduler.BATCH_SCANS = 4
    whole, written = writer.write_scan, []
    def write_scan(folder, record):
        whole(folder, record)
        written.append(record)
        while len(written) == 3 and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.02)
    writer.write_scan = write_scan
"""
"""For `mass prepare`: with two scans committed wait for a file, however fast this machine is.
Its batches are small: one is interrupted, another has not begun."""


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store by its path."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def commits(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every scan's COMMIT.json."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in store.glob("scans/*/*/COMMIT.json")
    }


def wait_for(holds: Callable[[], bool], *, seconds: float = PATIENT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans, which no test changes: of them a run that ends after two or four leaves some."""
    folder = tmp_path_factory.mktemp("many") / "raw"
    for number in range(6):
        phantom(seed=number).write(folder / f"scan{number}_ct.nii.gz")
    return folder


@pytest.fixture(scope="module")
def undisturbed(many: Path) -> dict[str, bytes]:
    """What a store of them must come out as."""
    config = many.parent / "fast.toml"
    config.write_text(FAST)
    prepare_store(many, many.parent / "store", Settings.read(config), Options())
    return store_bytes(many.parent / "store")


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(
    many: Path, tmp_path: Path, config: Path, settings: Settings,
    undisturbed: dict[str, bytes], mass: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    store = tmp_path / "store"
    finished: dict[str, tuple[int, int]] = {}
    for wanted in (1, 4):
        run = mass("prepare", many, store, "--config", config)
        wait_for(lambda wanted=wanted, run=run: len(commits(store)) >= wanted or run.poll() is not None)
        run.kill()
        run.communicate()
        before, finished = finished, commits(store)
        assert before.items() <= finished.items(), "a finished scan was done again"
    prepare_store(many, store, settings, Options())
    assert finished.items() <= commits(store).items(), "a finished scan was done again"
    assert store_bytes(store) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_run_finishes_the_scan_in_hand_and_lists_the_rest(
    number: signal.Signals, many: Path, tmp_path: Path, config: Path, settings: Settings,
    undisturbed: dict[str, bytes], mass: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    store, hook = tmp_path / "store", tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HELD)
    path = os.pathsep.join([str(hook), str(ROOT), *sys.path])
    run = mass("prepare", many, store, "--config", config, PYTHONPATH=path, GO_ON=str(tmp_path / "go"))
    wait_for(lambda: len(commits(store)) == 2 or run.poll() is not None)
    run.send_signal(number)
    (tmp_path / "go").touch()
    out, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 130, out
    assert f"stopped before the end: interrupted by {number.name}" in out
    assert not (store / "tmp").exists()
    assert prepare_store(many, store, settings, Options()).exit_code == 0
    assert store_bytes(store) == undisturbed


@pytest.mark.long
def test_two_runs_at_once_on_one_store_do_no_harm(
    many: Path, tmp_path: Path, config: Path,
    undisturbed: dict[str, bytes], mass: Callable[..., subprocess.Popen[str]],
) -> None:  # fmt: skip
    store = tmp_path / "store"
    runs = [mass("prepare", many, store, "--config", config) for _ in range(2)]
    told = [run.communicate(timeout=PATIENT_SECONDS)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert store_bytes(store) == undisturbed


def test_the_embedded_server_does_not_outlive_a_killed_run() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert holder.stdout is not None
    server = int(holder.stdout.readline())
    assert holder.stdout.readline() == "up\n"
    os.kill(server, 0)
    holder.kill()
    holder.communicate()
    wait_for(lambda: not is_running(server))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_without_workers_ends_and_says_so(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    monkeypatch.setattr(scheduler, "NO_WORKER_SECONDS", 1.0)
    with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", scheduler_port=0) as cluster:
        report = prepare_store(
            raw, tmp_path / "store", settings, Options(scheduler=cluster.scheduler_address)
        )
    assert report.exit_code == 1
    assert report.stopped.startswith("no Dask worker has been there for 1 s")
    assert len(report.not_done) == 3
