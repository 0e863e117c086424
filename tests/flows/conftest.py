"""One Prefect server for all tests of this folder, and small raw scans."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands.prepare.prefect_server import prefect_server
from commands.prepare.settings import Settings
from tests.phantom import phantom

ROOT = Path(__file__).parent.parent.parent

FAST = """
[ingest]
spacing_mm = 4.0

[proposals]
trees = ["fine-contrast-0.7mm"]
max_voxel_leaves = 1
component_thresholds_hu = [-400]
candidates_per_half_octave = 50
max_proposals = 60
"""


@pytest.fixture(scope="session", autouse=True)
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the embedded server, also in the environment, so that every run here uses it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        before = set(os.environ)
        with prefect_server() as settings:
            url, password = settings.values()
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_API_AUTH_STRING", password)
            yield url
        for name in set(os.environ) - before:
            del os.environ[name]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fast.toml"
    path.write_text(FAST)
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    return Settings.read(config)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three scans, one with labels."""
    folder = tmp_path / "raw"
    for number, scan_id in enumerate(("ann", "ben", "cis")):
        phantom(seed=number).write(folder / f"{scan_id}_ct.nii.gz")
    phantom().write_labels(folder / "ann_ct_label.nii.gz")
    return folder


@pytest.fixture
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
