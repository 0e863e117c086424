"""A set of small scans from its file to classes told: `mass prepare`, `mass classify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from commands.main import main
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings, wanted_digests
from commands.prepare.work import Options
from storage import open_store
from training.classification.heads import export_encoder
from training.network.iris import Iris


@pytest.fixture
def nodules(tmp_path: Path) -> Path:
    """Six training and four test scans; those of class 1 have a bright ball."""
    generator = np.random.default_rng(0)
    values = {}
    for split, count in (("train", 6), ("test", 4)):
        images = generator.integers(60, 110, (count, 20, 20, 20))
        labels = np.arange(count) % 2
        ball = sum((axis - 10) ** 2 for axis in np.indices((20, 20, 20))) < 25
        images[labels == 1] += 120 * ball
        values |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    path = tmp_path / "nodule.npz"
    np.savez_compressed(path, **values)
    return path


def test_a_set_is_prepared_once_and_its_classes_are_told(
    nodules: Path, tmp_path: Path, settings: Settings
) -> None:
    store = tmp_path / "store"
    report = prepare_store(nodules, store, settings, Options())
    assert (report.exit_code, len(report.committed), report.failed) == (0, 10, ())
    made = open_store(store)
    entry = made.entries["nodule_test_0001"]
    assert (entry.shape_zyx, entry.dataset, entry.split) == ((20, 20, 20), "nodule", "test")
    assert made.scan("nodule_test_0001").attributes["class"] == "1"
    assert made.scan("nodule_test_0002").attributes["class"] == "0"
    again = prepare_store(nodules, store, settings, Options())
    assert (again.exit_code, again.committed, len(again.skipped)) == (0, (), 10)

    torch.manual_seed(0)
    export_encoder(tmp_path / "net.safetensors", Iris((4, 8, 16, 16, 16), 1))
    run = tmp_path / "run"
    arguments = ["classify", tmp_path / "net.safetensors", store, run, "--mode", "frozen-linear"]
    assert main([*map(str, arguments), "--device", "cpu"]) == 0
    assert "| 1 | 2 | 1.000" in (run / "results.md").read_text()


def test_a_setting_that_came_later_leaves_stores_fresh_until_it_is_set(settings: Settings) -> None:
    values = settings.values()
    unset = wanted_digests(values)
    older = {**values, "ingest": {k: v for k, v in values["ingest"].items() if k != "set_spacing_mm"}}
    assert wanted_digests(older).ingest == unset.ingest
    values["ingest"]["set_spacing_mm"] = 2.0
    assert wanted_digests(values).ingest != unset.ingest
