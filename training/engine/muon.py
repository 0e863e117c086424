"""The Muon optimiser, with a selectable precision of the orthogonalisation, batched over equal shapes.

Muon of pytorch-optimizer orthogonalises in bfloat16 on every device; on a CPU without bfloat16 instructions
this takes 36 times as long as float32 (benchmarks/step.py). Everything else is the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_optimizer import Muon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor

DTYPE_KEY = "orthogonalisation"
"""Key of a parameter group for the name of the dtype. Old checkpoints lack it; they used bfloat16."""


class PrecisionMuon(Muon):
    """Muon (Jordan et al. 2024; arXiv 2502.16982), with Newton-Schulz iterations in each group's dtype."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        """Return the orthogonal polar factors, as matrices, of updates of one shape or its transpose."""
        matrices = [update.flatten(1) for update in updates]
        tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
        found = zero_power_via_newton_schulz_5(
            torch.stack([m.mT if t else m for m, t in zip(matrices, tall, strict=True)]),
            num_steps=group["ns_steps"],
            weights=group["ns_coeffs"],
            dtype=getattr(torch, group.get(DTYPE_KEY, "bfloat16")),
        )
        return [m.mT if t else m for m, t in zip(found.unbind(), tall, strict=True)]


def muon_group(weights: Sequence[Tensor], *, bfloat16: bool) -> dict[str, Any]:
    """Return the parameter group of the matrices that Muon updates; steps are scaled as in arXiv 2502.16982.

    Args:
        weights: Matrices and convolution kernels.
        bfloat16: Whether to orthogonalise in bfloat16 rather than float32.
    """
    dtype = "bfloat16" if bfloat16 else "float32"
    return {"params": list(weights), "use_muon": True, "use_adjusted_lr": True, DTYPE_KEY: dtype}
