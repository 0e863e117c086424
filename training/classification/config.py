"""Every choice of a classification, and what each mode begins with. Reads and writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.classification.embedding import EmbeddingConfig
from training.data import ViewAugmentation
from training.engine import OptimisationConfig, RunConfig
from training.errors import ConfigError

Mode = Literal["frozen-attention", "frozen-linear", "full"]


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Settings of a classification; checked when made."""

    mode: Mode = "frozen-attention"
    """What is trained, on what."""
    from_scratch: bool = False
    """Whether the encoder's weights are drawn anew: the same network, without what the checkpoint knows."""
    weighted: bool = True
    """Whether rare classes weigh as much as frequent ones."""
    hidden: int = 64
    """Width of the attention's two layers."""
    dropout: float = 0.2
    """Part of the summed token's channels that a training step does not see."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """How scans are shown to the encoder."""
    augmentation: ViewAugmentation = field(default_factory=ViewAugmentation)
    """How windows are changed where all weights are trained; nothing is mirrored: sides may be classes."""
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    """How weights are changed, where they are trained by steps; its seed draws weights and samples."""
    run: RunConfig = field(default_factory=RunConfig)
    """How a training is watched."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"hidden must be at least 1 and dropout in [0, 1), got {self.hidden} and {self.dropout}"
            )

    def values(self) -> dict[str, Any]:
        """All settings, plain values by table."""
        values = asdict(self)
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        return {"classification": {k: v for k, v in values.items() if k not in tables}, **tables}


def classify_config(mode: Mode, *, from_scratch: bool = False) -> ClassifyConfig:
    """Return the settings of a mode that the others are changed from."""
    if mode == "full":
        return ClassifyConfig(
            mode=mode,
            from_scratch=from_scratch,
            augmentation=ViewAugmentation(max_scale_change=0.15, max_rotation_degrees=15.0),
            optimisation=OptimisationConfig(
                optimiser="adamw", peak_rate=5e-4, num_steps=1000, batch_size=8, weight_decay=1e-2
            ),
            run=RunConfig(num_workers=0, checkpoint_every=200, keep_last=1, evaluate_every=100, draw_every=0),
        )
    return ClassifyConfig(
        mode=mode,
        from_scratch=from_scratch,
        optimisation=OptimisationConfig(
            optimiser="adamw",
            peak_rate=2e-3,
            num_steps=400,
            batch_size=32,
            weight_decay=1e-2,
            ema_decay=0.95,
            precision="float32",
        ),
        run=RunConfig(num_workers=0, checkpoint_every=200, keep_last=1, evaluate_every=25, draw_every=0),
    )
