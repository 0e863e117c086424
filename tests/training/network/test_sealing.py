"""A flipped bit or a cut in a file of weights is an error wherever it lies, or changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from training.engine.checkpoints import read_checkpoint, save_checkpoint
from training.errors import CheckpointError
from training.network.iris import Iris
from training.network.sealing import check_archive, check_seal, in_fixed_order
from training.network.weights import ModelCard, export_weights, load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and a checkpoint of a tiny network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tensors = {"a": torch.randn(300), "b": torch.arange(50)}
    (folder / "w.safetensors").write_bytes(in_fixed_order(save(tensors, metadata={"format": "pt", "é": "1"})))
    save_checkpoint(folder / "step-00000001.pt", {"model": tensors, "step": 1})
    return folder


def damages(whole: bytes) -> Iterator[bytes]:
    """The file with a bit flipped at many places, and cut short."""
    dice = random.Random(0)
    for place in [*range(0, len(whole), 13), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        yield bytes(damaged)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        yield whole[:length]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    check_seal(path)
    return load_file(path)


def read_model(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(path)["model"])


@pytest.mark.parametrize(
    ("name", "read"), [("w.safetensors", read_weights), ("step-00000001.pt", read_model)]
)
def test_no_damage_is_read_as_other_numbers(
    folder: Path, tmp_path: Path, name: str, read: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    expected = read(folder / name)
    refused = 0
    for data in damages((folder / name).read_bytes()):
        (tmp_path / name).write_bytes(data)
        try:
            found = read(tmp_path / name)
        except Exception:  # noqa: BLE001 - any error is a refusal
            refused += 1
            continue
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert refused > 30


def test_a_flipped_bit_in_exported_weights_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    net = Iris((4, 4, 8, 8, 8), 1)
    card = ModelCard(title="t", recipe="", store_digest="", num_scans=1, num_steps=1, weights="ema")
    export_weights(net, path, card)
    load_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged.*Copy it again"):
        load_checkpoint(path)


def test_files_of_others_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.ones(3)}))
    check_seal(tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check_archive(tmp_path / "old.pth")


def test_a_file_that_is_written_again_has_the_same_bytes(folder: Path) -> None:
    whole = (folder / "w.safetensors").read_bytes()
    assert in_fixed_order(whole) == whole
