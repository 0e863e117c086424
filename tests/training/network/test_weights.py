"""Weights to and from files: published, run and exported; what is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from training.errors import CheckpointError, ConfigError
from training.network.iris import Iris
from training.network.weights import (
    POSITION_VOLUMES,
    SHIPPED,
    WEIGHTS,
    ModelCard,
    convert_weights,
    export_weights,
    in_fixed_order,
    installed_versions,
    load_checkpoint,
    weights_file,
)

CHANNELS = (2, 4, 4, 8, 32)
CARD = ModelCard(
    title="Tiny Iris",
    recipe='crop_voxels = 32\n\n[optim]\nname = "adamw"\n',
    store_digest="3f2a",
    num_scans=12,
    num_steps=340,
    weights="ema",
    figures={"one-shot Dice": 0.41234},
)


@pytest.fixture(scope="module")
def nets() -> tuple[Iris, Iris]:
    """Two networks of the same shape: the last weights and their average."""
    torch.manual_seed(0)
    return Iris(CHANNELS, 3), Iris(CHANNELS, 3)


def same(got: Iris, wanted: Iris) -> bool:
    one, other = got.state_dict(), wanted.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_published_form_loads_its_average_or_its_last_weights(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    model, average = nets
    path = tmp_path / "mass_base.pth"
    torch.save({"model": model.state_dict(), "ema_model": OrderedDict(average.state_dict())}, path)
    loaded = load_checkpoint(path)
    assert loaded.channels == CHANNELS
    assert loaded.num_tasks == 3
    assert not loaded.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    assert same(loaded, average)
    assert same(load_checkpoint(path, weights="model"), model)


def test_keys_that_ddp_averaging_and_compile_wrapped_load_too(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    wrapped: dict[str, Tensor] = {"n_averaged": torch.tensor(7)}
    wrapped |= {f"module._orig_mod.{name}": tensor for name, tensor in nets[1].state_dict().items()}
    torch.save({"ema_model": wrapped, "step": 4}, tmp_path / "step-4.pt")
    assert same(load_checkpoint(tmp_path / "step-4.pt"), nets[1])


def test_half_precision_weights_load_as_float32(nets: tuple[Iris, Iris], tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in nets[0].state_dict().items()}, tmp_path / "half.pt")
    loaded = load_checkpoint(tmp_path / "half.pt")
    assert next(loaded.parameters()).dtype == torch.float32


def test_the_published_weights_load_from_a_checkpoint_file(tmp_path: Path) -> None:
    with np.load(Path(__file__).parent / "parity" / "iris_reference_weights.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    torch.save({"model": state, "ema_model": state}, tmp_path / "published.pth")
    loaded = load_checkpoint(tmp_path / "published.pth")
    assert (loaded.channels, loaded.num_tasks) == ((8, 16, 32, 64, 96), 4)
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in loaded.state_dict().items())


class Hostile:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model": Hostile(marker), "ema_model": {}}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"hostile\.pth: holds more than tensors.*refused"):
        load_checkpoint(tmp_path / "hostile.pth")
    assert not marker.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert marker.exists()  # the file does run code where it is trusted


def test_files_that_are_no_checkpoint_of_iris_are_named_with_the_reason(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    def refused(name: str, document: object, reason: str) -> None:
        path = tmp_path / name
        torch.save(document, path)
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)

    state = nets[0].state_dict()
    refused("last.pt", {"model": state}, "no 'ema_model' weights")
    refused("tensor.pt", torch.zeros(3), "a dict of state dicts is expected")
    refused("config.pt", {"model": {"lr": 1.0}, "ema_model": {"lr": 1.0}}, "no state dict in it")
    refused("other.pt", {"fc.weight": torch.zeros(3, 3)}, "it has no 'encoder.inc.conv1.weight'")
    lacking = {name: tensor for name, tensor in state.items() if name != "out.norm.bias"}
    refused("lacking.pt", lacking, r"does not fit Iris:.*out\.norm\.bias")
    refused("bent.pt", state | {"out.norm.bias": torch.zeros(5)}, "does not fit Iris")
    refused("more.pt", state | {"extra.weight": torch.zeros(5)}, r"does not fit Iris:.*extra\.weight")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_cut_file_is_refused(nets: tuple[Iris, Iris], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(nets[0].state_dict(), path)
    else:
        export_weights(nets[0], path, CARD)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_checkpoint(tmp_path / "nothing.pth")


def test_exported_weights_load_again_and_name_their_architecture(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    path = tmp_path / "out" / "tiny.safetensors"
    export_weights(nets[0], path, CARD)
    assert same(load_checkpoint(path), nets[0])
    with safe_open(path, framework="pt") as file:
        architecture = json.loads(file.metadata()["mass3d"])
    assert architecture == {"channels": list(CHANNELS), "num_tasks": 3, "store_digest": "3f2a"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.md", "tiny.safetensors"]


def test_the_model_card_holds_recipe_digest_and_versions(nets: tuple[Iris, Iris], tmp_path: Path) -> None:
    card = export_weights(nets[0], tmp_path / "tiny.safetensors", CARD).read_text()
    assert card.startswith("# Tiny Iris\n")
    assert f"```toml\n{CARD.recipe.strip()}\n```" in card
    assert "| store digest | `3f2a` |" in card
    assert "| one-shot Dice | 0.4123 |" in card
    assert "channels 2-4-4-8-32" in card
    assert 'load_checkpoint("tiny.safetensors")' in card
    for name, version in installed_versions().items():
        assert f"| version of {name} | {version} |" in card


def test_a_file_of_weights_has_the_same_bytes_whatever_the_order_of_its_metadata() -> None:
    tensors = {"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.int16)}
    names = [f"name{k}" for k in range(12)]
    files = {in_fixed_order(save(tensors, metadata=dict.fromkeys(names, "é"))) for _ in range(20)}
    assert len(files) == 1
    (written,) = files
    found = load(written)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert int.from_bytes(written[:8], "little") % 8 == 0


def test_exported_weights_must_be_called_safetensors(nets: tuple[Iris, Iris], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        export_weights(nets[0], tmp_path / "tiny.pt", CARD)


def test_compact_weights_are_an_eighth_of_the_bytes_and_nearly_the_same_network(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    net = nets[0]
    export_weights(net, tmp_path / "all.safetensors", CARD)
    card = convert_weights(tmp_path / "all.safetensors", tmp_path / "compact.safetensors", compact=True)
    loaded = load_checkpoint(tmp_path / "compact.safetensors")
    wanted = net.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name.endswith(POSITION_VOLUMES):
            assert tensor.shape == wanted[name].shape
            assert not tensor.any()
        elif tensor.ndim < 2 or tensor.numel() < 1024:
            assert torch.equal(tensor, wanted[name].half().float()), name
        else:
            rows, original = tensor.flatten(1), wanted[name].flatten(1)
            half_a_step = original.abs().amax(1, keepdim=True) / 127 / 2
            assert ((rows - original).abs() <= 1.001 * half_a_step).all(), name
            assert not original.any() or not torch.equal(rows, original), name
    assert len([name for name in wanted if name.endswith(POSITION_VOLUMES)]) == 3
    volumes = 4 * sum(tensor.numel() for name, tensor in wanted.items() if name.endswith(POSITION_VOLUMES))
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("all", "compact")]
    assert sizes[1] < 0.35 * (sizes[0] - volumes)
    assert "int8" in card.read_text()
    assert CARD.title in card.read_text()


def test_a_file_without_position_volumes_that_does_not_say_so_is_refused(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    state = {name: t for name, t in nets[0].state_dict().items() if not name.endswith(POSITION_VOLUMES)}
    (tmp_path / "cut.safetensors").write_bytes(save(state))
    with pytest.raises(CheckpointError, match="does not fit Iris"):
        load_checkpoint(tmp_path / "cut.safetensors")


def test_weights_beyond_float16_are_not_made_compact(tmp_path: Path) -> None:
    net = Iris(CHANNELS, 1)
    with torch.no_grad():
        next(iter(net.encoder.parameters())).fill_(1e6)
    export_weights(net, tmp_path / "large.safetensors", CARD)
    with pytest.raises(CheckpointError, match="beyond float16"):
        convert_weights(tmp_path / "large.safetensors", tmp_path / "compact.safetensors", compact=True)
    assert not (tmp_path / "compact.safetensors").exists()


def test_the_shipped_weights_are_found_by_name_small_and_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = load_checkpoint("small-v1")
    assert net.trained_on.whole_scans
    assert net.channels == (8, 16, 32, 64, 64)
    file = weights_file("small-v1")
    assert file.stat().st_size < 5_000_000
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Apache-2.0", "CC BY-SA 4.0", "never seen", "[optimisation]"))


def test_a_file_of_the_user_comes_before_shipped_weights_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small-v1").mkdir()
    with pytest.raises(CheckpointError, match=r"without weights\.safetensors \(it hides"):
        load_checkpoint("small-v1")


def test_shipped_weights_that_are_not_there_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SHIPPED, "small-v1", tmp_path / "nowhere" / WEIGHTS)
    with pytest.raises(CheckpointError, match="come with a checkout"):
        load_checkpoint("small-v1")


def test_the_card_of_shipped_weights_goes_with_them(tmp_path: Path) -> None:
    card = convert_weights("small-v1", tmp_path / WEIGHTS, compact=True).read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in card
    assert card.count("## Bytes") == 1
    assert (tmp_path / WEIGHTS).read_bytes() == SHIPPED["small-v1"].read_bytes()


def test_half_precision_that_an_earlier_version_wrote_is_rounded_too(
    nets: tuple[Iris, Iris], tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in nets[0].state_dict().items()}
    (tmp_path / "old.safetensors").write_bytes(save(halves))
    convert_weights(tmp_path / "old.safetensors", tmp_path / "new.safetensors", compact=True)
    assert any(
        tensor.dtype == torch.int8 for tensor in load((tmp_path / "new.safetensors").read_bytes()).values()
    )
