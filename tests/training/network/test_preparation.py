"""How scans were prepared is told with the weights, wherever they lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storage import Store, create_store
from training.errors import CheckpointError
from training.network.iris import Iris
from training.network.preparation import TrainedOn, preparation_warning
from training.network.weights import ModelCard, export_weights, load_checkpoint
from training.pretraining.config import ModelConfig, PretrainConfig, small
from training.pretraining.run import pretrain

CHANNELS = (2, 4, 4, 8, 32)
TOLD = TrainedOn(spacing_mm=1.25, ingest={"margin_mm": 3.0}, crop_voxels=(32, 48, 16))


def card(told: TrainedOn) -> ModelCard:
    return ModelCard(
        title="t", recipe="", store_digest="", num_scans=1, num_steps=1, weights="ema", trained_on=told
    )


def test_exported_weights_and_their_card_tell_it(tmp_path: Path) -> None:
    text = export_weights(Iris(CHANNELS, 1), tmp_path / "w.safetensors", card(TOLD)).read_text()
    loaded = load_checkpoint(tmp_path / "w.safetensors").trained_on
    assert loaded == TOLD
    assert loaded.ingest_settings == {"margin_mm": 3.0, "spacing_mm": 1.25}
    assert "| spacing | 1.25 mm |" in text
    assert "| crop | 32 x 48 x 16 voxels |" in text


def test_a_published_checkpoint_tells_nothing_and_is_taken_at_the_published_spacing(tmp_path: Path) -> None:
    torch.save({"ema_model": Iris(CHANNELS, 1).state_dict()}, tmp_path / "mass_base.pth")
    assert load_checkpoint(tmp_path / "mass_base.pth").trained_on == TrainedOn()
    assert TrainedOn().ingest_settings == {"spacing_mm": 1.5}


def test_a_run_begun_before_it_was_recorded_tells_its_crop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save({"ema_model": Iris(CHANNELS, 1).state_dict()}, tmp_path / "checkpoints" / "step-1.pt")
    (tmp_path / "run.json").write_text(json.dumps({"format": "mass3d run"}))
    (tmp_path / "config.toml").write_text("[data]\ncrop_voxels = 48\n")
    loaded = load_checkpoint(tmp_path / "checkpoints" / "step-1.pt").trained_on
    assert loaded == TrainedOn(crop_voxels=(48, 48, 48))
    (tmp_path / "run.json").write_text(json.dumps({"trained_on": TOLD.to_json()}))
    assert load_checkpoint(tmp_path / "checkpoints" / "step-1.pt").trained_on == TOLD


def test_a_training_records_what_its_store_was_prepared_with(phantom_store: Store, tmp_path: Path) -> None:
    base = small()
    config: PretrainConfig = replace(
        base,
        model=ModelConfig(channels=CHANNELS, num_tasks=1),
        data=replace(base.data, crop_voxels=(16, 16, 32), cut_voxels=(20, 20, 32), min_mask_voxels=20),
        optimisation=replace(base.optimisation, num_steps=1, batch_size=1),
        run=replace(base.run, num_workers=0, evaluate_every=0, draw_every=0, checkpoint_every=1),
    )
    pretrain(phantom_store.path, tmp_path / "run", config, device="cpu")
    told = TrainedOn.of_store(phantom_store, (16, 16, 32))
    assert told.spacing_mm == phantom_store.info.spacing_mm
    (tmp_path / "elsewhere").mkdir()
    for name in ("weights.safetensors", "checkpoints/step-00000001.pt"):
        moved = (tmp_path / "run" / name).rename(tmp_path / "elsewhere" / Path(name).name)
        assert load_checkpoint(moved).trained_on == told


def test_a_folder_stands_for_the_weights_of_the_run_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a folder without weights.safetensors"):
        load_checkpoint(tmp_path)
    export_weights(Iris(CHANNELS, 1), tmp_path / "weights.safetensors", card(TOLD))
    assert load_checkpoint(tmp_path).trained_on == TOLD


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        (TrainedOn(spacing_mm=1.5), []),
        (TrainedOn(), []),
        (TrainedOn(spacing_mm=1.5, ingest={"ct_window_hu": (-991.0, 500), "frame": 2}), []),
        (TrainedOn(spacing_mm=2.0), ["voxels measure 1.5 mm, those that the network was trained on 2 mm"]),
        (
            TrainedOn(spacing_mm=1.5, ingest={"ct_window_hu": [-200, 300], "crop": False}),
            ["prepared with ct_window_hu = [-991.0, 500.0], the training's scans with [-200.0, 300.0]"],
        ),
        (TrainedOn(spacing_mm=1.0, ingest={"margin_mm": 3.0}), ["trained on 1 mm", "margin_mm = 10.0"]),
    ],
)
def test_a_store_unlike_the_training_is_told_of_in_one_sentence(
    told: TrainedOn, parts: list[str], tmp_path: Path
) -> None:
    ingest = {"spacing_mm": 1.5, "ct_window_hu": [-991.0, 500.0], "margin_mm": 10.0, "frame": None}
    text = preparation_warning(
        told, create_store(tmp_path / "store", spacing_mm=1.5, config={"ingest": ingest})
    )
    assert bool(text) == bool(parts)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_that_the_published_voxel_size_is_an_assumption_is_said(tmp_path: Path) -> None:
    text = preparation_warning(TrainedOn(), create_store(tmp_path / "store", spacing_mm=3.0, config={}))
    assert "trained on 1.5 mm (taken from the paper: the file does not say)" in text


def test_incomplete_records_are_refused() -> None:
    assert TrainedOn.from_json(None) is None
    with pytest.raises(ValueError, match="incomplete"):
        TrainedOn.from_json({"spacing_mm": 1.5})
