"""Optimisation: optimiser, learning-rate schedule, gradient clipping, moving average of the weights.

*Reads* gradients. *Writes* weights and the optimiser's moments, in place. The learning rate is a function of
the step alone, so that a resumed run does not have to restore it.
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
    """LAMB scales the update of each tensor to the tensor's norm. Muon makes the update of each matrix
    orthogonal; small networks leave their initial plateau several times sooner than with AdamW
    (docs/results.md)."""

    peak_rate: float = 2e-3
    """Largest learning rate. The default is the published one, for LAMB and the full-width network; AdamW
    diverges at 1e-3."""

    vector_rate_fraction: float = 0.08
    """Muon only: learning rate of all parameters that are not matrices (biases, norms, tokens), which AdamW
    updates, as a fraction of the learning rate."""

    weight_decay: float = 1e-5
    """Decoupled weight decay per step, multiplied by the learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moving averages of gradients and squared gradients."""

    num_steps: int = 100_000
    """Steps of the whole run; the learning-rate schedule depends on it."""

    batch_size: int = 4
    """Samples per step, over all processes and accumulation parts together."""

    accumulation: int = 1
    """Number of parts that a step's samples are split into, to save memory; their gradients are averaged.
    Divides batch_size."""

    warm_up_fraction: float = 0.05
    """Fraction of the steps in which the learning rate rises."""

    initial_division: float = 25.0
    """The learning rate starts at peak_rate / initial_division."""

    final_division: float = 1000.0
    """The learning rate ends at peak_rate / initial_division / final_division."""

    max_gradient_norm: float = 1.0
    """Gradients with a larger norm (over all weights) are scaled down to this norm; 0 disables clipping."""

    ema_decay: float = 0.99
    """Decay per step of the exponential moving average (EMA) of the weights."""

    precision: Precision = "auto"
    """Precision of convolutions and matrix products in the network (autocast) and of Muon's
    orthogonalisation; weights, norms and loss stay float32. "auto" is bfloat16 where the device has it,
    otherwise float32."""

    compile: bool = False
    """Whether to apply torch.compile to each residual and fusion block. Off by default: no gain over the
    Triton kernels has been measured on a GPU yet."""

    seed: int = 0
    """Seed of the initial weights and of every sample."""

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
    """Return the optimiser of the trainable weights of `net`, with the learning rate of step 0.

    Args:
        net: The network, on the device it is trained on.
        config: Which optimiser, and its settings.
        bfloat16: Whether Muon orthogonalises in bfloat16 rather than float32.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    rate, betas, decay = rate_at(0, config), config.betas, config.weight_decay
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=decay)
        case "lamb":
            from pytorch_optimizer import Lamb

            # Without adam_debias, this version divides the step by 1 - beta1^t after scaling it to the
            # weight's norm: the first step is ten times too large. LAMB (arXiv 1904.00962v3) does not.
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
    """Return the weights of convolutions, linear layers and attention with two or more axes."""
    return [
        weight
        for module in net.modules()
        if isinstance(module, nn.Linear | nn.Conv3d | nn.MultiheadAttention)
        for weight in module.parameters(recurse=False)
        if weight.ndim >= 2
    ]


def rate_at(step: int, config: OptimisationConfig) -> float:
    """Return the learning rate of a step, counted from 0: a rising, then a falling half cosine ("one cycle").

    Smith and Topin 2018 (arXiv 1708.07120), as in torch's OneCycleLR, without the cycle of the momentum.
    """
    first = config.peak_rate / config.initial_division
    last = first / config.final_division
    top = max(config.warm_up_fraction * config.num_steps - 1, 0.0)
    if step < top:
        return _half_cosine(first, config.peak_rate, step / top)
    down = max(config.num_steps - 1 - top, 1.0)
    return _half_cosine(config.peak_rate, last, (step - top) / down)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group to `rate` times the group's rate fraction (default 1)."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate_fraction", 1.0)


def gradient_norm(net: nn.Module) -> Tensor:
    """Return the norm of the gradient over all weights, a scalar; not finite if any gradient is not."""
    return nn.utils.get_total_norm([weight.grad for weight in net.parameters() if weight.grad is not None])


def clip_gradients(net: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scale gradients down, in place, if their norm exceeds `max_norm`.

    Args:
        net: The network with its gradients.
        norm: Norm of the gradient over all weights, see `gradient_norm`.
        max_norm: Largest norm; 0 disables clipping.
    """
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(net.parameters(), max_norm, norm)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Update the moving average of the weights, in place: decay * average + (1 - decay) * weights.

    Buffers are copied from `net`.
    """
    weights: list[Tensor] = list(net.parameters())
    averaged: list[Tensor] = list(average.parameters())
    get_ema_multi_avg_fn(decay)(averaged, weights, None)  # type: ignore[no-untyped-call]
    for buffer, source in zip(average.buffers(), net.buffers(), strict=True):
        buffer.copy_(source)


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _require(holds: bool, field: str, must: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"setting {field} must be {must}, got {got!r}")
