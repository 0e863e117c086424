"""Compiles every Triton kernel for a CUDA device that need not be at hand, as the launchers call it."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from training.network.kernels import triton_norms, triton_sums, triton_upsampling

TILE = {"PART": 4096, "BLOCK_N": 128, "BLOCK_C": 32}
FLOATS = ("eps", "scale", "scale_x", "scale_y", "scale_z")
ALWAYS_FLOAT32 = (
    "mean_at", "square_at", "means_at", "squares_at", "scale_at", "sum_at", "product_at", "sums_at",
    "products_at", "parts_at",
)  # fmt: skip
"""Arguments that point to float32 in every precision; `gradient_at` of the loss's sums too."""

KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (triton_norms._moments, {**TILE, "HAS_OTHER": True}),
    (triton_norms._normalise, {**TILE, "BLOCK_P": 128}),
    (triton_norms._slopes, TILE),
    (triton_norms._gradient, {**TILE, "BLOCK_P": 128, "HAS_ADDED": True}),
    (triton_sums._sums, {"PART": 32768, "TILE": 2048}),
    (triton_sums._sums_gradient, {"PART": 32768, "TILE": 2048}),
    (triton_upsampling._upsample, {"BLOCK_V": 64, "BLOCK_C": 32}),
    (triton_upsampling._sum_of_fine, {"BLOCK_V": 64, "BLOCK_C": 32}),
]


def kind(kernel: Any, name: str, pointer: str) -> str:
    """The type of an argument, in Triton's words."""
    if name == "masks_at":
        return "*u8"
    if name in ALWAYS_FLOAT32 or (kernel is triton_sums._sums_gradient and name == "gradient_at"):
        return "*fp32"
    if name.endswith("_at"):
        return pointer
    return "fp32" if name in FLOATS else "i32"


def compile_all(capability: int, pointer: str) -> None:
    """Compile all kernels to machine code; prints a line for each."""
    for kernel, constants in KERNELS:
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else kind(kernel, n, pointer) for n in names}
        known = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=known)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"]
        print("compiled", kernel.__name__)
