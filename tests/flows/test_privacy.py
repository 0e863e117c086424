"""No text of a DICOM header reaches anything that we write: store, log, report, JSON, pictures, Prefect."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from benchmarks.many_scans import FAST
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
from tests.phantom import phantom
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


@dataclass(frozen=True)
class Prepared:
    """A run of `mass prepare`, and what it left."""

    store: Path
    out: Path
    terminal: str
    code: int


@pytest.fixture(scope="module")
def prepared(
    mass: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    """Two series in folders that are named after the patient, and one that lacks a slice; read only."""
    folder = tmp_path_factory.mktemp("prepared")
    raw, config, store, out = (folder / name for name in ("raw", "fast.toml", "store", "out"))
    scan = phantom(shape_zyx=(10, 28, 30), spacing_zyx_mm=(9.0, 3.0, 3.2))
    named = raw / f"{WORD}Canary_{WORD}Bird" / f"{BIRTH_DATE}_{PATIENT_ID}"
    write_canaries(named / "series1", scan)
    other = scan.replace(image=scan.image + 1)
    write_canaries(named / "series2", other, series_uid="1.2.826.0.1.3680043.8.498.77")
    broken = write_canaries(named / "series3", scan, series_uid="1.2.826.0.1.3680043.8.498.88")
    broken[3].unlink()
    config.write_text(FAST)
    out.mkdir()
    run = mass("prepare", raw, store, "--config", config, "--json", out / "prepare.json")
    terminal, _ = run.communicate(timeout=PATIENT_SECONDS)
    return Prepared(store=store, out=out, terminal=terminal, code=run.returncode)


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


def test_no_text_of_a_header_reaches_what_prepare_leaves(prepared: Prepared, prefect_api: str) -> None:
    assert prepared.code == 1, "the third series lacks a slice"
    assert json.loads((prepared.out / "prepare.json").read_text())["failed"]
    assert len(open_store(prepared.store)) == 2
    found: dict[str, set[str]] = {"the terminal": canaries_in(prepared.terminal.encode())}
    found["Prefect"] = canaries_in(prefect_texts(prefect_api))
    page = prepared.store.with_name("store-report.html")
    assert page.is_file()
    for path, word in leaks([prepared.store, prepared.out, page, Path(os.environ["XDG_CACHE_HOME"])]):
        found.setdefault(path, set()).add(word)
    kept = {path for path in found if path.endswith("/zarr.json") and found[path] <= ALLOWED}
    assert told({path: words for path, words in found.items() if path not in kept}) == {}


def test_no_text_of_a_header_reaches_reports_exports_and_runs(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, out = prepared.store, tmp_path
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
