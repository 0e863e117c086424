"""The CUDA kernels of `pipeline/compute/kernels.cu`, compiled for the host: what they compute, without a GPU.

Threads run one after the other, so a kernel that needs another order, or to wait for one, would fail on a GPU
only; ours share nothing but by atomics.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

COMPILER = shutil.which("g++") or shutil.which("clang++")

_PRELUDE = """
#include <cmath>
struct Index { unsigned int x; };
static thread_local Index blockIdx, blockDim, threadIdx;  // trees are grown by several threads
#define __global__
#define __device__
template <class T, class U> void atomicMin(T* place, U value) { if ((T)value < *place) *place = (T)value; }
template <class T, class U> void atomicMax(T* place, U value) { if ((T)value > *place) *place = (T)value; }
template <class T, class U> void atomicAdd(T* place, U value) { *place += (T)value; }
"""

_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')

_SCALARS: dict[str, tuple[Any, Any]] = {
    "int": (np.int32, ctypes.c_int),
    "long long": (np.int64, ctypes.c_longlong),
    "double": (np.float64, ctypes.c_double),
}

_ELEMENTS = {
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "short": np.int16,
    "unsigned short": np.uint16,
    "float": np.float32,
    "double": np.float64,
    "Region": np.int32,  # a row of them
}


def parameters(source: str) -> dict[str, list[str]]:
    """The types of each kernel's parameters, such as `int` and `unsigned short*`."""
    return {
        name: [parameter.strip().removeprefix("const ").rsplit(" ", 1)[0] for parameter in listed.split(",")]
        for name, listed in _KERNEL.findall(source)
    }


@cache
def library(source: str) -> ctypes.CDLL:
    """The source as a library, with `run_NAME(blocks, threads, ...)` for each kernel."""
    assert COMPILER
    runs = []
    for name, types in parameters(source).items():
        taken = ", ".join(f"{kind} a{i}" for i, kind in enumerate(types))
        given = ", ".join(f"a{i}" for i in range(len(types)))
        runs.append(
            f'extern "C" void run_{name}(unsigned blocks, unsigned threads, {taken}) {{\n'
            "  blockDim.x = threads;\n"
            "  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)\n"
            f"    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {name}({given});\n}}\n"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cpp"
        path.write_text(_PRELUDE + source + "".join(runs), encoding="utf-8")
        made = path.with_suffix(".so")
        flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "-std=c++17", "-Wall", "-Werror"]
        subprocess.run([COMPILER, *flags, str(path), "-o", str(made)], check=True)
        return ctypes.CDLL(str(made))


class RawModule:
    """As `cupy.RawModule`; arguments must be what a GPU takes: arrays of the device, and typed numbers."""

    def __init__(self, *, code: str, options: Sequence[str] = ()) -> None:
        assert "--fmad=false" in options
        self.code = code

    def get_function(self, name: str) -> Callable[..., None]:
        types = parameters(self.code)[name]
        run = getattr(library(self.code), f"run_{name}")

        def launch(blocks: tuple[int], threads: tuple[int], args: Sequence[Any]) -> None:
            given: list[Any] = []
            for kind, value in zip(types, args, strict=True):
                if kind.endswith("*"):
                    array = value._array  # of a DeviceArray
                    assert array.flags.c_contiguous, f"{name}: a strided array"
                    assert array.dtype == _ELEMENTS[kind[:-1]], f"{name}: {array.dtype} is no {kind}"
                    given.append(ctypes.c_void_p(array.ctypes.data))
                else:
                    scalar, c_type = _SCALARS[kind]
                    assert type(value) is scalar, f"{name}: {value!r} is no {kind}"
                    given.append(c_type(value.item()))
            run(*blocks, *threads, *given)

        return launch
