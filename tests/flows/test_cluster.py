"""`mass prepare --scheduler` on a Dask cluster of several processes, as an administrator starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk

from commands.main import main
from commands.prepare.cluster import check_cluster, tasks_at_once
from commands.prepare.command import prepare_store
from commands.prepare.outcomes import RunReport
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from commands.terminal import CommandError
from storage import verify
from tests.flows.dask_cluster import ROOT, Cluster, wait_for
from tests.phantom import phantom
from tests.waits import PATIENT_SECONDS

HANGING = """
import sys
if "distributed.cli.dask_worker" in sys.orig_argv:
    import time
    import storage.writing.scan_writer as writer
    whole, written = writer.write_scan, []
    def write_scan(folder, record):
        whole(folder, record)
        written.append(record)
        if len(written) == 3:
            time.sleep(3600)
    writer.write_scan = write_scan
"""
"""For a worker: stand still when the third scan is written, and not committed yet."""


def store_bytes(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def commits(store: Path) -> dict[str, tuple[int, int]]:
    found = store.glob("scans/*/*/COMMIT.json")
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def run(cluster: Cluster, raw: Path, store: Path, settings: Settings, **options: str) -> RunReport:
    return prepare_store(raw, store, settings, Options(scheduler=cluster.address, **options))  # type: ignore[arg-type]


@pytest.mark.long
def test_after_a_worker_is_killed_its_scan_is_done_and_no_finished_one_again(
    cluster: Cluster,
    tmp_path: Path,
    config: Path,
    settings: Settings,
    mass: Callable[..., subprocess.Popen[str]],
) -> None:
    raw, store = tmp_path / "raw", tmp_path / "store"
    for number in range(9):  # more than a batch
        phantom(seed=number).write(raw / f"scan{number:02}_ct.nii")
    prepare_store(raw, tmp_path / "alone", settings, Options())
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HANGING)
    path = os.pathsep.join([str(tmp_path / "hook"), str(ROOT), *sys.path])
    victim = cluster.worker("--nthreads", "1", PYTHONPATH=path)
    running = mass("prepare", raw, store, "--config", config, "--scheduler", cluster.address)
    # a scan is being written, and others are finished: in the middle of a batch
    wait_for(
        lambda: (len(commits(store)) == 2 and list(store.glob("tmp/*.lock"))) or running.poll() is not None,
        what="it began",
    )
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finished = commits(store)
    assert len(finished) == 2
    cluster.worker("--nthreads", "1")
    told, _ = running.communicate(timeout=PATIENT_SECONDS)
    assert running.returncode == 0, told
    assert "9 committed" in told
    assert finished.items() <= commits(store).items(), "a finished scan was done again"
    assert not (store / "tmp").exists()
    assert store_bytes(store) == store_bytes(tmp_path / "alone")
    assert list(verify(store)) == []


@pytest.mark.long
def test_threads_of_a_worker_share_its_memory_and_a_scan_that_cannot_fit_is_told_before_it_is_read(
    cluster: Cluster, raw: Path, tmp_path: Path, settings: Settings
) -> None:
    cluster.worker("--nthreads", "3", "--memory-limit", "800MB")
    huge = sitk.Image([400, 420, 440], sitk.sitkUInt8)
    sitk.WriteImage(huge, str(raw / "huge_ct.nii.gz"))
    report = run(cluster, raw, tmp_path / "store", settings)
    assert {outcome.scan_id for outcome in report.committed} == {"ann_ct", "ben_ct", "cis_ct"}
    (failure,) = report.failed
    assert (failure.scan_id, failure.kind) == ("huge_ct", "TooLittleMemory")
    assert failure.reason == "needs about 1.2 GiB, and this worker may take 0.7 GiB"
    assert "--memory-limit" in failure.remedy


@pytest.mark.long
def test_a_worker_without_room_for_the_program_itself_is_refused_at_the_start(
    cluster: Cluster, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.worker("--nthreads", "1", "--memory-limit", "200MB", "--name", "small")
    seen: list[str] = []

    def refused() -> bool:
        try:
            check_cluster(Options(scheduler=cluster.address))
        except CommandError as error:
            seen.append(str(error))
        return bool(seen)

    wait_for(refused, what="the worker came")
    assert seen[0].startswith("the Dask worker small may take 0.2 GiB, and this program alone takes 0.5 GiB")


IN_ONE_PROCESS = """
import sys
from distributed import LocalCluster
with LocalCluster(
    n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", host="127.0.0.1",
    scheduler_port=0, dashboard_address="127.0.0.1:0", memory_limit="200GB",
) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[str]:
    """The address of a scheduler and a worker that share one process: it starts in half the time of two.

    Not this process: threads of Dask draw random numbers, which Hypothesis would take for those of its tests.
    """
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    running = subprocess.Popen(
        [sys.executable, "-c", IN_ONE_PROCESS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | path,
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        yield running.stdout.readline().strip()
        running.kill()


@pytest.mark.long
def test_a_worker_that_a_scheduler_has_writes_what_this_process_writes(
    small_cluster: str, raw: Path, prepared_once: Path, tmp_path: Path, settings: Settings
) -> None:
    options = Options(scheduler=small_cluster)
    report = prepare_store(raw, tmp_path / "store", settings, options)
    assert (report.exit_code, len(report.committed), report.failed) == (0, 3, ())
    assert store_bytes(tmp_path / "store") == store_bytes(prepared_once)
    assert prepare_store(raw, tmp_path / "store", settings, options).committed == ()


def test_a_worker_of_other_code_stops_the_run(
    small_cluster: str, raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.prepare.payload.code_versions", lambda: {"mass3d": "0.0.1"})
    report = prepare_store(raw, tmp_path / "store", settings, Options(scheduler=small_cluster))
    assert (report.exit_code, len(report.not_done), report.failed) == (1, 3, ())
    assert "has other code: mass3d 0.1.0 there, 0.0.1 here" in report.stopped


def test_without_a_gpu_no_worker_is_given_work_for_one(small_cluster: str) -> None:
    with pytest.raises(CommandError, match=r"no worker offers a GPU.*--resources \"GPU=1\""):
        check_cluster(Options(scheduler=small_cluster, device="gpu"))


def test_a_paused_worker_counts_only_while_it_computes() -> None:
    worker = {"status": "running", "nthreads": 4, "resources": {"GPU": 1.0}, "metrics": {"executing": 0}}
    paused = {**worker, "status": "paused"}
    computing = {**paused, "metrics": {"executing": 1}}
    assert tasks_at_once([worker, paused, computing], on_gpus=False) == 8
    assert tasks_at_once([worker, paused, {**worker, "resources": {}}], on_gpus=True) == 1


@pytest.mark.long
def test_a_worker_that_does_not_see_the_scans_or_has_other_code_stops_the_run_with_the_reason(
    cluster: Cluster, raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.worker("--nthreads", "1")
    versions = {"mass3d": "0.0.1", "algorithm version": "4"}
    with monkeypatch.context() as patch:
        patch.setattr("commands.prepare.payload.code_versions", lambda: versions)
        report = run(cluster, raw, tmp_path / "store", settings)
    assert (report.exit_code, len(report.not_done), report.failed) == (1, 3, ())
    assert "has other code: mass3d 0.1.0 there, 0.0.1 here" in report.stopped
    assert "Install the same version" in report.stopped

    with monkeypatch.context() as patch:  # what this process sees under another name, a worker does not see
        patch.setattr("commands.prepare.payload.Path.resolve", lambda self: Path("/nowhere") / self.name)
        report = run(cluster, raw, tmp_path / "store", settings)
    assert report.stopped.endswith("must lie on a file system that all machines see under the same path")
    assert "cannot open the store store" in report.stopped
    assert len(report.not_done) == 3
    assert run(cluster, raw, tmp_path / "store", settings).exit_code == 0


@pytest.mark.long
def test_gpu_work_goes_to_workers_that_offer_a_gpu_one_scan_each(
    cluster: Cluster, raw: Path, tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.worker("--nthreads", "4")
    store = tmp_path / "store"
    wait_for(lambda: "1 workers" in checked(cluster), what="the worker came")
    assert main(["prepare", str(raw), str(store), "--scheduler", cluster.address, "--device", "gpu"]) == 2
    told = capsys.readouterr().err
    assert "no worker offers a GPU" in told
    assert '--resources "GPU=1"' in told
    cluster.worker("--nthreads", "1", "--resources", "GPU=1", "--name", "with-gpu")
    wait_for(lambda: "2 workers" in checked(cluster), what="the second worker came")
    report = run(cluster, raw, store, settings, device="gpu")
    # without a device it says so: the worker that offers a GPU, not the one with free threads
    assert report.exit_code == 0 or "the worker with-gpu on" in report.stopped


def checked(cluster: Cluster) -> str:
    return check_cluster(Options(scheduler=cluster.address))


def test_an_address_where_nobody_answers_is_an_error_that_says_what_to_start(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.prepare.cluster.CONNECT_SECONDS", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        assert main(["prepare", str(raw), str(tmp_path / "store"), "--scheduler", address]) == 2
        told = capsys.readouterr().err
        assert f"--scheduler {address}: no Dask scheduler answers" in told
        assert "`dask scheduler`" in told


@pytest.mark.long
def test_jobs_of_dask_jobqueue_prepare_a_store(raw: Path, tmp_path: Path, config: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    script = ROOT / "examples" / "cluster" / "prepare_on_cluster.py"
    environment = {"DASK_CONFIG": str(script.parent), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [
        sys.executable,
        str(script),
        "--kind",
        "local",
        "--jobs",
        "1",
        str(raw),
        str(tmp_path / "store"),
    ]
    done = subprocess.run(
        [*command, "--config", str(config)], capture_output=True, text=True, env=os.environ | environment,
        timeout=PATIENT_SECONDS, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 committed" in done.stdout
    slurm = subprocess.run(
        [*command[:2], "--script", "RAW", "STORE"], capture_output=True, text=True,
        env=os.environ | environment, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert "#SBATCH --cpus-per-task=4" in slurm.stdout, slurm.stderr
    assert "--memory-limit 14.90GiB" in slurm.stdout
