"""The embedded server on request, where PREFECT_API_URL names one that is dead."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import open_store
from tests.waits import PATIENT_SECONDS

DEAD = "http://127.0.0.1:1/api"
"""Followed by the run or a worker, it would end the run."""


@pytest.mark.long
def test_prepare_with_the_embedded_server_does_its_work_all_the_same(
    raw: Path, tmp_path: Path, config: Path, mass: Callable[..., subprocess.Popen[str]]
) -> None:
    store = tmp_path / "store"
    run = mass("prepare", raw, store, "--config", config, "--embedded-server", PREFECT_API_URL=DEAD)
    told, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 0, told
    assert open_store(store).scan_ids == ("ann_ct", "ben_ct", "cis_ct")
