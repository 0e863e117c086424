"""Fixtures that all tests share."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests.phantom import Phantom
from tests.phantom import phantom as make_phantom

ROOT = Path(__file__).parent.parent

# No test depends on the speed of the machine: examples may take any time to draw and to check.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def share_cores(num_workers: int) -> None:
    """Let the processes of pytest-xdist, and what they start, share the cores; before torch is imported."""
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share_cores(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


@pytest.fixture(scope="session")
def prepared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the bundled scans but the largest, with the default settings; half a minute a session."""
    folder = tmp_path_factory.mktemp("bundled")
    with (ROOT / "examples" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] != "example_ct"]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            paths = {name: str(ROOT / "examples" / row[name]) for name in ("image", "label") if row[name]}
            writer.writerow(row | paths)
    command = [sys.executable, "-m", "flows", "prepare", str(folder / "manifest.csv"), str(folder / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "store"


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """The factory of `tests.phantom`."""
    return make_phantom
