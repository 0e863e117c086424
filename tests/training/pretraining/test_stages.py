"""Small windows first: which steps have them, what a run does with them, and what a resumed run repeats."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storage import Store
from tests.training.pretraining.test_run import TINY
from training.data import DataConfig, split_scans
from training.engine import Callbacks, Ranks, TrainingProgress
from training.errors import ConfigError
from training.network import load_checkpoint
from training.pretraining import pretrain, rehearse_pretraining
from training.pretraining.config import PretrainConfig
from training.pretraining.run import pretraining_task, with_chosen_window
from training.pretraining.stages import stages_of

pytestmark = pytest.mark.usefixtures("one_thread")

EARLY = replace(
    TINY,
    optimisation=replace(TINY.optimisation, num_steps=4),
    data=replace(
        TINY.data,
        max_window_voxels=16_384,
        whole_fraction=1.0,
        early_window_voxels=4_096,
        early_fraction=0.5,
        min_mask_voxels=20,
    ),
    run=replace(TINY.run, num_workers=0),
)
SHAPES = [(40, 120, 120)]


def test_early_steps_have_the_best_small_window_and_later_ones_their_own() -> None:
    data = DataConfig(crop_voxels=(16, 64, 64), cut_voxels=(22, 88, 88), early_window_voxels=16_384)
    early, late = stages_of(replace(data, early_fraction=0.7), SHAPES, 10)
    assert (early.first_step, early.last_step, late.first_step, late.last_step) == (0, 7, 7, 10)
    assert (early.num_steps, late.num_steps) == (7, 3)
    assert (early.data.crop_zyx, early.data.cut_zyx) == ((16, 32, 32), (22, 44, 44))
    assert late.data.crop_zyx == data.crop_zyx


@pytest.mark.parametrize(
    ("fraction", "window"), [(0.0, (16, 64, 64)), (1.0, (16, 32, 32)), (0.01, (16, 64, 64))]
)
def test_a_stage_without_steps_is_none(fraction: float, window: tuple[int, int, int]) -> None:
    data = DataConfig(crop_voxels=(16, 64, 64), cut_voxels=(22, 88, 88), early_window_voxels=16_384)
    (stage,) = stages_of(replace(data, early_fraction=fraction), SHAPES, 10)
    assert (stage.first_step, stage.last_step, stage.data.crop_zyx) == (0, 10, window)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"early_fraction": 0.5}, "early_window_voxels must be above 0"),
        ({"early_fraction": 1.5, "early_window_voxels": 4096}, "early_fraction must be 0 to 1"),
        ({"early_window_voxels": -1}, "early_window_voxels must be 0 or more"),
        ({"early_window_voxels": 100}, "early_window_voxels must be 0 or at least 4096"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(DataConfig(), **change)  # type: ignore[arg-type]


def batches_of(
    store: Store, config: PretrainConfig, first: int, number: int, ranks: Ranks
) -> list[tuple[tuple[int, ...], list[int]]]:
    split = split_scans(store.entries, config.data)
    config = with_chosen_window(config, [store.entries[scan_id].shape_zyx for scan_id in split.training])
    size = config.optimisation.batch_size // ranks.world_size
    task = pretraining_task(config.model.make(), store, config, split, ranks)
    found = task.batches(size, first, number)
    return [(batch.crop_zyx, batch.sample_indices.tolist()) for batch in found]


def test_every_sample_is_drawn_once_in_the_window_of_its_step(phantom_store: Store) -> None:
    early, late = (16, 16, 16), (16, 32, 32)
    drawn = batches_of(phantom_store, EARLY, 0, 8, Ranks())
    assert drawn == [(early, [0, 1]), (early, [2, 3]), (late, [4, 5]), (late, [6, 7])]
    assert batches_of(phantom_store, EARLY, 2, 6, Ranks()) == drawn[1:]
    assert batches_of(phantom_store, EARLY, 6, 2, Ranks()) == drawn[3:]
    shared = [batches_of(phantom_store, EARLY, 0, 8, Ranks(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [sorted(a + b) for (_, a), (_, b) in zip(*shared, strict=True)] == [ids for _, ids in drawn]


@pytest.fixture(scope="module")
def undisturbed(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a run from its beginning to its end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    done = pretrain(phantom_store.path, tmp_path_factory.mktemp("whole") / "run", EARLY, device="cpu")
    torch.set_num_threads(before)
    assert done.weights is not None
    return done.weights


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_stopped_in_either_stage_ends_with_the_same_weights(
    phantom_store: Store, undisturbed: Path, tmp_path: Path, stop: int
) -> None:
    def stopping(progress: TrainingProgress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    first = pretrain(
        phantom_store.path, tmp_path / "parts", EARLY, device="cpu", callbacks=Callbacks(progress=stopping)
    )
    assert not first.result.complete
    assert 0 < first.result.step < 4
    second = pretrain(phantom_store.path, tmp_path / "parts", EARLY, device="cpu", resume=True)
    assert second.weights is not None
    assert undisturbed.read_bytes() == second.weights.read_bytes()
    assert load_checkpoint(undisturbed).trained_on.crop_voxels == (16, 32, 32)


def test_a_dry_run_counts_each_stage_at_its_own_time(
    phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.engine.rehearsal.WARM_UP_STEPS", 1)
    monkeypatch.setattr("training.engine.rehearsal.MEASURED_STEPS", 1)
    found = rehearse_pretraining(phantom_store.path, EARLY, device="cpu")
    assert [(stage.data.crop_zyx, stage.num_steps) for stage, _ in found.stages] == [
        ((16, 16, 16), 2),
        ((16, 32, 32), 2),
    ]
    early, late = (steps for _, steps in found.stages)
    assert early.activation_bytes < late.activation_bytes == found.steps.activation_bytes
    assert found.run_seconds == pytest.approx(2 * early.step_seconds + 2 * late.step_seconds)
