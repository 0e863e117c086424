"""torch.compile by repeated block, with a cache on disk that survives runs.

A block is compiled once for each width, not the network as a whole: on an H200 the whole network's first step
had not ended after 100 s. Sizes of crops and batches are symbols, so other sizes compile nothing anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from training.network import repeated_blocks

CACHE = "TORCHINDUCTOR_CACHE_DIR"
_MOST_VARIANTS = 64
"""Most compiled forms of one class of blocks: about 20 pairs of widths, with and without gradients."""


def compile_blocks(net: nn.Module, *, backend: str = "inductor") -> int:
    """Compile the repeated blocks of a network in place, or all of it if it has none; return their number.

    Weights and their names stay the same.
    """
    separate_compiled_code(next(net.parameters()).device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
    # Otherwise axes of the same length would be one symbol, and a crop of unequal sides would not fit.
    torch.fx.experimental._config.use_duck_shape = False
    blocks = repeated_blocks(net) or [net]
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return len(blocks)


def separate_compiled_code(device: torch.device) -> None:
    """Keep compiled code in the user's cache folder, one folder per kind of processor or GPU.

    TORCHINDUCTOR_CACHE_DIR, where it is set, stays as it is. PyTorch's own choice is the temporary folder,
    which does not survive a restart; and PyTorch 2.13 also uses code compiled under ATEN_CPU_CAPABILITY=avx2
    when the variable is not set, and the process crashes with corrupted memory.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        kind = f"cuda{major}{minor}"
    else:
        kind = torch.backends.cpu.get_cpu_capability().lower()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    os.environ.setdefault(CACHE, str(caches / "mass3d" / f"compiled_{os.getuid()}_{kind}"))
