"""A dry run: what a training would take, from a few steps, with nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands.main import main
from storage import Store
from tests.training.pretraining.test_run import TINY
from training.engine import to_toml
from training.pretraining import rehearse_pretraining


@pytest.fixture(autouse=True)
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.engine.rehearsal.WARM_UP_STEPS", 1)
    monkeypatch.setattr("training.engine.rehearsal.MEASURED_STEPS", 1)


def test_a_dry_run_tells_memory_and_time_and_writes_nothing(
    phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, told = tmp_path / "c.toml", tmp_path / "told.json"
    settings = replace(TINY, run=replace(TINY.run, num_workers=0))
    config.write_text(to_toml(settings.values()))
    where = [str(phantom_store.path), str(tmp_path / "RUN"), "--config", str(config), "--device", "cpu"]
    assert main(["pretrain", *where, "--dry-run", "--json", str(told)]) == 0
    assert not (tmp_path / "RUN").exists()
    assert "nothing is written" in capsys.readouterr().out
    values = json.loads(told.read_text())
    assert values["run_seconds"] == pytest.approx(values["step_seconds"] * TINY.optimisation.num_steps)
    assert values["num_parameters"] == sum(p.numel() for p in settings.model.make().parameters())
    assert values["state_bytes"] > 4 * 3 * values["num_parameters"]
    assert 0 < values["activation_bytes"] < values["peak_bytes"]


def test_activations_computed_again_are_not_counted(phantom_store: Store) -> None:
    kept = [
        rehearse_pretraining(
            phantom_store.path,
            replace(TINY, run=replace(TINY.run, num_workers=0, recompute_activations=again)),
            device="cpu",
        ).steps.activation_bytes
        for again in (False, True)
    ]
    assert kept[1] < 0.9 * kept[0]
