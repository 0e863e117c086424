"""The precision of the network's arithmetic: bfloat16 where the device has the instructions, else float32.

On a processor without bfloat16 instructions a bfloat16 convolution takes a hundred to two hundred times as
long as a float32 one (docs/results.md), so the precision follows the device when nobody says otherwise. The
choice looks at what the processor can do, never at a clock: the same machine always chooses the same.

*Reads* what PyTorch knows of the device, and the variables that take instructions away from PyTorch
(ATEN_CPU_CAPABILITY) and oneDNN (ONEDNN_MAX_CPU_ISA). *Writes* nothing.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]
"""What may be asked for."""

LEAST_CUDA_CAPABILITY = (8, 0)
"""Compute capability from which CUDA cards have bfloat16 (Ampere); older ones imitate it."""

_BFLOAT16_IN_X86 = ("amx_bf16", "avx512_bf16")
_BFLOAT16_IN_ONEDNN = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")
"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave bfloat16 instructions in use."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """Whether a device computes in bfloat16 by instructions of its own."""

    has_bfloat16: bool
    """Whether it does."""
    why: str
    """What was looked at, as "the CPU has avx512_bf16"."""


@dataclass(frozen=True, kw_only=True)
class ChosenPrecision:
    """A precision and the reason for it."""

    name: Literal["bfloat16", "float32"]
    """Of convolutions and matrix products; weights, norms and losses are float32 in both."""
    why: str
    """The reason, for people."""
    warning: str = ""
    """What the choice costs on this device; empty where it costs nothing."""

    @property
    def line(self) -> str:
        """The choice in one line."""
        return f"precision {self.name}: {self.why}"

    def to_json(self) -> dict[str, str]:
        """Plain values, as run.json holds them."""
        return {"name": self.name, "why": self.why}


def choose_precision(
    wanted: Precision, device: torch.device, support: Support | None = None
) -> ChosenPrecision:
    """Return the precision to compute in.

    Args:
        wanted: "auto" is bfloat16 where the device has it, else float32; the others are taken as they are.
        device: Where the network computes.
        support: What the device can do, where that is known; of several processes, what all of them can do.
    """
    support = support or bfloat16_support(device)
    if wanted == "auto":
        return ChosenPrecision(name="bfloat16" if support.has_bfloat16 else "float32", why=support.why)
    warning = ""
    if wanted == "bfloat16" and not support.has_bfloat16:
        cost = "steps take 10 to 60 times as long" if device.type == "cpu" else "steps take longer"
        warning = f"bfloat16 without instructions for it ({support.why}): {cost} as in float32"
    return ChosenPrecision(name=wanted, why="as asked for", warning=warning)


def precision_of_run(
    wanted: Precision, begun: Precision | None, device: torch.device, support: Support
) -> ChosenPrecision:
    """Return the precision of a training: what its run began with, for a new run `choose_precision`.

    Args:
        wanted: By the settings.
        begun: What a run that goes on began with; None for a new run.
        device: Where the network computes.
        support: What the devices of all processes can do.
    """
    if begun is not None:
        chosen = choose_precision(begun, device, support)
        return replace(chosen, why="as the run began")
    return choose_precision(wanted, device, support)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own."""
    return bfloat16_support(device).has_bfloat16


def bfloat16_support(device: torch.device) -> Support:
    """Return whether a device has bfloat16 instructions that are in use, and what tells so."""
    match device.type:
        case "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name = torch.cuda.get_device_name(device)
            has = (major, minor) >= LEAST_CUDA_CAPABILITY
            words = "has" if has else "is older than 8.0, without"
            return Support(
                has_bfloat16=has, why=f"{name}, compute capability {major}.{minor}, {words} bfloat16"
            )
        case "cpu":
            return _cpu_support()
    return Support(has_bfloat16=False, why=f"of bfloat16 on a device {device.type} nothing is known")


def autocast(precision: ChosenPrecision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in a precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision.name == "bfloat16")


def _cpu_support() -> Support:
    instructions = _cpu_instructions()
    if platform.machine().lower() in ("aarch64", "arm64"):
        has = "bf16" in instructions
        return Support(has_bfloat16=has, why=f"the CPU has {'' if has else 'no '}bfloat16 instructions")
    found = [name for name in _BFLOAT16_IN_X86 if name in instructions]
    if not found:
        return Support(has_bfloat16=False, why="the CPU has no bfloat16 instructions (AMX or AVX-512 BF16)")
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return Support(has_bfloat16=False, why=f"PyTorch uses {capability} only (ATEN_CPU_CAPABILITY)")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if not any(name in limit.upper() for name in _BFLOAT16_IN_ONEDNN):
        return Support(has_bfloat16=False, why=f"oneDNN uses {limit} at most (ONEDNN_MAX_CPU_ISA)")
    return Support(has_bfloat16=True, why=f"the CPU has {' and '.join(found)}")


def _cpu_instructions() -> frozenset[str]:
    """Return the names of the instruction sets of this CPU, as PyTorch (cpuinfo) knows them."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before PyTorch 2.11
        asked = {
            "amx_bf16": torch.cpu._is_amx_tile_supported,
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        }
        return frozenset(name for name, ask in asked.items() if ask())
    return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)
