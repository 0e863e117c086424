"""Curves of fine-tuning: the same scans for both arms, no patient on both sides, and cells are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.finetune_curves as script
from storage import Store, commit_scan, create_store, finish, open_store
from tests.training.drawn_checkpoint import drawn_net, export
from tests.training.phantom_store import phantom_record
from training.engine.run_folder import to_toml
from training.network.preparation import TrainedOn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four patients, two phases each."""
    folder = tmp_path_factory.mktemp("store") / "store"
    create_store(folder, spacing_mm=1.5, config={})
    for patient in range(4):
        for phase in (1, 2):
            commit_scan(folder, phantom_record(f"p{patient}_frame{phase}", seed=2 * patient + phase))
    finish(folder)
    return open_store(folder)


def command(store: Store, folder: Path, *more: str) -> list[str]:
    trained_on = TrainedOn(spacing_mm=1.5, crop_voxels=(16, 16, 16), whole_scans=True)
    export(drawn_net(), folder / "weights.safetensors", trained_on)
    scans = {"p0_frame1": "", "p1_frame2": "", "p2_frame1": ""}
    (folder / "run.json").write_text(json.dumps({"scans": scans}))
    (folder / "C.toml").write_text(to_toml({"optimisation": {"batch_size": 1, "precision": "float32"}}))
    return [
        *("finetune_curves.py", str(store.path), str(folder / "out"), "--checkpoint", str(folder)),
        *("--config", str(folder / "C.toml"), "--structures", "2", "--rivals", "copied", *more),
    ]


@pytest.mark.long
def test_cells_are_kept_and_the_table_has_every_row(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", command(store, tmp_path, *more))
        script.main()
        return capsys.readouterr().out

    table = run("--counts", "1", "2", "--steps", "1", "--seeds", "0")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "*copied*",
        *[script.TITLES[arm] for _ in (1, 2) for arm in script.ARMS],
    ]
    assert "| | labelled patients | steps | seeds | mean of parts | whole |" in table
    assert "whole, border" in table
    cells = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    by_name = {cell["name"]: cell for cell in cells}
    for cell in cells:
        assert set(cell["scores"]["stored"]) == {"p3_frame1", "p3_frame2"}
        assert all(scan_id[:2] in {"p0", "p1", "p2"} for scan_id in cell["labelled"])
    labelled = [by_name[f"{arm}-{count}-1-seed0"]["labelled"] for arm in script.ARMS for count in (1, 2)]
    assert labelled[:2] == labelled[2:]
    assert labelled[0] == labelled[1][:1]
    assert len({scan_id[:2] for scan_id in labelled[1]}) == 2
    assert not list((tmp_path / "out" / "runs").glob("*/checkpoints"))
    monkeypatch.setattr(script.Bench, "score", None)  # nothing is made again
    assert run("--counts", "1", "2", "--steps", "1", "--seeds", "0") == table
    with pytest.raises(SystemExit, match="other settings, targets"):
        run("--counts", "1", "--steps", "1", "--targets", "1")


def test_more_patients_than_there_are_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", command(store, tmp_path, "--counts", "4", "--steps", "1"))
    with pytest.raises(SystemExit, match="4 labelled patients asked for, 3 there"):
        script.main()
