"""Pretraining on phantoms: killed, stopped, shared out over processes; what it learns and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import training.engine.distributed
from commands.main import main
from storage import Store, commit_scan, finish
from tests.training.phantom_store import make_phantom_store, phantom_record
from tests.waits import PATIENT_SECONDS
from training.data.augmentation import AugmentationConfig, ViewAugmentation, augment
from training.data.loader import Share, make_loader
from training.data.sampling import DataConfig, split_scans
from training.data.whole_scans import window_for
from training.engine.monitoring import METRICS, Callbacks, TrainingProgress, read_metrics
from training.engine.optimisation import OptimisationConfig, clip_gradients, gradient_norm, make_optimiser
from training.engine.precision import ChosenPrecision, Precision, Support
from training.engine.run_folder import CONFIG, has_begun, to_toml
from training.errors import ConfigError
from training.evaluation.in_context import EvaluationConfig
from training.inference.prompts import InferenceConfig, inference_for
from training.network.weights import load_checkpoint
from training.pretraining.config import PretrainConfig, large, published, small, whole
from training.pretraining.run import choose_evaluation, in_context_loss, pretrain

ROOT = Path(__file__).parents[3]

CONFIG_SMALL = small()
TINY = PretrainConfig(
    model=replace(CONFIG_SMALL.model, channels=(4, 8, 8, 16, 16)),
    data=DataConfig(crop_voxels=16, cut_voxels=20, masks_per_sample=4, min_mask_voxels=20),
    augmentation=CONFIG_SMALL.augmentation,
    optimisation=OptimisationConfig(
        optimiser="adamw", peak_rate=3e-4, num_steps=6, batch_size=2, precision="float32"
    ),
    evaluation=EvaluationConfig(
        num_targets=1,
        num_prompts=1,
        inference=InferenceConfig(window_voxels=(32, 32, 32), reference_voxels=(32, 32, 32)),
    ),
    run=replace(
        CONFIG_SMALL.run, num_workers=1, log_every=1, checkpoint_every=2, evaluate_every=0, draw_every=0
    ),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def command(store: Store, folder: Path, *more: str, processes: int = 1) -> list[str]:
    start = ["-m", "commands"]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *start]
    return [sys.executable, *start, "pretrain", str(store.path), str(folder), "--device", "cpu", *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Return when the run's metrics tell of a step."""
    deadline = time.monotonic() + PATIENT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / METRICS
        if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} never came: {process.communicate()}")


@pytest.fixture(scope="module")
def undisturbed(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    watch = replace(TINY.run, num_workers=0, evaluate_every=6, draw_every=3)
    pretrain(phantom_store.path, folder, replace(TINY, run=watch), device="cpu")
    torch.set_num_threads(before)
    return folder


@pytest.mark.long
def test_a_run_killed_and_stopped_and_gone_on_with_ends_with_the_same_weights(
    phantom_store: Store, undisturbed: Path, tmp_path: Path
) -> None:
    folder, config = tmp_path / "run", tmp_path / "c.toml"
    config.write_text(to_toml(TINY.values()))
    first = start(command(phantom_store, folder, "--config", str(config)))
    wait_for_step(first, folder, int(np.random.default_rng().integers(1, 4)))
    first.kill()
    first.communicate(timeout=PATIENT_SECONDS)  # returns when the workers, too, have let go of the pipes
    second = start(command(phantom_store, folder, "--resume"))
    wait_for_step(second, folder, 4)
    second.send_signal(signal.SIGUSR1)  # as SLURM does before a job's limit
    out, err = second.communicate(timeout=PATIENT_SECONDS)
    if second.returncode:  # else it was done before the signal came
        assert second.returncode == 138, err  # the script of examples/slurm queues the job again
        assert has_begun(folder)
        assert "--resume goes on from here" in out
        assert main(["pretrain", str(phantom_store.path), str(folder), "--resume", "--device", "cpu"]) == 0
    ours, theirs = (load_file(run / "weights.safetensors") for run in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [line["step"] for line in read_metrics(folder / METRICS)]
    assert steps == list(range(1, 7))


@pytest.mark.long
def test_two_processes_have_the_curve_of_one(phantom_store: Store, undisturbed: Path, tmp_path: Path) -> None:
    config, result = tmp_path / "c.toml", tmp_path / "result.json"
    config.write_text(to_toml(replace(TINY, run=replace(TINY.run, num_workers=0)).values()))
    run = start(
        command(phantom_store, tmp_path / "run", "--config", str(config), "--json", str(result), processes=2)
    )
    out, err = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 0, err
    assert out.count("weights:") == 1
    assert json.loads(result.read_text())["complete"]
    in_parts = replace(
        TINY,
        optimisation=replace(TINY.optimisation, accumulation=2),
        run=replace(TINY.run, num_workers=0),
    )
    pretrain(phantom_store.path, tmp_path / "in parts", in_parts, device="cpu")
    together = curve(tmp_path / "run")
    assert together == curve(tmp_path / "in parts")  # to the bit: the same sums in the same order
    np.testing.assert_allclose(together, curve(undisturbed), rtol=1e-3)
    assert len(together) == 6


def curve(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / METRICS) if line["kind"] == "train"]


def test_a_run_leaves_weights_a_card_metrics_and_pictures(undisturbed: Path, phantom_store: Store) -> None:
    net = load_checkpoint(undisturbed / "weights.safetensors")
    image = torch.zeros(1, 1, 32, 32, 32)
    assert net(image, image, torch.ones(1, 2, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
    card = (undisturbed / "MODEL_CARD.md").read_text()
    digest = json.loads((undisturbed / "run.json").read_text())["store_digest"]
    for part in (digest, "peak_rate = 0.0003", torch.__version__, "| scans | 4 |"):
        assert part in card, part
    (evaluation,) = [line for line in read_metrics(undisturbed / METRICS) if line["kind"] == "evaluation"]
    assert evaluation["step"] == 6
    assert 0 <= evaluation["dice"] <= 1
    assert "dice/phantoms/structures/lesion" in evaluation
    pictures = sorted((undisturbed / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-00000003.png", "step-00000006.png"]
    assert np.asarray(Image.open(pictures[0])).std() > 10
    last, best = (
        load_checkpoint(undisturbed / "checkpoints" / name) for name in ("step-00000006.pt", "best.pt")
    )
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), best.parameters(), strict=True))


def test_one_batch_is_learned_in_few_steps(phantom_store: Store) -> None:
    """The first test of a recipe: network, loss, optimiser and clipping on one sample, without a schedule."""
    plain = ViewAugmentation(affine_probability=0.0, intensity_probability=0.0)
    share = Share(batch_size=1, num_samples=1)
    loader = make_loader(phantom_store.path, phantom_store.scan_ids, TINY.data, share, seed=0)
    views = augment(next(iter(loader)), AugmentationConfig(reference=plain, target=plain))
    torch.manual_seed(0)
    net = TINY.model.make()
    config = replace(TINY.optimisation, peak_rate=3e-3, initial_division=1.0, warm_up_fraction=0.0)
    optimiser = make_optimiser(net, config)
    losses = []
    for _ in range(24):
        optimiser.zero_grad()
        terms = in_context_loss(net, views)
        terms.total.backward()
        clip_gradients(net, gradient_norm(net), 1.0)
        optimiser.step()
        losses.append(terms.total.item())
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_in_a_folder_with_a_run_says_how_to_go_on(
    phantom_store: Store, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(phantom_store.path), str(undisturbed), "--recipe", "small"]) == 2
    assert "there is a run here already. Go on with it (--resume)" in capsys.readouterr().err


def test_a_run_that_is_done_is_not_done_again(
    phantom_store: Store, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / METRICS).read_text()
    found = tmp_path / "found.json"
    command = ["pretrain", str(phantom_store.path), str(undisturbed), "--resume", "--device", "cpu"]
    assert main([*command, "--json", str(found)]) == 0
    out = capsys.readouterr().out
    assert "6/6" in out
    assert "nan" not in out
    assert json.loads(found.read_text(), parse_constant=pytest.fail)["last_loss"] is None
    assert (undisturbed / METRICS).read_text() == before


def test_going_on_with_other_settings_says_which(
    phantom_store: Store, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text((undisturbed / CONFIG).read_text().replace("num_steps = 6", "num_steps = 60"))
    arguments = ["pretrain", str(phantom_store.path), str(undisturbed), "--config", str(config), "--resume"]
    assert main(arguments) == 2
    assert "optimisation.num_steps 6 -> 60" in capsys.readouterr().err


def test_going_on_with_another_store_says_what_is_new(undisturbed: Path, tmp_path: Path) -> None:
    store = make_phantom_store(tmp_path / "store", num_scans=4)
    commit_scan(store.path, phantom_record("phantom-new", seed=9))
    finish(store.path)
    with pytest.raises(ConfigError, match="phantom-new is new"):
        pretrain(store.path, undisturbed, TINY, resume=True, device="cpu")


def test_a_misspelt_setting_names_the_nearest_and_leaves_no_run(
    phantom_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[optimisation]\npeek_rate = 0.1\n")
    arguments = ["pretrain", str(phantom_store.path), str(tmp_path / "run"), "--config", str(config)]
    assert main(arguments) == 2
    assert "[optimisation]: unknown setting 'peek_rate'; did you mean 'peak_rate'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_file_says_only_what_differs_from_the_recipe(tmp_path: Path) -> None:
    from commands.pretrain import read_settings

    config = tmp_path / "c.toml"
    config.write_text(
        "[augmentation.target]\nmax_shear = 0.3\n[data]\ndataset_weights = {ct = 2, mr = 1.5}\n"
    )
    settings = read_settings(config, "small")
    recipe = small()
    target = replace(recipe.augmentation.target, max_shear=0.3)
    assert settings == replace(
        recipe,
        data=replace(recipe.data, dataset_weights={"ct": 2.0, "mr": 1.5}),
        augmentation=replace(recipe.augmentation, target=target),
    )
    assert read_settings(None, None) == whole()


def test_the_recipes_of_whole_scans_begin_with_small_windows_and_end_with_their_own() -> None:
    for config, base, window in ((whole(), small(), 65_536), (large(), published(), 1_048_576)):
        assert config.model == base.model
        assert config.data.whole_fraction == 1
        assert (config.data.max_window_voxels, config.data.early_window_voxels) == (window, window // 4)
        assert config.evaluation.inference.threshold < base.evaluation.inference.threshold
        assert base.data.whole_fraction == 0


def test_the_settings_themselves_are_the_published_recipe() -> None:
    values: dict[str, Any] = published().values()
    assert (values["data"]["crop_voxels"], values["data"]["cut_voxels"]) == (128, 168)
    assert values["data"]["masks_per_sample"] == 13
    assert values["optimisation"]["optimiser"] == "lamb"
    assert values["optimisation"]["num_steps"] * values["optimisation"]["batch_size"] == 400_000
    assert values["model"]["channels"] == (32, 64, 128, 256, 512)


def test_scans_kept_out_of_training_are_asked_about_and_large_ones_are_not(phantom_store: Store) -> None:
    config = replace(TINY, data=replace(TINY.data, holdout_fraction=0.5))
    split = split_scans(phantom_store.entries, config.data)
    assert 0 < len(split.holdout) < 4
    question = choose_evaluation(phantom_store, config, split)
    assert question is not None
    assert set(question.targets) <= set(split.holdout)
    assert (
        choose_evaluation(
            phantom_store, replace(config, run=replace(config.run, max_evaluation_voxels=10)), split
        )
        is None
    )


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_to_the_same_bits_in_both_precisions(
    phantom_store: Store, tmp_path: Path, name: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where the device chose; gone on where it would choose the other: the run keeps what it has."""
    muon = replace(CONFIG_SMALL.optimisation, num_steps=4, batch_size=1)
    config = replace(TINY, optimisation=muon, run=replace(TINY.run, num_workers=0))
    choose(monkeypatch, name)
    whole_run = pretrain(phantom_store.path, tmp_path / "undisturbed", config, device="cpu")

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGTERM)

    stopped = pretrain(
        phantom_store.path, tmp_path / "stopped", config, device="cpu", callbacks=Callbacks(progress=stop)
    )
    assert (stopped.result.complete, stopped.precision.name) == (False, name)
    choose(monkeypatch, "float32" if name == "bfloat16" else "bfloat16")
    told: list[ChosenPrecision] = []
    gone_on = pretrain(
        phantom_store.path,
        tmp_path / "stopped",
        config,
        resume=True,
        device="cpu",
        callbacks=Callbacks(precision=told.append),
    )
    assert [(one.name, one.why) for one in told] == [(name, "as the run began")]
    assert whole_run.weights is not None
    assert gone_on.weights is not None
    assert whole_run.weights.read_bytes() == gone_on.weights.read_bytes()


def choose(monkeypatch: pytest.MonkeyPatch, name: Precision) -> None:
    """Let the CPU have bfloat16 instructions, or none."""
    support = Support(has_bfloat16=name == "bfloat16", why="imitated")
    monkeypatch.setattr(training.engine.distributed, "bfloat16_support", lambda device: support)


def test_a_run_on_whole_scans_is_evaluated_and_used_on_whole_scans(
    phantom_store: Store, tmp_path: Path
) -> None:
    config = replace(
        TINY,
        optimisation=replace(TINY.optimisation, num_steps=2),
        data=replace(TINY.data, max_window_voxels=32_768, whole_fraction=1.0, wide_fraction=0.5),
        run=replace(TINY.run, num_workers=0, evaluate_every=2),
    )
    done = pretrain(phantom_store.path, tmp_path / "run", config, device="cpu")
    assert done.weights is not None
    shapes = [entry.shape_zyx for entry in phantom_store.entries.values()]
    window = window_for(shapes, 32_768)
    trained_on = load_checkpoint(tmp_path / "run").trained_on
    assert (trained_on.crop_voxels, trained_on.whole_scans) == (window, True)
    inference = inference_for(trained_on)
    assert (inference.window_voxels, inference.whole_scans) == (window, True)
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert tuple(kept["data"]["crop_voxels"]) == window
    metrics = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in metrics if line["kind"] == "evaluation"] == [2]
