"""How a network was pretrained before it is used: the arms of the bench, behind one function.

All arms of a set and seed have the same network with the same initial weights, the same scans, windows,
augmentation, optimiser and number of steps, two views a sample. Settings are those of `mass pretrain --recipe
whole`, which were chosen for pretraining on masks: no rate was chosen for the others.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.bench.masked_autoencoding import MASKED_AUTOENCODING
from benchmarks.bench.masks import store_of
from benchmarks.bench.positions import POSITIONS
from benchmarks.bench.restoration import RESTORATION
from benchmarks.bench.self_supervised import SelfSupervised, pretrain_encoder
from benchmarks.bench.sets import BenchSet, Sources
from training.engine import CHECKPOINTS, is_run
from training.network import WEIGHTS
from training.pretraining import PretrainConfig, pretrain
from training.pretraining.config import whole
from training.pretraining.run import with_chosen_window


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to pretrain."""

    title: str
    masks: str = ""
    """The masks of an in-context pretraining (`benchmarks.bench.masks`)."""
    task: SelfSupervised[Any] | None = None
    """A pretraining of the encoder alone."""
    encoder_only: bool = False
    """Whether fine-tuning takes the encoder alone; decoder and tokens are then those of "from scratch"."""
    pretrained_as: str = ""
    """Another arm whose network this one uses."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the samples (`[data]`) that differ from those of all other arms, by name."""
    only_when_named: bool = False
    """Whether it is left out of every form, and runs where `--only` names it."""

    @property
    def is_pretrained(self) -> bool:
        """Whether it has a network of its own to train first."""
        return bool(self.masks or self.task)

    @property
    def in_context(self) -> bool:
        """Whether its network can answer from references, without fine-tuning."""
        return bool(self.masks)


ARMS = {
    "scratch": Arm(title="from scratch"),
    "slic": Arm(title="flat SLIC masks", masks="slic"),
    "first": Arm(title="the first version's masks", masks="first", only_when_named=True),
    "ours": Arm(title="**our masks**", masks="ours"),
    "ours-crops": Arm(
        title="our masks, crops of the finest level",
        masks="ours",
        data={"whole_fraction": 0.0},
        only_when_named=True,
    ),
    "ours-half": Arm(
        title="our masks, half whole scans, half crops",
        masks="ours",
        data={"whole_fraction": 0.5},
        only_when_named=True,
    ),
    "ours-best": Arm(title="the 250 best of our masks", masks="best", only_when_named=True),
    "ours-encoder": Arm(title="our masks, the encoder alone", pretrained_as="ours", encoder_only=True),
    "mae": Arm(title="masked autoencoding", task=MASKED_AUTOENCODING, encoder_only=True),
    "genesis": Arm(title="restoration (Models Genesis)", task=RESTORATION, encoder_only=True),
    "voco": Arm(title="position prediction (VoCo)", task=POSITIONS, encoder_only=True),
    "expert": Arm(title="*expert masks (ceiling)*", masks="expert"),
}


def source_arm(name: str) -> str:
    """The arm whose network an arm uses."""
    return ARMS[name].pretrained_as or name


def config_of(
    bench_set: BenchSet,
    *,
    seed: int,
    steps: int,
    window_voxels: int,
    early_fraction: float = 0.0,
    data: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """The settings of every pretraining of a set: the recipe for whole scans, with the set's window.

    Args:
        bench_set: The set.
        seed: Of weights and samples.
        steps: Of the pretraining.
        window_voxels: Most voxels of a window.
        early_fraction: Fraction of the steps, the first ones, in windows of a quarter of these voxels.
        data: Settings of the samples that an arm changes, by name.
    """
    base = whole()
    kept = set(bench_set.split.pretraining)
    config = replace(
        base,
        data=replace(
            base.data,
            exclude=tuple(sorted(set(bench_set.store.entries) - kept)),
            holdout_fraction=0.0,
            max_window_voxels=window_voxels,
            early_window_voxels=window_voxels // 4 if early_fraction else 0,
            early_fraction=early_fraction,
            **(data or {}),
        ),
        optimisation=replace(base.optimisation, num_steps=steps, seed=seed),
        run=replace(
            base.run, num_workers=0, evaluate_every=0, draw_every=0, keep_last=1, max_evaluation_voxels=0
        ),
    )
    shapes = [bench_set.store.entries[scan_id].shape_zyx for scan_id in bench_set.split.pretraining]
    return with_chosen_window(config, shapes)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a pretraining gave."""

    weights: Path
    first_loss: float
    last_loss: float
    seconds: float


def pretrain_arm(
    name: str, bench_set: BenchSet, sources: Sources, folder: Path, config: PretrainConfig
) -> Pretrained:
    """Pretrain an arm, or go on with it.

    Raises:
        ValueError: No scan to pretrain on has such masks.
        SystemExit: A signal stopped it; the same command goes on.
    """
    arm, began = ARMS[name], time.monotonic()
    if arm.task:
        result = pretrain_encoder(arm.task, bench_set.store, folder, config)
    else:
        store = store_of(arm.masks, bench_set.about, bench_set.store, sources)
        absent = set(bench_set.split.pretraining) - set(store.entries)
        if absent == set(bench_set.split.pretraining):
            raise ValueError(
                f"set {bench_set.about.name}, arm {name}: none of the scans to pretrain on has such masks. "
                "Leave it out (--only)"
            )
        own = [scan_id for scan_id in config.data.exclude if scan_id in store.entries]
        config = replace(config, data=replace(config.data, exclude=tuple(own)))
        result = pretrain(store.path, folder, config, resume=is_run(folder)).result
    if not result.complete:
        raise SystemExit(f"{folder.name}: stopped; the same command goes on")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Pretrained(
        weights=folder / WEIGHTS,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        seconds=time.monotonic() - began,
    )
