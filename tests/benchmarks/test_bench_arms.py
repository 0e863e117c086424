"""The rivals of pretraining on masks: each learns, is the same by seed, and hands on its encoder alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.bench import uses
from benchmarks.bench.arms import ARMS, config_of, pretrain_arm
from benchmarks.bench.masked_autoencoding import MASKED_FRACTION, mask_blocks
from benchmarks.bench.phantoms import PhantomConfig, draw_phantom
from benchmarks.bench.positions import Projected, crop_views, position_loss
from benchmarks.bench.restoration import distort, mapped, painted, shuffled
from benchmarks.bench.self_supervised import SelfSupervised, pretrain_encoder
from benchmarks.bench.sets import SETS, BenchSet, Sources, split_of
from benchmarks.bench.uses import Start, carried_over, fine_tuned, labelled_scans, starting_model
from storage import Store
from tests.training.phantom_store import make_phantom_store
from training.engine import CHECKPOINTS, is_run
from training.finetuning import carrying
from training.finetuning.carried_labels import CarriedMaps
from training.finetuning.config import FinetuneConfig, finetune_recipe
from training.finetuning.scans import LabelledScans
from training.inference import Carried, Reference, Structure
from training.network import WEIGHTS, Iris, load_checkpoint
from training.network.encoder import Encoder
from training.pretraining import PretrainConfig

TASKS = {name: arm.task for name, arm in ARMS.items() if arm.task}
CHANNELS = (4, 8, 8, 16, 16)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench_set(tmp_path_factory: pytest.TempPathFactory) -> BenchSet:
    store = make_phantom_store(tmp_path_factory.mktemp("store") / "store", num_scans=4, shape=(16, 32, 16))
    about = replace(SETS["hippocampus"], targets=1)
    return BenchSet(about=about, store=store, split=split_of(about, store))


def settings(bench_set: BenchSet, seed: int = 0, steps: int = 2) -> PretrainConfig:
    config = config_of(bench_set, seed=seed, steps=steps, window_voxels=4096)
    return replace(
        config,
        model=replace(config.model, channels=CHANNELS),
        optimisation=replace(config.optimisation, precision="float32"),
    )


def views(number: int = 2, shape: tuple[int, int, int] = (16, 32, 32)) -> Tensor:
    """Drawn scans, z-scores (B, 1, Z, Y, X)."""
    config = PhantomConfig(shape_zyx=shape, noise=10.0)
    images = np.stack([draw_phantom(config, k, unseen=False).image for k in range(number)]).astype(np.float32)
    return torch.from_numpy((images - images.mean()) / images.std())[:, None]


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.mark.parametrize("name", TASKS)
def test_each_arm_learns_something_on_drawn_scans(name: str) -> None:
    task: SelfSupervised = TASKS[name]
    torch.manual_seed(0)
    model = task.make(Encoder(CHANNELS), CHANNELS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, losses = views(shape=(16, 16, 32)), []
    for step in range(40):
        shown = task.change(images, generators(step % 4, 10 + step % 4))
        loss = task.loss(model, shown).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert all(
        weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.encoder.parameters()
    )


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_weights_and_only_the_encoder_is_trained(
    name: str, bench_set: BenchSet, tmp_path: Path
) -> None:
    nets = []
    for run, seed in enumerate((0, 0, 1)):
        pretrain_encoder(TASKS[name], bench_set.store, tmp_path / str(run), settings(bench_set, seed))
        nets.append(load_checkpoint(tmp_path / str(run)))
    one, again, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one if key.startswith("encoder"))
    torch.manual_seed(0)
    drawn = settings(bench_set).model.make().state_dict()
    assert all(torch.equal(one[key], drawn[key]) for key in one if not key.startswith("encoder"))
    assert any(not torch.equal(one[key], drawn[key]) for key in one if key.startswith("encoder"))
    assert nets[0].trained_on.whole_scans
    assert nets[0].trained_on.crop_voxels == settings(bench_set).data.crop_zyx


@pytest.mark.parametrize("name", ["ours", "mae"])
def test_a_pretraining_that_was_killed_before_its_first_checkpoint_is_begun_again(
    name: str, bench_set: BenchSet, tmp_path: Path
) -> None:
    sources = Sources(out=tmp_path, stores={bench_set.about.name: bench_set.store.path})
    config, folder = settings(bench_set), tmp_path / "run"
    pretrain_arm(name, bench_set, sources, folder, config)
    before = load_checkpoint(folder).state_dict()
    for left in (folder / CHECKPOINTS, folder / WEIGHTS):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    assert is_run(folder)
    pretrain_arm(name, bench_set, sources, folder, config)
    after = load_checkpoint(folder).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_targets_are_not_pretrained_on(bench_set: BenchSet, tmp_path: Path) -> None:
    import json

    pretrain_encoder(TASKS["mae"], bench_set.store, tmp_path / "run", settings(bench_set))
    used = json.loads((tmp_path / "run" / "run.json").read_text())["scans"]
    assert set(used) == set(bench_set.split.pretraining)
    assert not set(used) & set(bench_set.split.targets)


def test_decoder_and_tokens_are_those_of_scratch_where_the_encoder_alone_is_taken(
    bench_set: BenchSet, tmp_path: Path
) -> None:
    config = settings(bench_set)
    pretrain_encoder(TASKS["mae"], bench_set.store, tmp_path / "run", config)
    weights = tmp_path / "run" / "weights.safetensors"
    scans = labelled_scans(bench_set, bench_set.labelled(0, 2))
    tuning = finetune_recipe("whole")
    starts = [Start(config=config), Start(config=config, weights=weights, encoder_only=True)]
    scratch, encoder = (
        starting_model(bench_set, start, scans, tuning, seed=5).state_dict() for start in starts
    )
    alike = {key for key in scratch if torch.equal(scratch[key], encoder[key])}
    assert {key for key in scratch if ".encoder." not in key} <= alike
    trained = load_checkpoint(weights).encoder.state_dict()
    assert all(torch.equal(encoder[f"module.encoder.{key}"], trained[key]) for key in trained)
    assert isinstance(starts[0].network(bench_set, 0), Iris)


def test_carried_labels_are_trained_on_and_no_others(
    bench_set: BenchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[LabelledScans] = []

    def task(model: object, store: Store, config: FinetuneConfig, scans: LabelledScans, *_: object) -> None:
        trained.append(scans)
        shown = CarriedMaps(Path(config.finetune.carried), scans.carried)
        for scan_id in scans.carried:
            labels = shown.labels(store.scan(scan_id), scans.label)
            np.testing.assert_array_equal(np.unique(labels), [0, 1])
        raise SystemExit

    def first_structure(
        references: Sequence[Reference], structures: Sequence[Structure], target: np.ndarray
    ) -> Carried:
        masks = np.zeros((len(structures), *target.shape), np.float32)
        masks[0, 2:6, 4:9, 3:8] = 1
        return Carried(
            probabilities=masks, agreement=0.5, warped=target, confidences=(0.9,) * len(structures)
        )

    monkeypatch.setattr(carrying, "carry_structures", first_structure)
    monkeypatch.setattr(uses, "finetuning_task", task)
    ids = bench_set.labelled(0, 1)
    carried = carried_over(bench_set, ids, tmp_path / "carried")
    start = Start(config=settings(bench_set))
    with pytest.raises(SystemExit):
        fine_tuned(bench_set, start, ids, tmp_path / "run", seed=0, steps=1, carried=carried)
    (scans,) = trained
    assert scans.training == tuple(ids)
    assert set(scans.carried) == set(bench_set.split.pretraining) - set(ids)
    assert not set(scans.trained_on) & set(bench_set.split.targets)


# ------------------------------------------------------------------------------------ what is shown


def test_blocks_are_masked_and_the_loss_is_of_them_alone() -> None:
    shown = mask_blocks(views(), generators(0, 1))
    assert shown.hidden.float().mean() == pytest.approx(MASKED_FRACTION, abs=0.05)
    assert (shown.hidden[0] != shown.hidden[1]).any()
    blocks = shown.hidden[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()
    seen: list[Tensor] = []

    def perfect_there(image: Tensor) -> Tensor:
        seen.append(image)
        return torch.where(shown.hidden, shown.image, torch.full_like(image, 9.0))

    assert TASKS["mae"].loss(perfect_there, shown).total == 0
    assert (seen[0][shown.hidden] == 0).all()
    assert torch.equal(seen[0][~shown.hidden], shown.image[~shown.hidden])


def test_distortions_follow_from_the_generator_and_leave_the_target() -> None:
    images = views()
    first, again, other = (distort(images, generators(*seeds)) for seeds in ((0, 1), (0, 1), (2, 3)))
    assert torch.equal(first.shown, again.shown)
    assert not torch.equal(first.shown, other.shown)
    assert torch.equal(first.image, images)
    assert (first.shown != images).any()


def test_shuffling_moves_voxels_within_blocks_and_loses_none() -> None:
    image = views(1)[0, 0].numpy()
    moved = shuffled(image, np.random.default_rng(1))
    assert (moved != image).any()
    np.testing.assert_array_equal(np.sort(moved.ravel()), np.sort(image.ravel()))
    ramp = np.arange(32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    for seed in range(8):
        inside = shuffled(ramp, np.random.default_rng(seed))[3:-3]
        assert np.abs(inside - ramp[3:-3]).max() <= 2  # a block is at most a tenth long


def test_a_rising_map_keeps_the_order_of_intensities() -> None:
    values = np.linspace(0, 1, 50, dtype=np.float32)
    curves = [mapped(values, np.random.default_rng(seed)) for seed in range(12)]
    rising = [bool((np.diff(curve) >= -1e-6).all()) for curve in curves]
    assert 2 <= sum(rising) <= 12
    assert all(curve.min() >= 0 and curve.max() <= 1 for curve in curves)
    assert any(np.abs(curve - values).max() > 0.1 for curve in curves)


def test_painting_keeps_a_part_of_the_image() -> None:
    image = views(1)[0, 0].numpy()
    outward, inward = (painted(image, np.random.default_rng(0), outward=outward) for outward in (True, False))
    for distorted in (outward, inward):
        assert 0.02 < (distorted == image).mean() < 0.99


def test_the_parts_of_a_crop_in_the_base_crops_add_up_to_it() -> None:
    crops = crop_views(views(), generators(0, 1))
    assert crops.bases.shape[:2] == (2, 4)  # 16 voxels along z are not divided
    torch.testing.assert_close(crops.overlaps.sum(2), torch.ones(2, 4))
    centred = crop_views(torch.zeros(1, 1, 16, 32, 32), [_Middle()])
    torch.testing.assert_close(centred.overlaps, torch.full((1, 4, 4), 0.25))


class _Middle(np.random.Generator):
    """Draws the middle of every range."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, low, high, *more, **named):  # type: ignore[override, no-untyped-def]
        return (low + high - 1) // 2


def test_the_loss_of_positions_is_least_where_overlaps_are_predicted() -> None:
    crops = crop_views(views(1), generators(0))
    number = crops.bases.shape[1]

    class Knowing(torch.nn.Module):
        def __init__(self, overlaps: Tensor) -> None:
            super().__init__()
            self.overlaps = overlaps

        def forward(self, together: Tensor) -> Tensor:
            return torch.cat([torch.eye(number), self.overlaps[0]])

    true = position_loss(Knowing(crops.overlaps), crops).total
    wrong = position_loss(Knowing(crops.overlaps.roll(1, dims=2)), crops).total
    assert true == pytest.approx(0, abs=1e-4)
    assert wrong > true + 0.1


def test_features_of_crops_are_unit_vectors() -> None:
    model = Projected(Encoder(CHANNELS), CHANNELS)
    found = model(crop_views(views(1), generators(0)).bases[0][:, None])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
