"""Fine-tuning on phantoms: what it learns, what it leaves alone, what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from storage import Store
from tests.training.drawn_checkpoint import drawn_net, export
from training.data.augmentation import ViewAugmentation
from training.data.windows import fit_window
from training.engine.monitoring import METRICS, read_metrics
from training.engine.task import Task
from training.errors import CheckpointError, ConfigError
from training.evaluation.surfaces import surface_distances
from training.finetuning.config import FinetuneConfig, finetune_recipe
from training.finetuning.evaluation import evaluate_tokens, report_document
from training.finetuning.initial_tokens import initial_tokens
from training.finetuning.run import finetune
from training.finetuning.scans import FinetuneTaskConfig, choose_scans
from training.inference.prediction import predict_labels
from training.inference.prompted import PromptedIris, TokenTable, load_finetuned, tokens_of
from training.inference.prompts import InferenceConfig, Reference, Structure, encode_references
from training.network.weights import load_checkpoint
from training.pretraining.config import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = finetune_recipe("small")
TINY = FinetuneConfig(
    finetune=FinetuneTaskConfig(values=(1, 3), num_scans=2, holdout_fraction=0.0, max_reported=1),
    data=replace(SMALL.data, crop_voxels=32, cut_voxels=32, foreground_fraction=1.0),
    augmentation=ViewAugmentation(affine_probability=0.0, intensity_probability=0.0),
    optimisation=replace(
        SMALL.optimisation, num_steps=4, batch_size=2, peak_rate=3e-3, ema_decay=0.8, precision="float32"
    ),
    inference=InferenceConfig(reference_voxels=(32, 32, 32), overlap_fraction=0.0),
    run=replace(SMALL.run, num_workers=0, log_every=1, checkpoint_every=2, evaluate_every=0, draw_every=0),
)


def tuned(
    config: FinetuneConfig, *, mode: str = "full", from_scratch: bool = False, num_steps: int | None = None
) -> FinetuneConfig:
    steps = config.optimisation.num_steps if num_steps is None else num_steps
    return replace(
        config,
        finetune=replace(config.finetune, mode=mode, from_scratch=from_scratch),
        optimisation=replace(config.optimisation, num_steps=steps),
    )


@pytest.fixture(scope="module")
def undisturbed(phantom_store: Store, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its beginning to its end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    watch = replace(TINY.run, evaluate_every=4, draw_every=4)
    config = replace(TINY, run=watch, finetune=replace(TINY.finetune, num_validation=1))
    finetune(checkpoint, phantom_store.path, folder, config, device="cpu")
    torch.set_num_threads(before)
    return folder


# ------------------------------------------------------------ learning


@pytest.mark.long
def test_a_few_dozen_steps_raise_the_dice_of_an_unseen_scan_from_nothing(
    phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    config = tuned(TINY, from_scratch=True, num_steps=28)
    config = replace(config, optimisation=replace(config.optimisation, peak_rate=1e-2))
    before = finetune(
        checkpoint, phantom_store.path, tmp_path / "before", tuned(config, num_steps=1), device="cpu"
    )
    after = finetune(checkpoint, phantom_store.path, tmp_path / "after", config, device="cpu")
    assert before.report is not None
    assert after.report is not None
    assert before.report.mean_dice < 0.2
    assert after.report.mean_dice > 0.6
    assert set(after.scans.training).isdisjoint(after.scans.held_out)


@pytest.mark.parametrize(
    ("mode", "changed"),
    [
        ("tokens", {"task_prior"}),
        ("decoder", {"task_prior", "decoder", "out"}),
        ("full", {"task_prior", "decoder", "out", "encoder"}),
    ],
)
def test_a_mode_changes_what_it_trains_and_nothing_else(
    mode: str, changed: set[str], phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    done = finetune(
        checkpoint, phantom_store.path, tmp_path / "run", tuned(TINY, mode=mode, num_steps=2), device="cpu"
    )
    assert done.weights is not None
    before, after = load_file(checkpoint), load_file(done.weights)
    assert before.keys() == after.keys()
    differ = {
        name.split(".")[0].rstrip("_012")
        for name in before
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert differ == changed


def test_tokens_begin_as_the_prompt_that_the_scans_make_and_training_moves_them(
    phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    net = load_checkpoint(checkpoint)
    scans = choose_scans(phantom_store, TINY.finetune)
    tokens = initial_tokens(net, phantom_store, scans, TINY)
    references = [
        Reference(image=scan.image(normalize=True), labels=scan.labels("structures"))
        for scan in map(phantom_store.scan, scans.training)
    ]
    prompt = encode_references(net, references, scans.structures, TINY.inference)
    for ours, shown in zip(tokens, prompt.priors[0], strict=True):
        torch.testing.assert_close(ours[:-1], shown[:-1])
    in_turns = replace(TINY, data=replace(TINY.data, structures_at_once=1))
    turns = initial_tokens(net, phantom_store, scans, in_turns)
    for row, structure in enumerate(scans.structures):
        alone = encode_references(net, references, [structure], TINY.inference)
        for ours, shown in zip(turns, alone.priors[0], strict=True):
            torch.testing.assert_close(ours[row], shown[0])
    run = tuned(TINY, mode="tokens", num_steps=2)
    done = finetune(checkpoint, phantom_store.path, tmp_path / "run", run, device="cpu")
    assert done.weights is not None
    for first, now in zip(tokens, tokens_of(load_finetuned(done.weights).net), strict=True):
        assert not torch.equal(first, now)
        assert (first - now).abs().max() < 0.1


def test_more_structures_than_fit_at_once_are_all_trained_and_drawn(
    phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    config = replace(
        tuned(TINY, mode="tokens", num_steps=4),
        finetune=replace(TINY.finetune, mode="tokens", values=()),
        data=replace(TINY.data, structures_at_once=2),
    )
    done = finetune(checkpoint, phantom_store.path, tmp_path / "run", config, device="cpu")
    assert done.weights is not None
    assert done.report is not None
    assert [part.structure for part in done.report.structures] == ["organ", "lesion", "lung", "bone", "plate"]
    ours = load_finetuned(done.weights)
    assert ours.values == (1, 2, 3, 4, 5)
    assert ours.inference().masks_at_once == 2
    assert [len(stage) for stage in tokens_of(ours.net)] == [6, 6, 6]


def test_a_published_file_is_a_start_like_any_other(
    phantom_store: Store, checkpoint: Path, tmp_path: Path
) -> None:
    state = load_file(checkpoint)
    random = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    torch.save({"model": random, "ema_model": state}, tmp_path / "base.pth")
    config = tuned(TINY, mode="tokens", num_steps=1)
    runs = [
        finetune(path, phantom_store.path, tmp_path / path.suffix[1:], config, device="cpu").weights
        for path in (checkpoint, tmp_path / "base.pth")
    ]
    first, second = (load_file(weights) for weights in runs if weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------ going on


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a training end with an error before a step, as a full disk or a killed process would."""

    def stop(step: int) -> None:
        import training.finetuning.run as module

        original = module.finetuning_task
        calls = 0

        def failing(*arguments: object) -> Task:
            task = original(*arguments)

            def loss(net: torch.nn.Module, views: object) -> object:
                nonlocal calls
                calls += 1
                if calls == step + 1:
                    raise KeyboardInterrupt
                return task.loss(net, views)

            return replace(task, loss=loss)

        monkeypatch.setattr(module, "finetuning_task", failing)

    return stop


@pytest.mark.parametrize("from_scratch", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_stopped_and_gone_on_with_ends_with_the_same_weights(
    from_scratch: bool,
    phantom_store: Store,
    checkpoint: Path,
    undisturbed: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = tuned(TINY, from_scratch=from_scratch)
    theirs = undisturbed / "weights.safetensors"
    if from_scratch:
        done = finetune(checkpoint, phantom_store.path, tmp_path / "whole", config, device="cpu")
        assert done.weights is not None
        theirs = done.weights
    folder = tmp_path / "run"
    stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        finetune(checkpoint, phantom_store.path, folder, config, device="cpu")
    monkeypatch.undo()
    done = finetune(checkpoint, phantom_store.path, folder, config, resume=True, device="cpu")
    assert done.resumed
    first, second = load_file(folder / "weights.safetensors"), load_file(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [line["step"] for line in read_metrics(folder / METRICS) if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4]


def test_a_run_goes_on_from_its_own_checkpoint_only(
    phantom_store: Store, checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    other = export(drawn_net(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="checkpoint_digest"):
        finetune(other, phantom_store.path, undisturbed, TINY, resume=True, device="cpu")


# ------------------------------------------------------------ what is left behind


def test_the_exported_network_needs_no_reference_and_draws_what_the_report_says(
    phantom_store: Store, undisturbed: Path
) -> None:
    ours = load_finetuned(undisturbed)
    assert ours.structures == (Structure(name="organ", values=(1,)), Structure(name="lung", values=(3,)))
    assert (ours.label, ours.spacing_mm, ours.modalities) == ("structures", 1.5, ("ct",))
    assert ours.window_voxels == (32, 32, 32)
    report = json.loads((undisturbed / "report.json").read_text())
    config = ours.inference(TINY.inference)
    scan = phantom_store.scan(report["cases"][0]["scan"])
    drawn = predict_labels(ours.net, scan.image(normalize=True), ours.prompt(config), config)
    labels = scan.labels("structures")
    for place, (value, case) in enumerate(zip(ours.values, report["cases"], strict=True), start=1):
        found, expected = drawn == place, labels == value
        dice = 2 * int((found & expected).sum()) / int(found.sum() + expected.sum())
        assert case["dice"] == pytest.approx(dice, abs=1e-3)
        apart = surface_distances(found, expected, scan.spacing_zyx_mm)
        for name, value in (("hd95_mm", apart.hd95_mm), ("asd_mm", apart.asd_mm)):
            assert case[name] == (None if np.isnan(value) else pytest.approx(value)), name
    assert {"hd95_mm", "asd_mm", "num_missed"} < set(report["structures"][0])
    card = (undisturbed / "MODEL_CARD.md").read_text()
    for part in ("organ, lung", "load_finetuned", "| Dice of organ (1 held-out scans)", 'mode = "full"'):
        assert part in card, part


def test_checkpoints_are_loaded_like_exported_weights(undisturbed: Path) -> None:
    exported = load_finetuned(undisturbed / "weights.safetensors")
    last = load_finetuned(undisturbed / "checkpoints" / "step-00000004.pt")
    assert last.table == exported.table
    assert all(
        torch.equal(one, two) for one, two in zip(tokens_of(last.net), tokens_of(exported.net), strict=True)
    )
    assert load_finetuned(undisturbed / "checkpoints" / "best.pt").table == exported.table
    evaluations = [line for line in read_metrics(undisturbed / METRICS) if line["kind"] == "evaluation"]
    assert evaluations[0]["step"] == 4
    assert "dice/phantoms/structures/organ" in evaluations[0]
    assert (undisturbed / "pictures" / "step-00000004.png").is_file()


def test_a_network_that_was_not_fine_tuned_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not fine-tuned; show it a reference"):
        load_finetuned(checkpoint)
    torch.save(load_checkpoint(checkpoint).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="not fine-tuned"):
        load_finetuned(tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"a folder without weights\.safetensors"):
        load_finetuned(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_finetuned(tmp_path / "text.safetensors")


def test_tokens_refuse_mirrored_images(undisturbed: Path) -> None:
    ours = load_finetuned(undisturbed / "weights.safetensors")
    with pytest.raises(ConfigError, match="not mirrored"):
        ours.prompt(InferenceConfig(mirror=True))
    with pytest.raises(ConfigError, match="mirror"):
        replace(TINY, inference=InferenceConfig(mirror=True))


def test_perfect_tokens_would_score_one_and_absent_structures_have_no_score(phantom_store: Store) -> None:
    """The report's arithmetic, with a network that draws the labels themselves."""
    scan_id = phantom_store.scan_ids[0]
    labels = phantom_store.scan(scan_id).labels("structures")
    structures = tuple(
        Structure(name=name, values=(value,)) for name, value in (("organ", 1), ("nowhere", 9), ("lung", 3))
    )
    net = ModelConfig(channels=(4, 8, 8, 8, 8), num_tasks=1).make()
    PromptedIris(net, tuple(torch.zeros(4, 11, 8) for _ in range(3)))
    table = replace(load_table(structures), window_voxels=(48, 48, 48))

    def decode(features: object, priors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        window = fit_window(labels.shape, table.window_voxels)
        logits = torch.full((1, priors[0].shape[1], *window), -9.0)
        z, y, x = ((most - size) // 2 for most, size in zip(window, labels.shape, strict=True))
        organ = torch.from_numpy(np.where(labels == 1, 9.0, -9.0)).float()
        logits[0, 0, z : z + labels.shape[0], y : y + labels.shape[1], x : x + labels.shape[2]] = organ
        return logits

    net.encode, net.decode = (lambda image: image), decode  # type: ignore[method-assign, assignment]
    report = evaluate_tokens(net, phantom_store, table, [scan_id], InferenceConfig(), distances=True)
    organ, nowhere, lung = report.structures
    assert (organ.dice, organ.hd95_mm, organ.asd_mm, organ.num_cases) == (1.0, 0.0, 0.0, 1)
    assert (nowhere.num_cases, nowhere.num_absent, nowhere.num_drawn_though_absent) == (0, 1, 0)
    assert (lung.dice, lung.num_missed) == (0.0, 1)
    cases = json.loads(json.dumps(report_document(report), allow_nan=False))["cases"]
    assert [(case["state"], case["dice"], case["hd95_mm"], case["asd_mm"]) for case in cases] == [
        ("found", 1.0, 0.0, 0.0),
        ("absent", None, None, None),
        ("missed", 0.0, None, None),
    ]


def load_table(structures: tuple[Structure, ...]) -> TokenTable:
    return TokenTable(
        label="structures",
        structures=structures,
        spacing_mm=1.5,
        ingest={},
        modalities=("ct",),
        window_voxels=(32, 32, 32),
        masks_at_once=2,
    )
