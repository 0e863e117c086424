"""Settings of a fine-tuning, and two recipes: for the published network, and for small networks.

Each table of a TOML file is a field of `FinetuneConfig`; settings that the file lacks keep the recipe's
value. Reads and writes nothing. The learning rate of a recipe depends on the mode: tokens alone are few
weights with a good start, and need larger steps than a network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from training.data import ViewAugmentation, strong
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError
from training.finetuning.labelled_samples import LabelledDataConfig
from training.finetuning.scans import FinetuneTaskConfig, Mode
from training.inference import InferenceConfig

FinetuneRecipe = Literal["published", "small"]

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
    """Inference for validation and report, and encoding of references for the initial tokens. The window and
    the number of masks are those of [data]."""
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
    base = FinetuneConfig() if name == "published" else _small()
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
