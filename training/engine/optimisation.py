"""How weights are changed: optimiser, learning rate over the run, clipping, averaged weights.

*Reads* gradients. *Writes* weights and the optimiser's moments, in place. The rate is a function of the step
alone, so that a resumed run has nothing to restore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.engine.precision import Precision
from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """Settings of the table [optimisation]; the defaults are the published recipe's."""

    optimiser: Literal["lamb", "adamw", "muon"] = "lamb"
    """LAMB scales each tensor's update to its norm; Muon makes each matrix's orthogonal, which leaves the
    plateau of small networks several times sooner than AdamW (docs/results.md)."""

    peak_rate: float = 2e-3
    """Highest learning rate. The published one is LAMB's at full width; AdamW diverges at 1e-3."""

    vector_rate_fraction: float = 0.08
    """Muon only: the rate of what is no matrix (biases, norms, tokens; AdamW), as a part of the rate."""

    weight_decay: float = 1e-5
    """Decoupled decay, times the rate, a step."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the means of gradients and of their squares."""

    num_steps: int = 100_000
    """Steps of the whole run; the rate's course depends on it."""

    batch_size: int = 4
    """Samples a step, over all processes and accumulated parts together."""

    accumulation: int = 1
    """Parts that a step's samples are cut into, one after the other, to save memory. Divides batch_size."""

    warm_up_fraction: float = 0.05
    """Part of the steps in which the rate rises."""

    initial_division: float = 25.0
    """The rate begins at peak_rate / initial_division."""

    final_division: float = 1000.0
    """The rate ends at peak_rate / initial_division / final_division."""

    max_gradient_norm: float = 1.0
    """Gradients of a larger norm (over all weights) are scaled down to it; 0 never."""

    ema_decay: float = 0.99
    """The averaged weights move by 1 - ema_decay of the way to the weights at every step."""

    precision: Precision = "auto"
    """Of convolutions and matrix products in the network (autocast) and of Muon's orthogonalisation; weights,
    norms and loss stay float32. "auto" is bfloat16 where the device has it, else float32."""

    compile: bool = False
    """Whether torch.compile is applied to the network: minutes at the start, then faster steps on a GPU."""

    seed: int = 0
    """Of the first weights and of every sample."""

    def __post_init__(self) -> None:
        for name in ("peak_rate", "vector_rate_fraction", "num_steps", "batch_size", "accumulation"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("initial_division", "final_division"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("weight_decay", "max_gradient_norm", "seed"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", "within 0 and 1", self.betas)
        _require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1", self.ema_decay)
        _require(0 <= self.warm_up_fraction < 1, "warm_up_fraction", "within 0 and 1", self.warm_up_fraction)
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"accumulation must divide batch_size, got {self.accumulation} and {self.batch_size}"
            )


def make_optimiser(
    net: nn.Module, config: OptimisationConfig, *, bfloat16: bool = False
) -> torch.optim.Optimizer:
    """The optimiser over the weights of `net` that need gradients, at the first step's rate.

    Args:
        net: On the device it is trained on.
        config: Which optimiser, and how fast.
        bfloat16: Whether Muon orthogonalises in bfloat16 rather than float32.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    rate, betas, decay = rate_at(0, config), config.betas, config.weight_decay
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=decay)
        case "lamb":
            from pytorch_optimizer import Lamb

            # Without adam_debias this version divides the step, already scaled to the weight's norm, by
            # 1 - beta1^t: ten times the rate at the first step. LAMB (arXiv 1904.00962v3) does not.
            return Lamb(weights, lr=rate, betas=betas, weight_decay=decay, adam_debias=True)
        case "muon":
            from training.engine.muon import PrecisionMuon, muon_group

            matrices = [weight for weight in matrices_of(net) if weight.requires_grad]
            chosen = set(map(id, matrices))
            groups = [
                {**muon_group(matrices, bfloat16=bfloat16), "rate_fraction": 1.0},
                {
                    "params": [weight for weight in weights if id(weight) not in chosen],
                    "use_muon": False,
                    "betas": betas,
                    "rate_fraction": config.vector_rate_fraction,
                },
            ]
            groups = [{**group, "weight_decay": decay} for group in groups if group["params"]]
            optimiser = PrecisionMuon(groups)
            set_rate(optimiser, rate)
            return optimiser


def matrices_of(net: nn.Module) -> list[Tensor]:
    """The weights of convolutions, linear maps and attention: what maps vectors to vectors."""
    return [
        weight
        for module in net.modules()
        if isinstance(module, nn.Linear | nn.Conv3d | nn.MultiheadAttention)
        for weight in module.parameters(recurse=False)
        if weight.ndim >= 2
    ]


def rate_at(step: int, config: OptimisationConfig) -> float:
    """The learning rate of step `step`, counted from 0: two half cosines, up and down ("one cycle").

    Smith and Topin 2018 (arXiv 1708.07120), as in torch's OneCycleLR, without the cycle of momentum.
    """
    first = config.peak_rate / config.initial_division
    last = first / config.final_division
    top = max(config.warm_up_fraction * config.num_steps - 1, 0.0)
    if step < top:
        return _half_cosine(first, config.peak_rate, step / top)
    down = max(config.num_steps - 1 - top, 1.0)
    return _half_cosine(config.peak_rate, last, (step - top) / down)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give all weights this learning rate, or their group's fraction of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate_fraction", 1.0)


def gradient_norm(net: nn.Module) -> Tensor:
    """The norm of the gradient over all weights, a scalar; not finite where any of them is not."""
    return nn.utils.get_total_norm([weight.grad for weight in net.parameters() if weight.grad is not None])


def clip_gradients(net: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scale gradients of the norm `norm` down to `max_norm` where that is smaller; 0 leaves them."""
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(net.parameters(), max_norm, norm)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the weights, in place; buffers are copied."""
    weights: list[Tensor] = list(net.parameters())
    averaged: list[Tensor] = list(average.parameters())
    get_ema_multi_avg_fn(decay)(averaged, weights, None)  # type: ignore[no-untyped-call]
    for buffer, source in zip(average.buffers(), net.buffers(), strict=True):
        buffer.copy_(source)


def _half_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * way))


def _require(holds: bool, field: str, must: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"setting {field} must be {must}, got {got!r}")
