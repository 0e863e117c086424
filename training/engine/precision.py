"""Choice of the network's precision: bfloat16 if the device has the instructions, otherwise float32.

On a processor without bfloat16 instructions, a bfloat16 convolution takes 100 to 200 times as long as one in
float32 (docs/results.md), so by default the precision depends on the device. The choice looks at the device's
instructions and measures no time, so that it is always the same on the same machine.

*Reads* what PyTorch reports about the device, and the environment variables that disable instructions in
PyTorch (ATEN_CPU_CAPABILITY) and oneDNN (ONEDNN_MAX_CPU_ISA). *Writes* nothing.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]
"""Values of the setting `precision`."""

LEAST_CUDA_CAPABILITY = (8, 0)
"""Smallest compute capability with bfloat16 instructions (Ampere); older GPUs emulate them."""

_BFLOAT16_IN_X86 = ("amx_bf16", "avx512_bf16")
_BFLOAT16_IN_ONEDNN = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")
"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave bfloat16 instructions in use."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """Whether a device has bfloat16 instructions, and how this was determined."""

    has_bfloat16: bool
    """Whether the instructions exist and are enabled."""
    why: str
    """The reason, for example "the CPU has avx512_bf16"."""


@dataclass(frozen=True, kw_only=True)
class ChosenPrecision:
    """A precision and the reason for it."""

    name: Literal["bfloat16", "float32"]
    """Precision of convolutions and matrix products; weights, norms and losses are float32 in both cases."""
    why: str
    """The reason, as text for users."""
    warning: str = ""
    """Warning how much slower this choice is on this device; empty if it is not slower."""

    @property
    def line(self) -> str:
        """Precision and reason in one line."""
        return f"precision {self.name}: {self.why}"

    def to_json(self) -> dict[str, str]:
        """Return plain values, for run.json."""
        return {"name": self.name, "why": self.why}


def choose_precision(
    wanted: Precision, device: torch.device, support: Support | None = None
) -> ChosenPrecision:
    """Return the precision to compute in.

    Args:
        wanted: "auto" is bfloat16 if the device has it, otherwise float32; other values are used unchanged.
        device: Device of the network.
        support: The device's support if it is known; for several processes, the support that all have.
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
    """Return the precision of a training: for a resumed run that of its start, otherwise `choose_precision`.

    Args:
        wanted: Precision in the settings.
        begun: Precision that a resumed run started with; None for a new run.
        device: Device of the network.
        support: The support that the devices of all processes have.
    """
    if begun is not None:
        chosen = choose_precision(begun, device, support)
        return replace(chosen, why="as the run began")
    return choose_precision(wanted, device, support)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions."""
    return bfloat16_support(device).has_bfloat16


def bfloat16_support(device: torch.device) -> Support:
    """Return whether a device has bfloat16 instructions that are enabled, and the reason."""
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
    """Return the autocast context for a precision."""
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
    """Return the names of the instruction sets of this CPU, as PyTorch (cpuinfo) reports them."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before PyTorch 2.11
        checks = {
            "amx_bf16": torch.cpu._is_amx_tile_supported,
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        }
        return frozenset(name for name, is_supported in checks.items() if is_supported())
    return frozenset(name for name, present in torch.cpu.get_capabilities().items() if present is True)
