"""Settings of a fine-tuning, and its recipes: for the published network, for small ones, for whole scans.

Each table of a TOML file is a field of `FinetuneConfig`; settings that the file lacks keep the recipe's
value. Reads and writes nothing. The learning rate of a recipe depends on the mode: tokens alone are few
weights with a good start, and need larger steps than a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from training.data import Triple, ViewAugmentation, cut_around, strong, window_for
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError
from training.finetuning.labelled_samples import LabelledDataConfig
from training.finetuning.scans import FinetuneTaskConfig, Mode
from training.inference import InferenceConfig
from training.network import TrainedOn

FinetuneRecipe = Literal["published", "small", "whole"]

TOKEN_RATE = 3e-3
"""Peak learning rate of AdamW if only the tokens are trained."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of `mass finetune`; each field is a table of the TOML file."""

    finetune: FinetuneTaskConfig = field(default_factory=FinetuneTaskConfig)
    """Which weights are trained, for which structures, on which scans."""
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    """Crops and structures of the samples."""
    augmentation: ViewAugmentation = field(default_factory=strong)
    """Augmentation of the samples; by default that of the target in the published recipe (strong)."""
    optimisation: OptimisationConfig = field(
        default_factory=lambda: OptimisationConfig(optimiser="adamw", peak_rate=1e-4, num_steps=5000)
    )
    """Optimiser, learning rate, number of steps, precision."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Inference for validation and report, and encoding of references for the initial tokens. Windows, levels
    and the number of masks are those of [data]."""
    run: RunConfig = field(default_factory=RunConfig)
    """Data loading, logging, checkpoints."""

    def __post_init__(self) -> None:
        if self.inference.mirror:
            raise ConfigError("inference: mirror must be false: tokens are not trained on mirrored images")

    def values(self) -> dict[str, Any]:
        """Return all settings as plain values by table."""
        return asdict(self)


def finetune_recipe(name: FinetuneRecipe, mode: Mode = "full") -> FinetuneConfig:
    """Return the settings of a recipe, with the learning rate for a mode."""
    match name:
        case "published":
            base = FinetuneConfig()
        case "small":
            base = _small()
        case "whole":
            base = _whole()
    optimisation = base.optimisation
    if mode == "tokens":
        optimisation = replace(optimisation, optimiser="adamw", peak_rate=TOKEN_RATE)
    return replace(base, finetune=replace(base.finetune, mode=mode), optimisation=optimisation)


def _small() -> FinetuneConfig:
    """Return settings with crops and rates of `mass pretrain --recipe small`: minutes on two CPU cores."""
    crop = (32, 48, 32)
    return FinetuneConfig(
        data=LabelledDataConfig(crop_voxels=crop, cut_voxels=(44, 64, 44)),
        augmentation=ViewAugmentation(max_shear=0.1),
        optimisation=OptimisationConfig(optimiser="muon", peak_rate=4e-3, num_steps=300, batch_size=2),
        inference=InferenceConfig(reference_voxels=crop),
        run=RunConfig(
            num_workers=2,
            checkpoint_every=100,
            evaluate_every=200,
            max_evaluation_voxels=500_000,
            draw_every=200,
        ),
    )


def _whole() -> FinetuneConfig:
    """Return the small recipe for views of whole scans, as in `mass pretrain --recipe whole`."""
    base = _small()
    return replace(
        base,
        data=replace(base.data, max_window_voxels=65_536, whole_fraction=0.5),
        # With 0.99, a fifth of the average would still be the initial weights after 150 steps.
        optimisation=replace(base.optimisation, ema_decay=0.97),
        run=replace(base.run, max_evaluation_voxels=30_000_000),
    )


def with_chosen_window(
    config: FinetuneConfig, trained_on: TrainedOn, shapes: Sequence[Triple]
) -> FinetuneConfig:
    """Return the settings with the window to show whole scans in, if `max_window_voxels` is set.

    It is that of the checkpoint's training on whole scans, or the best one for the training scans, if there
    is none or with `choose_window`.

    Args:
        config: All settings.
        trained_on: Record of the checkpoint's training.
        shapes: Voxels along z, y, x of the training scans.
    """
    data = config.data
    if data.max_window_voxels:
        own = trained_on.crop_voxels if trained_on.whole_scans and not data.choose_window else None
        window = own or window_for(shapes, data.max_window_voxels)
        data = replace(data, crop_voxels=window, cut_voxels=cut_around(window))
    if not data.whole_fraction:
        return replace(config, data=data)
    inference = replace(
        config.inference,
        window_voxels=data.boxes.crop_zyx,
        reference_voxels=data.boxes.crop_zyx,
        whole_scans=True,
        fine_windows=data.max_fine_windows,
    )
    return replace(config, data=data, inference=inference)
