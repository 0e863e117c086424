"""The embedded server on request, where PREFECT_API_URL names one that is dead."""

from __future__ import annotations

import base64
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from commands.prepare.prefect_server import prefect_server
from storage import open_store
from tests.waits import PATIENT_SECONDS

DEAD = "http://127.0.0.1:1/api"


def test_the_embedded_server_passes_a_named_one_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", DEAD)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "some:body")
    with prefect_server(embedded=True) as settings:
        url, password = settings.values()
        assert "PREFECT_API_URL" not in os.environ, "workers would follow it"
        token = base64.b64encode(password.encode()).decode()
        request = urllib.request.Request(f"{url}/flow_runs/count", b"{}", {"Authorization": f"Basic {token}"})
        request.add_header("Content-Type", "application/json")
        assert urllib.request.urlopen(request, timeout=PATIENT_SECONDS).read() == b"0"
    assert (os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]) == (DEAD, "some:body")


def test_prepare_with_the_embedded_server_does_its_work_all_the_same(
    raw: Path, tmp_path: Path, config: Path, mass: Callable[..., subprocess.Popen[str]]
) -> None:
    store = tmp_path / "store"
    run = mass("prepare", raw, store, "--config", config, "--embedded-server", PREFECT_API_URL=DEAD)
    told, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 0, told
    assert open_store(store).scan_ids == ("ann_ct", "ben_ct", "cis_ct")
