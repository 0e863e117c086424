"""Fixtures that all tests share."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.phantom import Phantom
from tests.phantom import phantom as make_phantom

ROOT = Path(__file__).parent.parent


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
