"""Commands that read or change a store at a URL give there what they give on disk, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands.main import main
from storage import StoreUrl
from tests.storage.access.object_server import new_url, s3_server, set_variables
from tests.training.phantom_store import make_phantom_store
from training.network.weights import ModelCard, export_weights
from training.pretraining.config import ModelConfig

FINETUNE = """
[finetune]
holdout_fraction = 0.0
[data]
crop_voxels = 16
cut_voxels = 16
[optimisation]
num_steps = 1
batch_size = 1
precision = "float32"
[inference]
reference_voxels = [32, 32, 32]
overlap_fraction = 0.0
[run]
num_workers = 0
evaluate_every = 0
draw_every = 0
"""

LABELS = "id,class,split\nphantom-0,a,train\nphantom-1,b,train\nphantom-2,a,test\nphantom-3,b,test\n"


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store that is not there yet, on a real S3 server."""
    with s3_server() as endpoint:
        set_variables(monkeypatch, endpoint)
        monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", "60")
        yield new_url()


def run(words: list[str]) -> None:
    assert main(words) == 0, words


def results(folder: Path) -> dict[str, bytes]:
    """What was made in a folder, without names, times and curves."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".npz", ".csv", ".safetensors", ".gz", ".png")
    }


@pytest.mark.long
def test_each_command_gives_at_a_url_what_it_gives_on_disk(url: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, weights = ModelConfig(channels=(4, 4, 8, 8, 8), num_tasks=1).make(), tmp_path / "w.safetensors"
    export_weights(
        net,
        weights,
        ModelCard(title="t", recipe="", store_digest="", num_scans=1, num_steps=1, weights="ema"),
    )
    (tmp_path / "fine.toml").write_text(FINETUNE)
    (tmp_path / "labels.csv").write_text(LABELS)
    stores = [make_phantom_store(tmp_path / "store"), make_phantom_store(url)]  # type: ignore[arg-type]
    assert isinstance(stores[1].path, StoreUrl)
    made = []
    for number, store in enumerate(stores):
        path, out = str(store.path), tmp_path / str(number)
        out.mkdir()
        net_words, cpu = [str(weights), path], ["--device", "cpu"]
        run(["embed", *net_words, "--out", str(out / "f.npz"), "--window", "32", *cpu])
        quick = ["--prompts", "1", "--targets", "1", "--resamples", "100", "--window", "32", "32", "32"]
        run(["evaluate", *net_words, "--csv", str(out / "e.csv"), *quick, *cpu])
        labels = ["--labels", str(tmp_path / "labels.csv"), "--mode", "frozen-linear"]
        run(["classify", *net_words, str(out / "c"), *labels, *cpu])
        fine = ["--recipe", "small", "--config", str(tmp_path / "fine.toml"), "--num", "2"]
        run(["finetune", *net_words, str(out / "t"), *fine, *cpu])
        run(["score", path, "--csv", str(out / "s.csv")])
        made.append(results(out))
    assert made[0] == made[1]
    assert len(made[0]) > 5
