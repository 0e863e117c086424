"""Every choice of a pretraining: the published recipe, and a small one for small machines and small data.

A table of a TOML file is a part of `PretrainConfig`; what is left out keeps the recipe's value. Reads and
writes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from training.data import AugmentationConfig, DataConfig, ViewAugmentation
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError
from training.evaluation import EvaluationConfig
from training.inference import InferenceConfig
from training.network import PUBLISHED_CHANNELS, PUBLISHED_NUM_TASKS, Iris

Recipe = Literal["published", "small", "whole"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network; the defaults are the published one."""

    channels: tuple[int, int, int, int, int] = PUBLISHED_CHANNELS
    """Widths of the five stages, full resolution first; the three deepest multiples of 32, or below it."""

    num_tasks: int = PUBLISHED_NUM_TASKS
    """Labelled tasks whose priors a checkpoint has room for; pretraining uses none."""

    position_std: float = 1.0
    """Standard deviation that the position volumes start with; near 0 spares a narrow net's first steps."""

    task_encoding: Literal["fast", "direct"] = "fast"
    """How the masks are encoded: the direct form gives the same, slower."""

    def __post_init__(self) -> None:
        if self.position_std < 0 or self.num_tasks < 1:
            raise ConfigError(
                f"position_std must be at least 0 and num_tasks at least 1, got {self.position_std} and "
                f"{self.num_tasks}"
            )

    def make(self) -> Iris:
        """The network, its weights drawn from torch's generator."""
        return Iris(
            self.channels,
            self.num_tasks,
            position_std=self.position_std,
            task_encoding=self.task_encoding,
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `mass pretrain`: a table of the TOML file each."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Scans, places and masks of the samples."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """How the two views of a sample are changed."""
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    """How weights are changed."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What the network is asked on labelled scans, now and then."""
    run: RunConfig = field(default_factory=RunConfig)
    """How the run is fed and watched."""

    def values(self) -> dict[str, Any]:
        """All settings, plain values by table."""
        return asdict(self)


def recipe(name: Recipe) -> PretrainConfig:
    """The recipe of this name."""
    match name:
        case "published":
            return published()
        case "small":
            return small()
        case "whole":
            return whole()


def published() -> PretrainConfig:
    """The recipe of the published release: 100,000 steps of 4 samples of 128 voxels cubed, for large GPUs."""
    return PretrainConfig()


def small() -> PretrainConfig:
    """A recipe that trains on two CPU cores in minutes: narrow network, small crops, Muon."""
    crop = (32, 48, 32)
    return PretrainConfig(
        model=ModelConfig(channels=(8, 16, 32, 64, 96), num_tasks=1, position_std=0.02),
        data=DataConfig(
            crop_voxels=crop,
            cut_voxels=(44, 64, 44),
            masks_per_sample=10,
            holdout_fraction=0.2,
        ),
        augmentation=AugmentationConfig(target=ViewAugmentation(max_shear=0.1)),
        optimisation=OptimisationConfig(
            optimiser="muon", peak_rate=4e-3, num_steps=3000, batch_size=2, warm_up_fraction=0.05
        ),
        evaluation=EvaluationConfig(
            num_targets=4,
            num_prompts=1,
            inference=InferenceConfig(window_voxels=crop, reference_voxels=crop, masks_at_once=5),
        ),
        run=RunConfig(
            num_workers=2,
            checkpoint_every=200,
            evaluate_every=500,
            max_evaluation_voxels=500_000,
            draw_every=500,
        ),
    )


def whole() -> PretrainConfig:
    """The small recipe on views of whole scans, in one window of 65,536 voxels whose sides suit the scans.

    A window cut out of a scan does not say where in the body it is: on whole scans it finds structures where
    crops do not (docs/results.md).
    """
    base = small()
    return replace(
        base,
        data=replace(
            base.data,
            max_window_voxels=65_536,
            whole_fraction=1.0,
            min_mask_voxels=50,
            max_mask_fraction=0.6,
        ),
        optimisation=replace(base.optimisation, num_steps=4000),
        run=replace(base.run, max_evaluation_voxels=30_000_000),
    )
