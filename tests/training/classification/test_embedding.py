"""Features of whole scans: pooled over space, whatever the windows; written whole or not at all."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from commands.main import main
from storage import Store
from tests.training.drawn_checkpoint import export
from training.classification.embedding import (
    EmbeddingConfig,
    embedding_for,
    encode_scan,
    feature_names,
    write_features,
)
from training.data.whole_scans import to_window
from training.errors import ConfigError
from training.network.iris import Iris
from training.network.preparation import TrainedOn
from training.network.sealing import weights_digest

CHANNELS = (4, 8, 16, 16, 16)


class Brightness(nn.Module):
    """An encoder of one channel a stage: the image, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.shapes.append(tuple(image.shape[2:]))
        assert not torch.is_grad_enabled()
        assert not self.training
        return tuple(nn.functional.avg_pool3d(image, scale) for scale in (16, 8, 4, 2, 1))


def image_of(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(3)
    return Iris(CHANNELS, 1, position_std=0.02).eval()


def test_pooled_features_are_means_of_every_stage_and_the_maximum_of_the_deepest(net: Iris) -> None:
    image = image_of((32, 16, 48))
    found = encode_scan(net.encoder, image, EmbeddingConfig())
    with torch.no_grad():
        features = net.encoder(torch.from_numpy(image)[None, None])
    expected = [feature.mean(dim=(2, 3, 4))[0] for feature in reversed(features)]
    expected.append(features[0].amax(dim=(2, 3, 4))[0])
    assert torch.allclose(found.pooled, torch.cat(expected), atol=1e-6)
    assert len(found.pooled) == len(feature_names(CHANNELS)) == sum(CHANNELS) + CHANNELS[-1]
    assert feature_names(CHANNELS)[:2] == ("mean_1_000", "mean_1_001")
    assert feature_names(CHANNELS)[-1] == "max_16_015"
    assert found.tokens.shape == (2 * 1 * 3, sum(CHANNELS))
    assert torch.allclose(found.tokens.mean(0), found.pooled[: sum(CHANNELS)], atol=1e-5)


def test_a_scan_larger_than_a_window_is_seen_whole() -> None:
    net = Brightness().eval()
    image = image_of((64, 32, 32))
    image[50:, 20:, 20:] += 5  # in one window only
    found = encode_scan(net, image, EmbeddingConfig(window_voxels=(32, 32, 16)))
    assert net.shapes == [(32, 32, 16)] * 4
    assert found.tokens.shape == (4 * 2 * 2 * 1, 5)
    assert found.pooled[:5] == pytest.approx([float(image.mean())] * 5, abs=1e-5)
    deepest = image.reshape(4, 16, 2, 16, 2, 16).mean(axis=(1, 3, 5))
    assert found.pooled[5] == pytest.approx(float(deepest.max()), abs=1e-5)


@pytest.mark.parametrize("shape", [(20, 17, 33), (5, 5, 5), (28, 28, 28)])
def test_a_small_scan_is_padded_with_its_darkest_value_up_to_the_window(shape: tuple[int, int, int]) -> None:
    net = Brightness().eval()
    image = image_of(shape)
    found = encode_scan(net, image, EmbeddingConfig())
    window = tuple(-(-side // 16) * 16 for side in shape)
    assert net.shapes == [window]
    around = (math.prod(window) - image.size) * float(image.min())
    mean = (float(image.sum(dtype=np.float64)) + around) / math.prod(window)
    assert found.pooled[:5].tolist() == pytest.approx([mean] * 5, abs=1e-3)


def test_tokens_are_averaged_until_they_are_few_and_their_mean_stays() -> None:
    net = Brightness().eval()
    image = image_of((64, 64, 64))
    many = encode_scan(net, image, EmbeddingConfig())
    few = encode_scan(net, image, EmbeddingConfig(max_tokens=10))
    assert (len(many.tokens), len(few.tokens)) == (64, 8)
    assert torch.allclose(few.tokens.mean(0), many.tokens.mean(0), atol=1e-6)
    assert torch.equal(few.pooled, many.pooled)


def test_the_digest_tells_encoders_apart(net: Iris) -> None:
    torch.manual_seed(4)
    other = Iris(CHANNELS, 1)
    assert weights_digest(net.encoder) != weights_digest(other.encoder)
    other.encoder.load_state_dict(net.encoder.state_dict())
    assert weights_digest(net.encoder) == weights_digest(other.encoder)


@pytest.mark.parametrize("values", [{"window_voxels": (20, 16, 16)}, {"max_tokens": 0}])
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EmbeddingConfig(**values)


# --- mass embed


def test_a_whole_scan_is_one_window_however_large_it_is() -> None:
    net, image = Brightness().eval(), image_of((40, 70, 50))
    config = embedding_for(TrainedOn(crop_voxels=(16, 32, 16), whole_scans=True))
    found = encode_scan(net, image, config)
    assert net.shapes == [(16, 32, 16)]
    expected = torch.from_numpy(to_window(image, (16, 32, 16)))[None, None]
    torch.testing.assert_close(found.pooled[0], expected.mean())
    assert len(found.tokens) == 2
    for crops in (TrainedOn(), TrainedOn(crop_voxels=(16, 32, 16))):
        assert embedding_for(crops) == EmbeddingConfig()


def test_the_command_shows_scans_as_in_training(
    net: Iris, phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "net.safetensors", tmp_path / "f.npz"
    export(net, checkpoint, TrainedOn(spacing_mm=1.5, crop_voxels=(16, 32, 16), whole_scans=True))
    arguments = ["embed", str(checkpoint), str(phantom_store.path), "--out", str(out), "--device", "cpu"]
    image = phantom_store.scan(phantom_store.scan_ids[1]).image(normalize=True)
    for more, config in (
        ([], EmbeddingConfig(window_voxels=(16, 32, 16), whole_scans=True)),
        (["--window", "32"], EmbeddingConfig(window_voxels=(32, 32, 32))),
    ):
        assert main([*arguments, *more]) == 0
        assert ("shown whole, in a window of 16 x 32 x 16" in capsys.readouterr().out) == (not more)
        with np.load(out) as file:
            np.testing.assert_allclose(
                file["features"][1], encode_scan(net.encoder, image, config).pooled.numpy(), atol=1e-6
            )


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_the_command_writes_the_features_of_every_scan(
    suffix: str, net: Iris, phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "net.safetensors", tmp_path / f"f.{suffix}"
    export(net, checkpoint, TrainedOn(spacing_mm=1.5 if suffix == "npz" else 1.0))
    arguments = [str(checkpoint), str(phantom_store.path), "--out", str(out), "--window", "32"]
    assert main(["embed", *arguments, "--device", "cpu"]) == 0
    assert ("trained on 1 mm" in capsys.readouterr().out) == (suffix == "csv")
    if suffix == "npz":
        with np.load(out) as file:
            ids, rows, names = file["ids"].tolist(), file["features"], tuple(file["names"].tolist())
            assert str(file["encoder"]) == weights_digest(net.encoder)
            assert rows.dtype == np.float32
    else:
        with out.open(newline="") as text:
            head, *lines = csv.reader(text)
        assert head[:3] == ["id", "dataset", "split"]
        ids, names = [line[0] for line in lines], tuple(head[3:])
        rows = np.array([line[3:] for line in lines], dtype=np.float32)
    assert ids == list(phantom_store.scan_ids)
    assert names == feature_names(CHANNELS)
    scan = phantom_store.scan(ids[1])
    config = EmbeddingConfig(window_voxels=(32, 32, 32))
    expected = encode_scan(net.encoder, scan.image(normalize=True), config).pooled
    np.testing.assert_allclose(rows[1], expected.numpy(), rtol=1e-4, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    phantom_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.classification.embedding.np.savez_compressed", fail)
    pooled = {phantom_store.scan_ids[0]: np.zeros(sum(CHANNELS) + CHANNELS[-1], np.float32)}
    with pytest.raises(OSError, match="No space left"):
        write_features(path, phantom_store, pooled, channels=CHANNELS, encoder="x")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"), [("f.txt", "written as .npz or .csv"), ("folder.csv", "a folder is in the file's")]
)
def test_a_file_of_another_kind_is_refused_before_any_work(
    name: str, message: str, phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.csv").mkdir()
    arguments = ["embed", "nowhere.pt", str(phantom_store.path), "--out", str(tmp_path / name)]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
