"""One Prefect server for all tests of this folder, and small raw scans."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.many_scans import FAST
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from tests.flows.dask_cluster import ROOT, Cluster
from tests.phantom import phantom
from tests.running_prefect import running_prefect
from tests.waits import PATIENT_SECONDS


@pytest.fixture(scope="session", autouse=True)
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the embedded server, also in the environment, so that every run here uses it."""
    with running_prefect(tmp_path_factory.mktemp("cache")) as url:
        yield url


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fast.toml"
    path.write_text(FAST)
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    return Settings.read(config)


@pytest.fixture(scope="session")
def drawn_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, one with labels; read only."""
    folder = tmp_path_factory.mktemp("drawn") / "raw"
    for number, scan_id in enumerate(("ann", "ben", "cis")):
        phantom(seed=number).write(folder / f"{scan_id}_ct.nii.gz")
    phantom().write_labels(folder / "ann_ct_label.nii.gz")
    return folder


@pytest.fixture
def raw(drawn_raw: Path, tmp_path: Path) -> Path:
    """A copy of them to change."""
    return Path(shutil.copytree(drawn_raw, tmp_path / "raw"))


@pytest.fixture(scope="session")
def prepared_once(drawn_raw: Path, prefect_api: str) -> Path:
    """A store of them; read only."""
    config = drawn_raw.with_name("fast.toml")
    config.write_text(FAST)
    report = prepare_store(drawn_raw, drawn_raw.with_name("store"), Settings.read(config), Options())
    assert (report.exit_code, len(report.committed), report.failed) == (0, 3, ())
    return drawn_raw.with_name("store")


@pytest.fixture
def prepared(raw: Path, prepared_once: Path, tmp_path: Path) -> Path:
    """A copy of it, which a run from `raw` goes on with."""
    return Path(shutil.copytree(prepared_once, tmp_path / "store"))


@pytest.fixture(scope="session")
def mass() -> Callable[..., subprocess.Popen[str]]:
    """Start the command in a process of its own."""

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "commands", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | environment,
        )

    return start


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.end()


@pytest.fixture
def cluster(scheduler: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A scheduler that all tests share, without workers at first."""
    monkeypatch.setattr("commands.prepare.cluster.CONNECT_SECONDS", PATIENT_SECONDS)
    yield scheduler
    scheduler.end_workers()
