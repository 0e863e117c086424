"""`mass finetune`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands.main import main
from storage import Store
from tests.training.drawn_checkpoint import export
from tests.training.finetuning.test_run import TINY, tuned
from training.engine.run_folder import to_toml
from training.finetuning.config import TOKEN_RATE, finetune_recipe
from training.network.preparation import TrainedOn
from training.pretraining.config import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_trains_tells_and_writes_its_report(
    phantom_store: Store, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, result = tmp_path / "c.toml", tmp_path / "result.json"
    values = tuned(TINY, num_steps=2).values()
    values["finetune"] |= {"num_scans": 0}
    config.write_text(to_toml(values))
    command = ["finetune", str(checkpoint), str(phantom_store.path), str(tmp_path / "run")]
    options = ["--config", str(config), "--num", "1", "--seed", "3", "--mode", "tokens", "--device", "cpu"]
    assert main([*command, *options, "--json", str(result)]) == 0
    out = capsys.readouterr().out
    for part in (
        *("label structures: 1 organ, 3 lung", "trained on 1 scans", "on 1 scans not trained on"),
        *("HD95 (mm)", "ASD (mm)", "missed"),
    ):
        assert part in out, part
    assert "warning" not in out
    document = json.loads(result.read_text())
    assert (document["mode"], document["step"], document["complete"]) == ("tokens", 2, True)
    assert [case["structure"] for case in document["report"]["cases"]] == ["organ", "lung"]
    assert f"next: mass segment {tmp_path / 'run'} --finetuned SCANS --out RESULTS" in out
    assert main([*command, "--resume", "--device", "cpu"]) == 0  # done already: reported on again
    assert main(["inspect", str(tmp_path / "run")]) == 0
    dice = [case["dice"] for case in document["report"]["cases"]]
    page = (tmp_path / "run" / "run.html").read_text()
    assert all(f">{value:.3f}<" in page for value in dice), dice
    assert main([*command, "--resume", "--mode", "full", "--device", "cpu"]) == 2
    assert "finetune.mode tokens -> full" in capsys.readouterr().err


def test_a_store_of_another_voxel_size_is_warned_of_before_the_first_step(
    phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = ModelConfig(channels=(4, 4, 8, 8, 8), num_tasks=1).make()
    path = export(net, tmp_path / "other.safetensors", TrainedOn(spacing_mm=1.0))
    config, result = tmp_path / "c.toml", tmp_path / "result.json"
    config.write_text(to_toml(tuned(TINY, num_steps=1).values()))
    command = ["finetune", str(path), str(phantom_store.path), "--config", str(config), "--device", "cpu"]
    assert main([*command, str(tmp_path / "run"), "--json", str(result)]) == 0
    told = "voxels measure 1.5 mm, those that the network was trained on 1 mm"
    out = capsys.readouterr().out
    assert out.index(told) < out.index("fine-tuned")
    (warning,) = json.loads(result.read_text())["warnings"]
    assert told in warning
    assert main([*command, str(tmp_path / "scratch"), "--from-scratch"]) == 0
    assert "warning" not in capsys.readouterr().out, "of the checkpoint only the widths are taken"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "liver"], "no scan has the label 'liver'"),
        (["--mode", "tokens", "--from-scratch"], "from_scratch trains everything"),
        (["--num", "0"], "--num must be at least 1"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_no_folder(
    options: list[str],
    message: str,
    phantom_store: Store,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["finetune", str(checkpoint), str(phantom_store.path), str(tmp_path / "run"), *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_network_is_refused(
    phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    command = ["finetune", str(tmp_path / "other.pth"), str(phantom_store.path), str(tmp_path / "run")]
    assert main(command) == 2
    assert "not a checkpoint of Iris" in capsys.readouterr().err


def test_recipes_for_tokens_alone_differ_in_optimiser_and_rate_only() -> None:
    full, tokens = finetune_recipe("small"), finetune_recipe("small", "tokens")
    assert tokens.optimisation == replace(full.optimisation, optimiser="adamw", peak_rate=TOKEN_RATE)
    of_tokens = full.optimisation.vector_rate_fraction * full.optimisation.peak_rate
    assert of_tokens < TOKEN_RATE, "few weights, which start where they work, take larger steps"
    assert replace(tokens, optimisation=full.optimisation, finetune=full.finetune) == full
