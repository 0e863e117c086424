"""Settings of a pretraining, and its recipes: "whole" and "small" for CPUs, "large" and "published" for GPUs.

Each table of a TOML file is a field of `PretrainConfig`; settings that the file lacks keep the recipe's
value. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from training.data import AugmentationConfig, DataConfig, ViewAugmentation
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError
from training.evaluation import EvaluationConfig
from training.inference import WHOLE_SCAN_THRESHOLD, InferenceConfig
from training.network import PUBLISHED_CHANNELS, PUBLISHED_NUM_TASKS, Iris

Recipe = Literal["whole", "large", "small", "published"]

DEFAULT_RECIPE: Recipe = "whole"
"""The recipe without --recipe: it shows whole scans, and needs no GPU."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The size of the network; the defaults are those of the published network."""

    channels: tuple[int, int, int, int, int] = PUBLISHED_CHANNELS
    """Channels of the five stages, full resolution first; each of the three deepest is a multiple of 32, or
    below 32."""

    num_tasks: int = PUBLISHED_NUM_TASKS
    """Number of labelled tasks whose priors a checkpoint can store; pretraining does not use them."""

    position_std: float = 1.0
    """Initial standard deviation of the position volumes; with a value near 0 a narrow network learns faster
    in its first steps."""

    task_encoding: Literal["fast", "direct"] = "fast"
    """Implementation of the task encoding; "direct" gives the same result, slower."""

    def __post_init__(self) -> None:
        if self.position_std < 0 or self.num_tasks < 1:
            raise ConfigError(
                f"position_std must be at least 0 and num_tasks at least 1, got {self.position_std} and "
                f"{self.num_tasks}"
            )

    def make(self) -> Iris:
        """Return the network with random weights, from torch's global generator."""
        return Iris(
            self.channels,
            self.num_tasks,
            position_std=self.position_std,
            task_encoding=self.task_encoding,
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `mass pretrain`; each field is a table of the TOML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Scans, crops and masks of the samples."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Augmentation of the two views of a sample."""
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    """Optimiser, learning rate, number of steps, precision."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """In-context evaluations on labelled scans during the training."""
    run: RunConfig = field(default_factory=RunConfig)
    """Data loading, logging, checkpoints."""

    def values(self) -> dict[str, Any]:
        """Return all settings as plain values by table."""
        return asdict(self)


def recipe(name: Recipe) -> PretrainConfig:
    """Return the settings of a recipe."""
    recipes = {"whole": whole, "large": large, "small": small, "published": published}
    return recipes[name]()


def published() -> PretrainConfig:
    """Return the published recipe, for large GPUs: 100,000 steps of 4 samples of 128^3 voxels."""
    return PretrainConfig()


def small() -> PretrainConfig:
    """Return a recipe that trains on two CPU cores in minutes: narrow network, small crops, Muon."""
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
    """Return the small recipe for views of whole scans, resampled to one window of at most 65,536 voxels.

    A crop does not show where in the body it is. On whole scans, networks trained with this recipe find
    structures that networks trained on crops do not (docs/results.md).
    """
    config = _on_whole_scans(small(), 65_536)
    return replace(
        config,
        # At 4e-3 fewer directions are left in the features, and fine-tuning gains less (docs/results.md).
        optimisation=replace(config.optimisation, num_steps=2000, peak_rate=1e-3),
        run=replace(config.run, max_evaluation_voxels=30_000_000),
    )


def large() -> PretrainConfig:
    """Return the published network and optimiser for views of whole scans, in windows of 1,048,576 voxels.

    For one GPU. A window has half of the published crop's voxels, a run a fifth of its steps. No network has
    been trained with it yet.
    """
    config = _on_whole_scans(published(), 1_048_576)
    return replace(config, optimisation=replace(config.optimisation, num_steps=20_000))


def _on_whole_scans(base: PretrainConfig, max_window_voxels: int) -> PretrainConfig:
    """Return settings whose samples are views of whole scans; the first three quarters in small windows."""
    inference = replace(base.evaluation.inference, threshold=WHOLE_SCAN_THRESHOLD)
    return replace(
        base,
        data=replace(
            base.data,
            max_window_voxels=max_window_voxels,
            early_window_voxels=max_window_voxels // 4,
            early_fraction=0.75,
            whole_fraction=1.0,
            min_mask_voxels=50,
            max_mask_fraction=0.6,
        ),
        evaluation=replace(base.evaluation, inference=inference),
    )
