"""Fine-tuning on whole scans: samples of both levels, and a network that is used as it was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from storage import Store
from tests.training.drawn_checkpoint import drawn_net, export
from training.data.augmentation import ViewAugmentation
from training.data.whole_scans import ScanView, cut_around, level_window, window_for
from training.engine.run_folder import to_toml
from training.errors import ConfigError
from training.finetuning.config import FinetuneConfig, finetune_recipe, with_chosen_window
from training.finetuning.labelled_samples import (
    LabelledDataConfig,
    LabelledSample,
    LabelReader,
    augment_labelled,
    collate_labelled,
)
from training.finetuning.run import finetune
from training.finetuning.scans import FinetuneTaskConfig, find_structures
from training.inference.prediction import predict_labels
from training.inference.prompted import load_finetuned
from training.inference.prompts import inference_for
from training.inference.segmentation import SegmentConfig, Segmenter
from training.network.preparation import TrainedOn

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = (16, 16, 16)
VIEWS = LabelledDataConfig(crop_voxels=WINDOW, cut_voxels=(22, 22, 22), whole_fraction=0.5)
SMALL = finetune_recipe("small")
WHOLE = replace(
    finetune_recipe("whole"),
    finetune=FinetuneTaskConfig(values=(1, 3), num_scans=2, holdout_fraction=0.0, max_reported=1),
    data=replace(VIEWS, max_window_voxels=16**3, wide_fraction=0.0),
    augmentation=ViewAugmentation(affine_probability=0.0, intensity_probability=0.0),
    optimisation=replace(
        SMALL.optimisation, num_steps=3, batch_size=1, peak_rate=3e-3, ema_decay=0.8, precision="float32"
    ),
    run=replace(SMALL.run, num_workers=0, log_every=1, evaluate_every=0, draw_every=0),
)


def read(
    store: Store, config: LabelledDataConfig, count: int, values: tuple[int, ...] = ()
) -> list[LabelledSample]:
    structures = find_structures(store, "structures", store.scan_ids, values)
    reader = LabelReader(store.path, store.scan_ids, "structures", structures, config, seed=0)
    return [reader.read(index) for index in range(count)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a network that was trained on whole scans."""
    told = TrainedOn(spacing_mm=1.5, crop_voxels=WINDOW, whole_scans=True)
    return export(drawn_net(), tmp_path_factory.mktemp("checkpoint") / "weights.safetensors", told)


@pytest.fixture(scope="module")
def tuned(phantom_store: Store, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with its report."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    finetune(checkpoint, phantom_store.path, folder, WHOLE, device="cpu")
    return folder


# ------------------------------------------------------------ samples


@pytest.mark.parametrize("whole_fraction", [1.0, 1e-9])
def test_words_and_codes_are_those_of_the_nearest_voxels_of_the_view(
    phantom_store: Store, whole_fraction: float
) -> None:
    config = replace(VIEWS, whole_fraction=whole_fraction, cut_voxels=WINDOW)
    for sample in read(phantom_store, config, 6):
        scan = phantom_store.scan(sample.scan_id)
        assert isinstance(sample.crop, ScanView)
        assert sample.words.shape == sample.codes.shape == WINDOW
        level = scan.level_for(level_window(sample.crop, scan.shape, WINDOW))
        places = sample.crop.positions(WINDOW, level.factors_zyx)
        nearest = [np.floor(along + 0.5).astype(int) for along in places]
        z, y, x = (np.clip(n, 0, size - 1) for n, size in zip(nearest, level.shape_zyx, strict=True))
        labels = np.array(scan.labels("structures", level=level)[z[:, None, None], y[:, None], x])
        for axis, (n, size) in enumerate(zip(nearest, level.shape_zyx, strict=True)):
            np.moveaxis(labels, axis, 0)[(n < 0) | (n >= size)] = 0
        for bit, structure in enumerate(sample.structures):
            np.testing.assert_array_equal((sample.words >> bit) & 1, labels == structure + 1)


def test_samples_show_the_whole_scan_or_structures_larger_and_more_of_them(phantom_store: Store) -> None:
    coarse, fine = (read(phantom_store, replace(VIEWS, whole_fraction=part), 8, (2,)) for part in (1.0, 1e-9))
    moved = [sample for sample in coarse if sample.crop.size == phantom_store.scan(sample.scan_id).shape]
    assert 0 < len(moved) < 8  # the others are wide views
    volumes = [np.prod(sample.crop.size) for sample in fine]
    assert max(volumes) < np.prod(phantom_store.scan(fine[0].scan_id).shape)
    both = read(phantom_store, VIEWS, 16, (2,))
    assert 0 < sum(sample.crop.size == phantom_store.scan(sample.scan_id).shape for sample in both) < 16
    for sample in fine:
        assert sample.words.any()


def test_a_scan_as_large_as_the_window_is_always_shown_whole(phantom_store: Store) -> None:
    config = LabelledDataConfig(
        crop_voxels=(32, 48, 32), cut_voxels=(32, 48, 32), whole_fraction=1e-9, wide_fraction=0.0
    )
    for sample in read(phantom_store, config, 4):
        assert sample.crop.size == phantom_store.scan(sample.scan_id).shape


def test_views_are_augmented_like_crops(phantom_store: Store) -> None:
    batch = collate_labelled(read(phantom_store, VIEWS, 2), config=VIEWS, seed=0)
    views = augment_labelled(batch, ViewAugmentation(affine_probability=1.0))
    assert views.image.shape == (2, 1, *WINDOW)
    assert views.masks.any()


@pytest.mark.parametrize(
    "change", [{"whole_fraction": 1.5}, {"max_window_voxels": -1}, {"max_fine_windows": -1}]
)
def test_settings_of_views_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        LabelledDataConfig(**change)


# ------------------------------------------------------------ the window


def test_the_window_is_that_of_the_checkpoint_or_else_chosen_for_the_scans() -> None:
    config, shapes = finetune_recipe("whole"), [(33, 128, 108)]
    own = TrainedOn(crop_voxels=(16, 64, 48), whole_scans=True)
    chosen = with_chosen_window(config, own, shapes)
    assert chosen.data.crop_voxels == chosen.inference.window_voxels == (16, 64, 48)
    assert chosen.data.cut_voxels == cut_around((16, 64, 48))
    assert (chosen.inference.whole_scans, chosen.inference.fine_windows) == (True, 8)
    for other in (TrainedOn(), replace(own, whole_scans=False)):
        chosen = with_chosen_window(config, other, shapes)
        assert chosen.data.crop_voxels == window_for(shapes, 65_536)
    larger = replace(config.data, max_window_voxels=262_144, choose_window=True)
    chosen = with_chosen_window(replace(config, data=larger), own, shapes)
    assert chosen.data.crop_voxels == chosen.inference.window_voxels == window_for(shapes, 262_144)
    for name in ("published", "small"):
        crops = finetune_recipe(name)
        assert with_chosen_window(crops, own, shapes) == crops
    fixed = replace(config, data=replace(config.data, max_window_voxels=0, crop_voxels=32, cut_voxels=44))
    assert with_chosen_window(fixed, own, shapes).inference.window_voxels == (32, 32, 32)


# ------------------------------------------------------------ the network


def test_a_network_tuned_on_whole_scans_is_used_as_it_was_trained(phantom_store: Store, tuned: Path) -> None:
    found = load_finetuned(tuned)
    assert (found.table.whole_scans, found.table.fine_windows) == (True, 8)
    assert found.net.trained_on.whole_scans
    config = found.inference()
    assert (config.window_voxels, config.whole_scans, config.fine_windows) == (WINDOW, True, 8)
    report = json.loads((tuned / "report.json").read_text())
    (scan_id,) = {case["scan"] for case in report["cases"]}
    scan = phantom_store.scan(scan_id)
    places = predict_labels(found.net, scan.image(normalize=True), found.prompt(config), config)
    drawn = [case["predicted_voxels"] for case in report["cases"]]
    assert drawn == [int((places == 1).sum()), int((places == 2).sum())]
    asked = inference_for(found.net.trained_on, threshold=config.threshold)
    as_segment = Segmenter.from_finetuned(found, SegmentConfig(inference=asked)).config.inference
    assert replace(as_segment, reference_voxels=config.reference_voxels) == config


def test_a_few_dozen_steps_find_structures_of_an_unseen_scan(
    phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    def dice(num_steps: int) -> float:
        config = replace(
            WHOLE,
            finetune=replace(WHOLE.finetune, from_scratch=True),
            optimisation=replace(WHOLE.optimisation, num_steps=num_steps, batch_size=2, peak_rate=1e-2),
        )
        done = finetune(checkpoint, phantom_store.path, tmp_path / str(num_steps), config, device="cpu")
        assert done.report is not None
        return done.report.mean_dice

    assert dice(1) < 0.2
    assert dice(50) > 0.5


def test_a_run_that_goes_on_has_the_weights_of_an_undisturbed_one(
    phantom_store: Store, checkpoint: Path, tuned: Path, tmp_path: Path
) -> None:
    first = replace(WHOLE, run=replace(WHOLE.run, checkpoint_every=1))
    stopped = tmp_path / "run"
    finetune(checkpoint, phantom_store.path, stopped, first, device="cpu")
    for path in (stopped / "weights.safetensors", stopped / "checkpoints" / "step-00000003.pt"):
        path.unlink()
    finetune(checkpoint, phantom_store.path, stopped, first, resume=True, device="cpu")
    assert (stopped / "weights.safetensors").read_bytes() == (tuned / "weights.safetensors").read_bytes()


def test_the_command_takes_the_recipe_of_the_checkpoint(
    phantom_store: Store, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "C.toml"
    changed = {
        "finetune": {"values": [1], "max_reported": 1},
        "optimisation": {"num_steps": 1, "batch_size": 2, "precision": "float32"},
        "run": {"num_workers": 0, "evaluate_every": 0, "draw_every": 0},
    }
    settings.write_text(to_toml(changed))
    crops = export(
        drawn_net(), tmp_path / "crops.safetensors", TrainedOn(spacing_mm=1.5, crop_voxels=(32, 32, 32))
    )
    kept = {}
    for name, start, more in (
        ("whole", checkpoint, []),
        ("named", checkpoint, ["--recipe", "small"]),
        ("crops", crops, ["--recipe", "small"]),
    ):
        command = ["finetune", str(start), str(phantom_store.path), str(tmp_path / name), "--num", "1"]
        assert main([*command, "--config", str(settings), "--device", "cpu", *more]) == 0
        assert ("trained on whole scans" in capsys.readouterr().out) == (name == "whole")
        kept[name] = load_finetuned(tmp_path / name).table
    assert kept["whole"].whole_scans
    assert kept["whole"].window_voxels == WINDOW
    assert not kept["named"].whole_scans
    assert kept["crops"].to_json().keys() == kept["named"].to_json().keys()
    assert "whole_scans" not in kept["crops"].to_json()
    again = ["finetune", str(checkpoint), str(phantom_store.path), str(tmp_path / "whole"), "--num", "1"]
    assert main([*again, "--config", str(settings), "--resume", "--device", "cpu"]) == 0


def test_little_of_the_initial_weights_is_left_in_the_average_after_150_steps() -> None:
    assert finetune_recipe("whole").optimisation.ema_decay ** 150 < 0.02


def test_recipes_for_crops_are_what_they_were() -> None:
    assert finetune_recipe("published") == FinetuneConfig()
    assert not finetune_recipe("small").data.whole_fraction
    assert finetune_recipe("small").inference.fine_windows == 0
