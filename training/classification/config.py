"""Settings of a classification, with the defaults of each mode. Reads and writes nothing."""

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
    """Settings of a classification; checked on construction."""

    mode: Mode = "frozen-attention"
    """"frozen-attention": attention head on a frozen encoder; "frozen-linear": logistic regression on its
    pooled features; "full": encoder and attention head are trained."""
    from_scratch: bool = False
    """Whether to replace the encoder's weights by random ones; a baseline with the same network."""
    weighted: bool = True
    """Whether to weight classes so that rare ones count as much as frequent ones."""
    hidden: int = 64
    """Width of the two layers that compute the attention."""
    dropout: float = 0.2
    """Dropout probability of the channels of the attention-weighted sum of tokens."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    """Windows, tokens and precision of the encoder."""
    augmentation: ViewAugmentation = field(default_factory=ViewAugmentation)
    """Augmentation of windows in the mode "full"; never mirrors, because classes may depend on the side."""
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    """Optimisation in the modes "frozen-attention" and "full"; its seed is used for weights and samples."""
    run: RunConfig = field(default_factory=RunConfig)
    """Logging, checkpoints and evaluations."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"hidden must be at least 1 and dropout in [0, 1), got {self.hidden} and {self.dropout}"
            )

    def values(self) -> dict[str, Any]:
        """Return all settings as plain values by table."""
        values = asdict(self)
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        return {"classification": {k: v for k, v in values.items() if k not in tables}, **tables}


def classify_config(mode: Mode, *, from_scratch: bool = False) -> ClassifyConfig:
    """Return the default settings of a mode."""
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
