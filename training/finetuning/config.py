"""Every choice of a fine-tuning, and two recipes: for the published network, and for small ones.

A table of a TOML file is a part of `FinetuneConfig`; what is left out keeps the recipe's value. Reads and
writes nothing. That both recipes differ by mode has one reason: tokens alone are few weights, which start
where they already work and need larger steps than a network does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from training.data import ViewAugmentation, strong
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError
from training.finetuning.samples import LabelledDataConfig
from training.finetuning.scans import FinetuningConfig, Mode
from training.inference import InferenceConfig

FinetuneRecipe = Literal["published", "small"]

TOKEN_RATE = 3e-3
"""Peak rate of AdamW where only the tokens are trained."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of `mass finetune`: a table of the TOML file each."""

    finetune: FinetuningConfig = field(default_factory=FinetuningConfig)
    """What is trained, on which scans."""
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    """Places and structures of the samples."""
    augmentation: ViewAugmentation = field(default_factory=strong)
    """How samples are changed: the published recipe's strong view."""
    optimisation: OptimisationConfig = field(
        default_factory=lambda: OptimisationConfig(optimiser="adamw", peak_rate=1e-4, num_steps=5000)
    )
    """How weights are changed."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How scans are segmented for validation and report, and references shown for the first tokens. The
    window and the number of masks are those of [data]."""
    run: RunConfig = field(default_factory=RunConfig)
    """How the run is fed and watched."""

    def __post_init__(self) -> None:
        if self.inference.mirror:
            raise ConfigError("inference: mirror must be false: tokens are not trained on mirrored images")

    def values(self) -> dict[str, Any]:
        """All settings, plain values by table."""
        return asdict(self)


def finetune_recipe(name: FinetuneRecipe, mode: Mode = "full") -> FinetuneConfig:
    """The recipe of this name, with the rate that suits a mode."""
    base = FinetuneConfig() if name == "published" else _small()
    optimisation = base.optimisation
    if mode == "tokens":
        optimisation = replace(optimisation, optimiser="adamw", peak_rate=TOKEN_RATE)
    return replace(base, finetune=replace(base.finetune, mode=mode), optimisation=optimisation)


def _small() -> FinetuneConfig:
    """Crops and rates of `mass pretrain --recipe small`: minutes on two CPU cores."""
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
