"""No text of a DICOM header reaches anything that we write: store, log, report, JSON, pictures, Prefect."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from commands.main import main
from storage import open_store
from tests.canary_dicom import (
    BIRTH_DATE,
    KEPT,
    PATIENT_ID,
    WORD,
    canaries_in,
    canary,
    leaks,
    write_canaries,
)
from tests.flows.test_flows import TINY
from tests.phantom import Phantom, phantom
from tests.waits import PATIENT_SECONDS

ALLOWED = {canary(tag_for_keyword(keyword) or 0) for keyword in KEPT}
"""What a scan keeps of its machine, in its attributes."""

WHAT_PREFECT_KEEPS = (
    "flows",
    "flow_runs",
    "task_runs",
    "artifacts",
    "logs",
    "events",
    "deployments",
    "variables",
)


@pytest.fixture
def scan() -> Phantom:
    return phantom(shape_zyx=(14, 28, 30), spacing_zyx_mm=(7.0, 3.0, 3.2))


@pytest.fixture
def patients(tmp_path: Path, scan: Phantom) -> Path:
    """Two series in folders that are named after the patient, one with a segmentation, and a broken file."""
    raw = tmp_path / "raw"
    named = raw / f"{WORD}Canary_{WORD}Bird" / f"{BIRTH_DATE}_{PATIENT_ID}"
    write_canaries(named / "series1", scan)
    other = scan.replace(image=scan.image + 1)
    write_canaries(named / "series2", other, series_uid="1.2.826.0.1.3680043.8.498.77")
    broken = write_canaries(named / "series3", scan, series_uid="1.2.826.0.1.3680043.8.498.88")
    broken[3].unlink()
    return raw


def prefect_texts(url: str) -> bytes:
    """Everything that the server keeps of flows."""
    token = base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()
    answers = []
    for kind in WHAT_PREFECT_KEEPS:
        request = urllib.request.Request(
            f"{url}/{kind}/filter",
            b"{}",
            {"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        )
        answers.append(urllib.request.urlopen(request, timeout=PATIENT_SECONDS).read())
    return b"\n".join(answers)


def told(where: dict[str, set[str]]) -> dict[str, list[str]]:
    """What leaked, by file, to read in a failure."""
    return {name: sorted(found) for name, found in where.items() if found}


def test_no_text_of_a_header_reaches_what_prepare_leaves(
    patients: Path, tmp_path: Path, config: Path, prefect_api: str, mass: Callable[..., subprocess.Popen[str]]
) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    out.mkdir()
    run = mass("prepare", patients, store, "--config", config, "--json", out / "prepare.json")
    terminal, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 1, "the third series lacks a slice"
    assert json.loads((out / "prepare.json").read_text())["failed"]
    assert len(open_store(store)) == 2
    found: dict[str, set[str]] = {"the terminal": canaries_in(terminal.encode())}
    found["Prefect"] = canaries_in(prefect_texts(prefect_api))
    places = [store, out, tmp_path / "store-report.html", Path(os.environ["XDG_CACHE_HOME"])]
    for path, word in leaks(places):
        found.setdefault(path, set()).add(word)
    kept = {path for path in found if path.endswith("/zarr.json") and found[path] <= ALLOWED}
    assert told({path: words for path, words in found.items() if path not in kept}) == {}


def test_no_text_of_a_header_reaches_reports_exports_and_runs(
    patients: Path, tmp_path: Path, config: Path, mass: Callable[..., subprocess.Popen[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, store = tmp_path / "out", tmp_path / "store"
    out.mkdir()
    run = mass("prepare", patients, store, "--config", config)
    run.communicate(timeout=PATIENT_SECONDS)
    (out / "tiny.toml").write_text(TINY)
    words: list[list[object]] = [
        ["status", store],
        ["verify", store],
        ["inspect", store, "--out", out / "report.html"],
        ["export", store, out / "nifti", "--format", "nifti"],
        ["export", store, out / "nnunet", "--format", "nnunet"],
        ["pretrain", store, out / "run", "--config", out / "tiny.toml", "--device", "cpu"],
        ["embed", out / "run", store, "--out", out / "features.npz"],
    ]
    for number, command in enumerate(words):
        code = main([*map(str, command), "--json", str(out / f"{number}.json")])
        assert code in (0, 1), command
    shown = capfd.readouterr()
    found = {"the terminal": canaries_in((shown.out + shown.err).encode())}
    for path, word in leaks([out]):
        found.setdefault(path, set()).add(word)
    found[(out / "report.html").as_posix()] -= ALLOWED  # the page shows what a scan keeps
    assert told(found) == {}
