"""The Triton kernels against their plain forms: on a GPU where there is one, else in Triton's interpreter.

Without Triton (it comes with PyTorch for CUDA, or by `pip install triton`) they are skipped; what needs no
Triton is tested all the same.
"""

from __future__ import annotations

import importlib.util
import os
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.engine.losses import cross_entropy, dice_loss, segmentation_loss
from training.network import blocks
from training.network.blocks import BLOCK_EPS, ResidualBlock, norm_relu, two_blocks
from training.network.iris import Iris
from training.network.kernels import forms, use_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel's module is first imported
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]

LAST = torch.channels_last_3d
ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 0.012}
"""Largest error, of values of about 3, in each type."""


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are used on the CPU too."""
    monkeypatch.setattr(forms, "_on_gpu", lambda x: True)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(shape, generator=generator) + 1).to(DEVICE, dtype)
    return (x.contiguous(memory_format=LAST) if x.ndim == 5 else x).requires_grad_()


def gradients(outputs: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Of a sum of the outputs, weighted by drawn numbers."""
    total = sum((out.double() * drawn(*out.shape, seed=7).double()).sum() for out in outputs)
    return list(torch.autograd.grad(total, inputs))


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.detach().abs().max().clamp(min=1))
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=ROUNDING[dtype] * scale)


def plain_norm_relu(x: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
    return functional.relu((x - mean) * torch.rsqrt(variance + eps))


NORM_SHAPES = [(2, 8, 5, 6, 7), (1, 1, 9, 8, 8), (2, 96, 2, 2, 2), (1, 160, 3, 3, 3), (2, 24, 1, 1, 1)]
"""Among them one channel, more channels than a tile has, and one voxel."""


@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_norm_and_relu_are_the_plain_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from training.network.kernels import triton_norms

    x = drawn(*shape, dtype=dtype)
    exact = x.detach().double().requires_grad_()
    found, expected = triton_norms.norm_relu(x, 1e-4), plain_norm_relu(exact, 1e-4)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=LAST)
    close(found, expected, dtype)
    close(gradients([found], [x])[0], gradients([expected], [exact])[0], dtype)


@needs_triton
def test_rows_are_divided_among_many_programs_and_far_values_keep_their_digits() -> None:
    from training.network.kernels import triton_norms

    assert triton_norms.division(1, 20_000, 8).num_parts > 10
    x = (drawn(1, 8, 20, 20, 50).detach() + 1000).requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, expected = triton_norms.norm_relu(x, 1e-4), plain_norm_relu(exact, 1e-4)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)  # of x, rounding is 6e-5


@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_sum_is_taken_with_the_norm_after_it(dtype: torch.dtype) -> None:
    from training.network.kernels import triton_norms

    # Quarters, so that the sum is exact and no value is rounded to the other side of the ReLU.
    one, two = (
        (drawn(2, 12, 4, 5, 6, seed=seed).detach() * 4).round().div(4).to(dtype).requires_grad_()
        for seed in (0, 1)
    )
    exact = [x.detach().double().requires_grad_() for x in (one, two)]
    found = triton_norms.add_norm_relu(one, two, BLOCK_EPS)
    total = exact[0] + exact[1]
    expected = (total, plain_norm_relu(total, BLOCK_EPS))
    for a, b in zip(
        (*found, *gradients(found, [one, two])), (*expected, *gradients(expected, exact)), strict=True
    ):
        close(a, b, dtype)


@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [((2, 3, 2), (4, 6, 4)), ((1, 1, 2), (2, 2, 4)), ((3, 5, 7), (7, 9, 13)), ((4, 4, 4), (8, 8, 8))],
)
def test_upsampling_beside_the_skip_connection_is_interpolate_and_cat(
    coarse: tuple[int, int, int], fine: tuple[int, int, int], dtype: torch.dtype
) -> None:
    from training.network.kernels.triton_upsampling import upsample_beside

    x, skip = drawn(1, 3, *coarse, dtype=dtype), drawn(1, 5, *fine, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in (x, skip)]
    found = upsample_beside(x, skip)
    wide = functional.interpolate(exact[0], size=fine, mode="trilinear", align_corners=True)
    expected = torch.cat([exact[1], wide], dim=1)
    assert found.is_contiguous(memory_format=LAST)
    close(found, expected, dtype)
    for a, b in zip(gradients([found], [x, skip]), gradients([expected], exact), strict=True):
        close(a, b, dtype)


@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_loss_and_its_gradient_are_those_of_dice_and_cross_entropy(
    dtype: torch.dtype, everywhere: None
) -> None:
    logits = (4 * drawn(1, 3, 16, 48, 48, dtype=dtype)).detach().contiguous().requires_grad_()
    masks = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.2
    masks[0, 0] = False
    exact = logits.detach().double().requires_grad_()
    found = segmentation_loss(logits, masks)
    expected = dice_loss(exact, masks).mean() + cross_entropy(exact, masks).mean()
    torch.testing.assert_close(found.total.double(), expected.double(), rtol=1e-5, atol=0)
    (one,), (two,) = gradients([found.total], [logits]), gradients([expected], [exact])
    close(one / two.abs().max(), two / two.abs().max(), dtype)


def tiny() -> tuple[Iris, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = Iris((4, 4, 8, 8, 32), 1, position_std=0.02).to(DEVICE)
    target, reference = torch.randn(2, 1, 1, 16, 16, 16, device=DEVICE)
    return net, target, reference, torch.rand(1, 2, 16, 16, 16, device=DEVICE) < 0.3


def logits_and_gradient(net: Iris, target: Tensor, reference: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of all weights as one vector, float64."""
    logits = net(target, reference, masks)
    (dice_loss(logits, masks).mean() + cross_entropy(logits, masks).mean()).backward()
    grads = [weight.grad.flatten() for weight in net.parameters() if weight.grad is not None]
    return logits.detach().double(), torch.cat(grads).double()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@needs_triton
def test_the_network_on_kernels_is_the_network_in_float64(everywhere: None) -> None:
    net, target, reference, masks = tiny()
    exact = deepcopy(net).double()  # which no kernel takes
    expected = logits_and_gradient(exact, target.double(), reference.double(), masks)
    net.to(memory_format=LAST)
    found = logits_and_gradient(net, target, reference, masks)
    assert distance(found[0], expected[0]) < 1e-5
    assert (
        distance(found[1], expected[1]) < 1e-2
    )  # norms over 8 voxels and one; in float32 the plain form has 0.6


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
def test_every_kernel_compiles_for_a_gpu(capability: int, pointer: str) -> None:
    """Without one at hand: for compute capability 8.0 (A100) and 9.0 (H100)."""
    script = f"""
import sys
from tests.training.network.kernel_signatures import compile_all
compile_all({capability}, {pointer!r})
"""
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 8


def test_a_block_with_one_norm_for_both_branches_gives_the_same_output() -> None:
    torch.manual_seed(0)
    x = drawn(2, 4, 6, 6, 6)
    for block in (ResidualBlock(4, 4), ResidualBlock(4, 6)):
        branch, shortcut = block.branches(x)
        assert torch.equal(branch + shortcut, block(x))


def test_two_blocks_are_one_after_the_other() -> None:
    torch.manual_seed(0)
    first, second = ResidualBlock(3, 5), ResidualBlock(5, 5)
    x = drawn(1, 3, 4, 4, 4)
    assert torch.equal(two_blocks(first, second, x), second(first(x)))


def test_the_norm_written_out_for_compiling_is_the_norm() -> None:
    x = drawn(2, 6, 4, 5, 6, dtype=torch.bfloat16)
    close(blocks._norm_relu_written_out(x, 1e-4), plain_norm_relu(x.double(), 1e-4), torch.bfloat16)
    assert torch.equal(norm_relu(drawn(1, 3, 1, 1, 1), 1e-4), torch.zeros(1, 3, 1, 1, 1))


def test_kernels_are_used_on_a_gpu_only_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    assert not use_kernels(x)
    monkeypatch.setattr(forms, "_on_gpu", lambda x: True)
    monkeypatch.setattr(forms, "has_triton", lambda: True)
    assert use_kernels(x)
    assert not use_kernels(x.double())
    monkeypatch.setenv(forms.SWITCH, "0")
    assert not use_kernels(x)


def test_a_compiled_block_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "use_kernels", lambda x: True)
    block: nn.Module = ResidualBlock(2, 2)
    assert isinstance(block, ResidualBlock)
    assert blocks.shares_norms(block, torch.zeros(1))
    block.compile(backend="eager")
    assert not blocks.shares_norms(block, torch.zeros(1))
