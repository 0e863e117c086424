"""`mass export-weights`: every format from every kind of checkpoint, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from commands.main import main
from tests.training.drawn_checkpoint import drawn_net, export
from tests.training.finetuning.test_run import TINY
from tests.training.network.test_nnunet import PLANNED
from tests.training.phantom_store import make_phantom_store
from training.finetuning.run import finetune
from training.inference import load_finetuned
from training.network import load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of a step, and the weights that it started from."""
    made = tmp_path_factory.mktemp("export")
    store = make_phantom_store(made / "store")
    net = drawn_net()
    plain = export(net, made / "plain.safetensors")
    config = replace(TINY, optimisation=replace(TINY.optimisation, num_steps=1))
    finetune(plain, store.path, made / "run", config, device="cpu")
    torch.save({"model": net.state_dict(), "ema_model": net.state_dict()}, made / "published.pth")
    (made / "nnUNetPlans.json").write_text(json.dumps(PLANNED))
    return made


def run(folder: Path, checkpoint: str, out: Path, *options: str) -> tuple[int, dict[str, object]]:
    told = out.with_suffix(".told.json")
    code = main(["export-weights", str(folder / checkpoint), str(out), *options, "--json", str(told)])
    return code, json.loads(told.read_text()) if told.exists() else {}


def checkpoint_of(folder: Path) -> str:
    (path,) = (folder / "run" / "checkpoints").glob("step-*.pt")
    return str(path.relative_to(folder))


def test_safetensors_of_a_run_are_its_weights_and_card_as_they_are(folder: Path, tmp_path: Path) -> None:
    code, told = run(folder, "run", tmp_path / "out", "--format", "safetensors")
    assert code == 0
    assert told["files"] == [str(tmp_path / "out" / name) for name in ("weights.safetensors", "weights.md")]
    exported = (tmp_path / "out" / "weights.safetensors").read_bytes()
    assert exported == (folder / "run" / "weights.safetensors").read_bytes()


def test_safetensors_of_a_checkpoint_keep_structures_steps_and_preparation(
    folder: Path, tmp_path: Path
) -> None:
    code, _ = run(folder, checkpoint_of(folder), tmp_path / "out", "--format", "safetensors")
    assert code == 0
    card = (tmp_path / "out" / "weights.md").read_text()
    assert "| steps | 1 |" in card
    assert "| scans | not recorded |" not in card
    exported = tmp_path / "out" / "weights.safetensors"
    one, other = load_finetuned(exported), load_finetuned(folder / checkpoint_of(folder))
    assert one.table == other.table
    assert one.net.trained_on == other.net.trained_on
    for name, tensor in other.net.state_dict().items():
        assert torch.equal(one.net.state_dict()[name], tensor)


def test_safetensors_of_the_published_form_say_that_nothing_is_recorded(folder: Path, tmp_path: Path) -> None:
    code, _ = run(folder, "published.pth", tmp_path / "out", "--format", "safetensors")
    assert code == 0
    card = (tmp_path / "out" / "weights.md").read_text()
    assert "| steps | not recorded |" in card
    assert "| store digest | not recorded |" in card
    with safe_open(tmp_path / "out" / "weights.safetensors", framework="pt") as file:
        assert "mass3d" in file.metadata()
    assert load_checkpoint(tmp_path / "out" / "weights.safetensors").channels == (8, 8, 16, 16, 32)


@pytest.mark.parametrize("checkpoint", ["run", "plain.safetensors", "published.pth"])
def test_torchscript_comes_from_every_kind_of_checkpoint(
    folder: Path, tmp_path: Path, checkpoint: str
) -> None:
    code, told = run(folder, checkpoint, tmp_path / "out", "--format", "torchscript")
    assert code == 0
    assert (tmp_path / "out" / "encoder.ts").stat().st_size > 10_000
    # The run records its crops; of the others only the published crop is known.
    assert told["image"]["crop_voxels"] == [32 if checkpoint == "run" else 128] * 3  # type: ignore[index]


def test_nnunet_gets_plans_and_weights_and_the_terminal_the_next_commands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = ("--plans", str(folder / "nnUNetPlans.json"), "--name", "mine")
    code, _ = run(folder, "run", tmp_path / "out", "--format", "nnunet", *plans)
    assert code == 0
    written = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert written["configurations"]["3d_fullres"]["patch_size"] == [32] * 3
    weights = torch.load(tmp_path / "out" / "mine.pth", weights_only=True)["network_weights"]
    encoder = load_checkpoint(folder / "run").encoder.state_dict()
    assert torch.equal(
        weights["encoder.down1.conv.1.conv1.conv.weight"], encoder["down1.conv.1.conv1.conv.weight"]
    )
    assert f"-p mine -pretrained_weights {tmp_path / 'out' / 'mine.pth'}" in capsys.readouterr().out


def test_monai_gets_features_or_the_structures_of_a_fine_tuning(folder: Path, tmp_path: Path) -> None:
    code, _ = run(folder, "run", tmp_path / "features", "--format", "monai", "--modality", "mr")
    assert code == 0
    config = json.loads((tmp_path / "features" / "configs" / "inference.json").read_text())
    assert config["network_def"]["_target_"] == "training.network.Encoder"
    code, _ = run(folder, "run", tmp_path / "labels", "--format", "monai", "--finetuned")
    assert code == 0
    metadata = json.loads((tmp_path / "labels" / "configs" / "metadata.json").read_text())
    assert metadata["label_values"] == {"organ": 1, "lung": 3}
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "CT"


def test_what_cannot_be_exported_is_refused_and_nothing_is_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(reason: str, *options: str, checkpoint: str = "plain.safetensors") -> None:
        assert run(folder, checkpoint, tmp_path / "out", *options)[0] == 2
        assert reason in capsys.readouterr().err

    refused("--format nnunet needs --plans FILE", "--format", "nnunet")
    refused("--plans belongs to --format nnunet", "--format", "onnx", "--plans", "x.json")
    refused("--modality belongs to --format monai", "--format", "onnx", "--modality", "ct")
    refused("--format monai needs --modality", "--format", "monai")
    refused("not fine-tuned", "--format", "monai", "--finetuned")
    refused("there is no such file", "--format", "onnx", checkpoint="nowhere.pt")
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out" / "encoder.ts"
    kept.parent.mkdir()
    kept.write_text("mine")
    refused("there is a file of this name", "--format", "torchscript")
    assert kept.read_text() == "mine"
