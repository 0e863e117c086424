"""The few-shot table: the same scans for every arm, none of the targets among them, and it goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.few_shot as script
from benchmarks.teaching import Split
from tests.benchmarks.test_teaching import evaluation
from training.finetuning.config import FinetuneConfig, finetune_recipe

IDS = tuple(f"scan-{k:03d}" for k in range(200))
SMALL = finetune_recipe("small")


def test_every_arm_takes_the_same_scans_and_none_of_the_targets() -> None:
    split = Split.of(IDS)
    configs = [
        script.cell_config(SMALL, split, script.Cell(arm=arm, count=5, seed=2), 100) for arm in script.ARMS
    ]
    for config in configs:
        assert (config.finetune.num_scans, config.finetune.scan_seed) == (5, 2)
        assert {*config.finetune.held_out, *config.finetune.exclude} == set(split.held_out)
        assert config.finetune.held_out == split.targets
        assert config.optimisation == configs[0].optimisation
    assert [config.finetune.from_scratch for config in configs] == [True, False, False, False]


def test_more_labels_than_scans_become_all_of_them_once() -> None:
    assert script.counts_of((1, 5, 100, 200, 145), 145) == (1, 5, 100, 145)


def test_the_two_networks_are_those_of_the_pretraining_script_unless_named() -> None:
    found = script.checkpoints(Path("out"), ["slic=elsewhere.pt"], 1)
    assert found["ours"] == found["scratch"] == Path("out/cells/ours-seed1/run/weights.safetensors")
    assert found["slic"] == Path("elsewhere.pt")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`mass finetune` replaced by figures: one more labelled scan is 0.01, pretraining 0.3 at first."""
    done: list[str] = []

    def train(store: Path, checkpoint: Path, folder: Path, config: FinetuneConfig) -> dict[str, object]:
        done.append(folder.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        count = config.finetune.num_scans
        dice = 0.2 + 0.01 * count + (0 if config.finetune.from_scratch else 0.3)
        cases = [
            {"scan": scan, "structure": name, "dice": dice if name == "1" else None if scan == "b" else dice}
            for scan in ("a", "b")
            for name in ("1", "2")
        ]
        return {"report": {"cases": cases}, "minutes": 2.0}

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(script, "final_scores", lambda store, weights, config: evaluation())
    monkeypatch.setattr(script, "open_store", lambda path: SimpleNamespace(scan_ids=IDS))
    return done


def test_finished_cells_are_kept_and_the_table_says_what_was_gained(trained, tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        out=tmp_path,
        steps=50,
        minutes=1.0,
        seeds=[0],
        arms=list(script.DEFAULT_ARMS),
        counts=[1, 5],
        checkpoint=[],
        folder="few_shot",
    )
    with pytest.raises(KeyboardInterrupt):
        script.run_cells(arguments, SMALL)
    assert trained == ["scratch-001-seed0", "slic-001-seed0", "ours-001-seed0"]
    results = script.run_cells(arguments, SMALL)
    assert trained[3:] == ["ours-001-seed0", "scratch-005-seed0", "slic-005-seed0", "ours-005-seed0"]
    assert results == json.loads((tmp_path / "few_shot" / "results.json").read_text())
    assert results["cells"]["ours-005-seed0"]["dice"] == pytest.approx({"1": 0.55, "2": 0.55, "mean": 0.55})
    text = script.report(results, tmp_path / "few_shot")
    assert "| 1 | 0.210 (0.210 to 0.210) | 0.510 (0.510 to 0.510) | 0.510 (0.510 to 0.510) | +0.300" in text
    assert "1 labelled scans reach 0.510: at least scratch with 5 (0.250)" in text
    assert "With 1: +30.0 points of Dice over scratch." in text
    assert "| 5 | 0.383 | 0.383 |" in text
    assert (tmp_path / "few_shot" / "curves.png").is_file()
