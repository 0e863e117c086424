"""The choice between a Triton kernel and its plain form, and types that need no Triton."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

SWITCH = "MASS_KERNELS"
"""Environment variable; 0 means that the plain forms are used everywhere."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def use_kernels(x: Tensor) -> bool:
    """Whether `x` is processed by a Triton kernel rather than by the plain form in PyTorch."""
    return (
        _on_gpu(x)
        and x.dtype in _DTYPES
        and has_triton()
        and os.environ.get(SWITCH) != "0"
        and not in_graph()
    )


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def in_graph() -> bool:
    """Whether the operations are recorded as a graph (torch.compile, torch.export, torch.jit.trace)."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


class MaskSums(NamedTuple):
    """Sums over the voxels of each mask, (B, K), float32."""

    true_positive: Tensor
    """Sum of the probabilities inside the mask."""
    predicted: Tensor
    """Sum of the probabilities."""
    truth: Tensor
    """Voxels of the mask; without a gradient."""
    entropy: Tensor
    """Sum of the binary cross-entropy, in nats."""


def mask_sums(logits: Tensor, masks: Tensor) -> MaskSums:
    """Return the sums for Dice and cross-entropy, without a float volume of masks or probabilities.

    Args:
        logits: (B, K, Z, Y, X), for which `use_kernels` holds.
        masks: bool, the same shape.
    """
    from training.network.kernels.triton_sums import sums_of_masks

    return sums_of_masks(logits, masks)
