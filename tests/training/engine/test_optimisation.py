"""Rates against torch's one-cycle, averages and clipping by their definitions, settings that are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.engine.optimisation import (
    OptimisationConfig,
    clip_gradients,
    gradient_norm,
    make_optimiser,
    matrices_of,
    rate_at,
    set_rate,
    update_average,
)
from training.errors import ConfigError
from training.network.iris import Iris


@pytest.mark.parametrize(("steps", "warm_up"), [(1000, 0.05), (37, 0.3), (100, 0.25), (8, 0.25)])
def test_the_rate_is_that_of_torchs_one_cycle(steps: int, warm_up: float) -> None:
    config = OptimisationConfig(num_steps=steps, warm_up_fraction=warm_up, peak_rate=0.02)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.02, steps, pct_start=warm_up, div_factor=25, final_div_factor=1000, cycle_momentum=False
    )
    for step in range(steps):
        assert rate_at(step, config) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        if step < steps - 1:
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_short_runs_have_rates_too(steps: int) -> None:
    config = OptimisationConfig(num_steps=steps)
    rates = [rate_at(step, config) for step in range(steps)]
    assert all(0 < rate <= config.peak_rate for rate in rates)


def test_the_average_moves_by_its_share_and_takes_buffers_over() -> None:
    net = nn.BatchNorm1d(3)
    average = copy.deepcopy(net)
    with torch.no_grad():
        net.weight.fill_(2.0)
        net.running_mean.fill_(5.0)
    update_average(average, net, 0.9)
    assert torch.allclose(average.weight, torch.full((3,), 0.9 * 1 + 0.1 * 2))
    assert torch.equal(average.running_mean, net.running_mean)


def test_gradients_above_the_norm_are_scaled_down_to_it_and_others_left() -> None:
    net = nn.Linear(2, 1, bias=False)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    clip_gradients(net, gradient_norm(net), 1.0)
    assert torch.allclose(net.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5)
    for most in (2.0, 0.0):
        before = net.weight.grad.clone()
        clip_gradients(net, gradient_norm(net), most)
        assert torch.equal(net.weight.grad, before)


class Weights(nn.Module):
    """A net of named weights."""

    def __init__(self, **weights: torch.Tensor) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))


def linear(weight: torch.Tensor) -> nn.Linear:
    """A linear map with a bias of ones."""
    net = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        net.weight.copy_(weight)
        net.bias.fill_(1.0)
    return net


@pytest.mark.parametrize("name", ["lamb", "adamw", "muon"])
def test_optimisers_go_on_from_their_state_to_the_bit(name: str) -> None:
    config = OptimisationConfig(optimiser=name, num_steps=10)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, 4, generator=generator) for _ in range(6)]

    def steps(net: nn.Linear, optimiser: torch.optim.Optimizer, some: range) -> None:
        for step in some:
            net.weight.grad = gradients[step].clone()
            net.bias.grad = gradients[step][:, 0].clone()
            set_rate(optimiser, rate_at(step, config))
            optimiser.step()

    straight = linear(torch.ones(5, 4))
    optimiser = make_optimiser(straight, config)
    steps(straight, optimiser, range(3))
    resumed = copy.deepcopy(straight)
    other = make_optimiser(resumed, config)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    steps(straight, optimiser, range(3, 6))
    steps(resumed, other, range(3, 6))
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)
    assert not torch.equal(straight.weight, torch.ones(5, 4))


def test_the_first_step_of_lamb_is_the_rate_times_each_tensors_norm() -> None:
    net = Weights(large=torch.full((4,), 2.0), little=torch.full((4,), 0.02))
    optimiser = make_optimiser(net, OptimisationConfig(optimiser="lamb", weight_decay=0.0))
    set_rate(optimiser, 0.1)
    for weight in net.parameters():
        weight.grad = torch.ones(4)
    optimiser.step()
    assert torch.allclose(net.large, torch.full((4,), 2.0 * 0.9), atol=1e-3)
    assert torch.allclose(net.little, torch.full((4,), 0.02 * 0.9), atol=1e-5)


def test_muon_steps_as_far_along_every_direction_of_a_matrix_and_takes_adam_for_the_rest() -> None:
    net = linear(torch.zeros(3, 5))
    config = OptimisationConfig(optimiser="muon", weight_decay=0.0, vector_rate_fraction=0.1)
    optimiser = make_optimiser(net, config)
    set_rate(optimiser, 1.0)
    generator = torch.Generator().manual_seed(0)
    net.weight.grad = torch.randn(3, 5, generator=generator) * torch.tensor([[10.0], [1.0], [0.5]])
    net.bias.grad = torch.tensor([5.0, -5.0, 0.001])
    optimiser.step()
    lengths = torch.linalg.svdvals(net.weight.detach())
    # 0.2 sqrt(5) for every direction, as far as five Newton-Schulz steps in bfloat16 tell them apart.
    assert torch.allclose(lengths, torch.full((3,), 0.2 * 5**0.5), rtol=0.4)
    assert torch.allclose(net.bias.detach(), torch.tensor([0.9, 1.1, 0.9]), atol=1e-4)


def test_muon_takes_the_matrices_of_the_network_and_leaves_tokens_norms_and_positions() -> None:
    net = Iris((4, 8, 16, 32, 32), 1)
    matrices = set(map(id, matrices_of(net)))
    left = {name.rsplit(".", 1)[-1] for name, weight in net.named_parameters() if id(weight) not in matrices}
    assert left == {"bias", "in_proj_bias", "weight", "task_query", "embedding"}
    assert all(weight.ndim >= 2 for weight in matrices_of(net))
    assert sum(weight.numel() for weight in matrices_of(net)) > 100_000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peak_rate", 0.0),
        ("num_steps", 0),
        ("accumulation", 3),
        ("ema_decay", 1.0),
        ("warm_up_fraction", 1.0),
        ("betas", (0.9, 1.0)),
        ("initial_division", 0.5),
        ("seed", -1),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        OptimisationConfig(**{setting: value})
