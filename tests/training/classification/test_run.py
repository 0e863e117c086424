"""Classification: what differs is told apart, what does not is not, and what is written can be used."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.main import main
from storage import Store
from tests.training.blob_store import COUNTS, blob_image, kind_of, write_labels
from tests.training.drawn_checkpoint import export
from training.classification.config import ClassifyConfig, Mode, classify_config
from training.classification.embedding import ScanFeatures, encode_store
from training.classification.heads import AttentionHead, export_encoder, load_classifier, load_head
from training.classification.labels import ClassTable, split_classes, table_of_store
from training.classification.run import Classification, ClassScans, classify
from training.classification.tasks import Samples, class_loss, class_weights, cut_batch, draw_box, whole_batch
from training.data.augmentation import ViewAugmentation
from training.data.sampling import generator_of
from training.data.whole_scans import to_window
from training.engine.monitoring import Callbacks
from training.errors import CheckpointError, ConfigError, RunError
from training.network.iris import Iris
from training.network.preparation import TrainedOn

CHANNELS = (4, 8, 16, 16, 16)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(3)
    return Iris(CHANNELS, 1, position_std=0.02).eval()


@pytest.fixture(scope="module")
def features(net: Iris, blobs: Store) -> Mapping[str, ScanFeatures]:
    return encode_store(net.encoder, blobs, blobs.scan_ids, ClassifyConfig().embedding)


@pytest.fixture(scope="module")
def checkpoint(net: Iris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    export_encoder(path, net)
    return path


def settings(mode: Mode, *, steps: int, from_scratch: bool = False, **optimisation: Any) -> ClassifyConfig:
    config = classify_config(mode, from_scratch=from_scratch)
    return replace(
        config,
        dropout=0.0,
        augmentation=ViewAugmentation(affine_probability=0.0, intensity_probability=0.0),
        optimisation=replace(
            config.optimisation, num_steps=steps, precision="float32", ema_decay=0.5, **optimisation
        ),
        run=replace(config.run, checkpoint_every=max(1, steps // 2), evaluate_every=max(1, steps // 2)),
    )


def relabelled(table: ClassTable, targets: np.ndarray, *, multi_label: bool = False) -> ClassTable:
    return replace(table, targets=targets.astype(np.float32), multi_label=multi_label)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is told apart


def scans_of(
    store: Store, table: ClassTable, features: Mapping[str, ScanFeatures] | None = None
) -> ClassScans:
    return ClassScans(store=store, table=table, split=split_classes(table), features=features)


def run(
    mode: Mode,
    net: Iris,
    blobs: Store,
    folder: Path,
    *,
    table: ClassTable | None = None,
    features: Mapping[str, ScanFeatures] | None = None,
    **more: Any,
) -> Classification:
    table = table or table_of_store(blobs)
    config = settings(mode, **({"steps": 40, "batch_size": 16} | more))
    return classify(net, scans_of(blobs, table, features), folder, config, device="cpu")


@pytest.mark.parametrize("mode", ["frozen-linear", "frozen-attention"])
def test_a_frozen_encoder_of_drawn_weights_tells_a_bright_blob(
    mode: Mode, net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    done = run(mode, net, blobs, tmp_path / "run", features=features)
    assert done.scores is not None
    assert done.scores.auc > 0.95
    assert done.scores.balanced_accuracy > 0.8
    assert done.tested_on == "test"
    assert done.scores.num_scans == COUNTS["test"]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_all_weights_from_scratch_tell_a_bright_blob_and_the_checkpoint_is_left_alone(
    net: Iris, blobs: Store, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    done = run(
        "full", net, blobs, tmp_path / "run", steps=24, from_scratch=True, peak_rate=3e-3, batch_size=4
    )
    assert done.scores is not None
    assert done.scores.auc > 0.95
    assert done.training is not None
    assert done.training.last_loss < 0.7 * done.training.first_loss
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("mode", ["frozen-linear", "frozen-attention"])
def test_classes_that_were_shuffled_are_not_told_apart(
    mode: Mode, net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    aucs = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        targets = np.zeros_like(table.targets)
        for split in COUNTS:
            for kind in (
                0,
                1,
            ):  # half of the scans with a blob, and half of the others, are said to be of class 1
                alike = [
                    k for k, one in enumerate(table.ids) if one.startswith(split) and kind_of(one) == kind
                ]
                for place, k in enumerate(generator.permutation(alike)):
                    targets[k, place % 2] = 1
        shuffled = relabelled(table, targets)
        done = run(mode, net, blobs, tmp_path / str(seed), table=shuffled, features=features, steps=10)
        assert done.scores is not None
        aucs.append(done.scores.auc)
    assert 0.33 < np.mean(aucs) < 0.67


@pytest.mark.parametrize("mode", ["frozen-linear", "frozen-attention"])
def test_several_labels_a_scan_are_scored_each_by_itself(
    mode: Mode, net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    dull = np.random.default_rng(0).integers(2, size=len(table.ids))
    both = relabelled(
        replace(table, classes=("blob", "dull")),
        np.stack([table.targets[:, 1], dull], axis=1),
        multi_label=True,
    )
    done = run(mode, net, blobs, tmp_path / "run", table=both, features=features)
    assert done.scores is not None
    blob, other = done.scores.classes
    assert (blob.name, other.name) == ("blob", "dull")
    assert blob.auc > 0.95
    assert 0.1 < other.auc < 0.9
    row = rows_of(tmp_path / "run" / "predictions.csv")[0]
    assert list(row) == ["id", "split", "is blob", "is dull", "p blob", "p dull"]


def test_three_classes_have_an_auc_each(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    third = np.array([int(scan_id.split("-")[1]) % 4 == 2 for scan_id in table.ids])
    targets = np.stack([(table.targets[:, 0] > 0) & ~third, table.targets[:, 1] > 0, third], axis=1)
    three = relabelled(replace(table, classes=("dark", "blob", "third")), targets)
    done = run("frozen-linear", net, blobs, tmp_path / "run", table=three, features=features)
    assert done.scores is not None
    assert [score.name for score in done.scores.classes] == ["dark", "blob", "third"]
    assert done.scores.classes[1].auc > 0.95
    assert done.scores.auc == pytest.approx(np.mean([score.auc for score in done.scores.classes]))


def test_nothing_is_chosen_by_the_test_scans(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    test = [k for k, split in enumerate(table.splits) if split == "test"]
    other = table.targets.copy()
    other[test] = np.roll(other[test], 3, axis=0)
    for mode in ("frozen-linear", "frozen-attention"):
        tables = {"a": table, "b": relabelled(table, other)}
        for name, one in tables.items():
            run(mode, net, blobs, tmp_path / mode / name, table=one, features=features, steps=10)
        first, second = (rows_of(tmp_path / mode / name / "predictions.csv") for name in tables)
        assert [row["p 1"] for row in first] == [row["p 1"] for row in second]
        assert [row["class"] for row in first] != [row["class"] for row in second]


# --- what is written


@pytest.mark.parametrize(
    ("mode", "from_scratch"), [("frozen-linear", False), ("frozen-attention", True), ("full", False)]
)
def test_an_exported_classifier_says_what_predictions_csv_says(
    mode: Mode, from_scratch: bool, net: Iris, blobs: Store, tmp_path: Path, checkpoint: Path
) -> None:
    folder = tmp_path / "run"
    done = run(mode, net, blobs, folder, steps=4, from_scratch=from_scratch)
    own = mode == "full" or from_scratch
    assert (folder / "encoder.safetensors").exists() == own
    classifier = load_classifier(folder, None if own else checkpoint)
    for row in rows_of(folder / "predictions.csv")[::5]:
        said = classifier.probabilities(blobs.scan(row["id"]).image(normalize=True))
        assert said == {name: pytest.approx(float(row[f"p {name}"]), abs=2e-5) for name in ("0", "1")}
        assert row["predicted"] == max(said, key=said.__getitem__)
        assert row["class"] == str(kind_of(row["id"]))
    results = json.loads((folder / "results.json").read_text())
    assert results == done.document
    assert (results["num_train"], results["num_validation"], results["num_scans"]) == (20, 8, 12)
    assert results["train_counts"] == {"0": 10, "1": 10}
    assert f"{results['auc']:.3f}" in (folder / "results.md").read_text()
    assert {row["id"]: row["split"] for row in rows_of(folder / "labels.csv")} == {
        entry.scan_id: entry.split for entry in blobs.entries.values()
    }


def test_a_head_is_refused_with_an_encoder_that_it_is_not_for(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    folder = tmp_path / "run"
    run("frozen-linear", net, blobs, folder, features=features)
    torch.manual_seed(9)
    export_encoder(tmp_path / "other.safetensors", Iris(CHANNELS, 1))
    with pytest.raises(CheckpointError, match=r"has another encoder than .*head\.safetensors is for"):
        load_classifier(folder, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="its encoder is that of the checkpoint"):
        load_classifier(folder)
    with pytest.raises(CheckpointError, match=r"other.safetensors: holds no head"):
        load_head(tmp_path / "other.safetensors")


def test_a_training_that_was_stopped_goes_on_to_the_same_predictions(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    config = replace(settings("frozen-attention", steps=12), dropout=0.3)
    scans = scans_of(blobs, table, features)

    def stop(state: Any) -> None:
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    classify(net, scans, whole, config, device="cpu")
    first = classify(net, scans, parts, config, device="cpu", callbacks=Callbacks(progress=stop))
    assert first.scores is None
    assert first.training is not None
    assert first.training.step < 12
    assert not (parts / "results.json").exists()
    with pytest.raises(RunError, match="there is a run here already"):
        classify(net, scans, parts, config, device="cpu")
    second = classify(net, scans, parts, config, device="cpu", resume=True)
    assert second.scores is not None
    assert (parts / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


def test_a_run_does_not_go_on_with_other_classes(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    table = table_of_store(blobs)
    config = settings("frozen-attention", steps=2)
    classify(net, scans_of(blobs, table, features), tmp_path, config, device="cpu")
    other = relabelled(table, table.targets[:, ::-1])
    with pytest.raises(ConfigError, match=r"other settings: data\.labels"):
        classify(net, scans_of(blobs, other, features), tmp_path, config, device="cpu", resume=True)


# --- parts


def test_a_head_does_not_see_tokens_that_do_not_exist() -> None:
    torch.manual_seed(0)
    head = AttentionHead(6, 3).eval()
    tokens = torch.randn(2, 5, 6)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    spoilt = tokens.clone()
    spoilt[1, 3:] = 1e6
    assert torch.equal(head(tokens, valid)[0], head(spoilt, valid)[0])
    assert torch.allclose(head(spoilt, valid)[1], head(tokens[1:, :3], valid[1:, :3])[0])


def test_a_rare_class_weighs_as_much_as_a_frequent_one() -> None:
    targets = np.eye(2, dtype=np.float32)[[0] * 9 + [1]]
    weights = class_weights(targets, multi_label=False, weighted=True)
    totals = torch.from_numpy(targets).sum(0) * weights
    assert totals[0] == pytest.approx(totals[1])
    assert class_weights(targets, multi_label=True, weighted=True).tolist() == pytest.approx([1 / 9, 9])
    assert class_weights(targets, multi_label=False, weighted=False).tolist() == [1, 1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(multi_label: bool) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(3)[[0, 0, 0, 0, 1, 2]]
    weights = torch.tensor([0.5, 2.0, 3.0])
    whole = class_loss(logits, targets, weights, multi_label=multi_label).total
    parts = [
        class_loss(logits[k : k + 3], targets[k : k + 3], weights, multi_label=multi_label).total
        for k in (0, 3)
    ]
    assert whole == pytest.approx(float(sum(parts)) / 2)
    sure = 50 * (2 * targets - 1)
    assert class_loss(sure, targets, weights, multi_label=multi_label).total < 1e-6


def test_a_window_of_a_scan_holds_its_z_scores_and_lies_anywhere_inside(blobs: Store) -> None:
    scan = blobs.scan("train-01")
    image = scan.image(normalize=True)
    darkest = (scan.intensity.low - scan.intensity.mean) / scan.intensity.std
    batch = cut_batch(blobs, ["train-01"] * 60, list(range(60)), (16, 32, 32), seed=1)
    starts = set()
    for k, part in enumerate(batch.target[:, 0].numpy()):
        box = draw_box(scan.shape, (16, 32, 32), generator_of(1, k, "reference"))
        starts.add(box[2].start)
        assert box[:2] == (slice(-1, 15), slice(-8, 24)), "it lies in the middle of a window that is longer"
        np.testing.assert_allclose(part[1:15, 8:23], image[..., box[2]], atol=1e-5)
        np.testing.assert_allclose(part[:, :8], darkest, atol=1e-2)
    assert starts == set(range(15))


def test_a_view_of_a_whole_scan_is_moved_a_little_and_resampled(blobs: Store) -> None:
    scan, crop = blobs.scan("train-01"), (16, 16, 32)
    batch = whole_batch(blobs, ["train-01"] * 40, list(range(40)), crop, seed=1)
    still = to_window(scan.image(normalize=True), crop)
    middles = np.array([part.mean(axis=(0, 1)).argmax() for part in batch.target[:, 0].numpy()])
    assert abs(np.median(middles) - still.mean(axis=(0, 1)).argmax()) <= 2
    assert 3 <= np.ptp(middles) <= 0.3 * 32 + 2
    again = whole_batch(blobs, ["train-01"], [7], crop, seed=1)
    torch.testing.assert_close(again.target[0], batch.target[7], rtol=0, atol=0)
    assert batch.target_codes.shape == (40, 1, *crop)


@pytest.mark.parametrize("mode", ["frozen-linear", "full"])
def test_a_network_of_whole_scans_is_shown_whole_scans_and_its_head_tells(
    mode: Mode, net: Iris, blobs: Store, tmp_path: Path
) -> None:
    start, config = tmp_path / "whole.safetensors", tmp_path / "c.toml"
    export(net, start, TrainedOn(spacing_mm=1.5, crop_voxels=(16, 16, 32), whole_scans=True))
    config.write_text("[optimisation]\nnum_steps = 2\nbatch_size = 2\n[run]\nevaluate_every = 0\n")
    arguments = ["classify", str(start), str(blobs.path), str(tmp_path / "run"), "--mode", mode]
    assert main([*arguments, "--config", str(config), "--device", "cpu"]) == 0
    classifier = load_classifier(tmp_path / "run", None if mode == "full" else start)
    assert classifier.card.embedding.whole_scans
    assert classifier.card.embedding.window_voxels == (16, 16, 32)
    for row in rows_of(tmp_path / "run" / "predictions.csv")[::8]:
        said = classifier.probabilities(blobs.scan(row["id"]).image(normalize=True))
        assert said["1"] == pytest.approx(float(row["p 1"]), abs=2e-5)


def test_the_head_of_a_network_of_crops_is_the_file_that_it_was(
    net: Iris, blobs: Store, tmp_path: Path, features: Mapping[str, ScanFeatures]
) -> None:
    run("frozen-linear", net, blobs, tmp_path / "run", features=features)
    assert b"whole_scans" not in (tmp_path / "run" / "head.safetensors").read_bytes()


def test_samples_follow_from_seed_and_number_alone(blobs: Store) -> None:
    table = table_of_store(blobs)
    split = split_classes(table)
    samples = Samples(table=table, train=split.train, validation=(), seed=5, weighted=True)
    whole = [pair for some in samples.rows(4, 0, 16) for pair in some]
    assert [pair for some in samples.rows(2, 6, 10) for pair in some] == whole[6:]
    assert {row for _, row in whole} <= set(split.train)


# --- the command


def test_the_command_takes_classes_and_splits_that_the_store_knows(
    blobs: Store, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classify", str(checkpoint), str(blobs.path), str(tmp_path / "run")]
    more = ["--device", "cpu", "--json", str(tmp_path / "out.json")]
    assert main([*arguments, *more]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["mode"] == "frozen-linear"  # the default: best with few labels (docs/results.md)
    assert (told["complete"], told["tested_on"], told["checkpoint"]) == (True, "test", "net.safetensors")
    assert told["auc"] > 0.95
    assert told["c_chosen_by"] == "validation"
    shown = capsys.readouterr().out
    assert "mean over classes" in shown
    assert "balanced accuracy: " in shown
    assert main([*arguments, *more]) == 2
    assert "there is a run here already" in capsys.readouterr().err


def test_the_command_takes_settings_and_trains(blobs: Store, checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        "[classification]\nhidden = 8\n[optimisation]\nnum_steps = 3\n[run]\nevaluate_every = 0\n"
    )
    labels = write_labels(tmp_path / "labels.csv", blobs, **{"class": kind_of})
    code = main(
        [
            *("classify", str(checkpoint), str(blobs.path), str(tmp_path / "run"), "--labels", str(labels)),
            *("--config", str(config), "--test-fraction", "0.25", "--seed", "7", "--device", "cpu"),
            *("--mode", "frozen-attention"),
        ]
    )
    assert code == 0
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (told["steps"], told["seed"], told["mode"]) == (3, 7, "frozen-attention")
    assert (told["num_train"], told["num_validation"], told["num_scans"]) == (30, 0, 10)
    assert load_head(tmp_path / "run" / "head.safetensors")[1].hidden == 8


def test_the_blob_is_what_differs() -> None:
    assert blob_image(1, 5).max() > 300 > blob_image(0, 5).max()
