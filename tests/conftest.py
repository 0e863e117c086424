"""Fixtures that all tests share."""

from __future__ import annotations

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
    """The store of the bundled scans, prepared with the default settings; about a minute, once a session."""
    store = tmp_path_factory.mktemp("bundled") / "store"
    command = [sys.executable, "-m", "flows", "prepare", str(ROOT / "examples" / "manifest.csv"), str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return store


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """The factory of `tests.phantom`."""
    return make_phantom
