"""Array backends; the only module that imports CuPy.

    cpu     Numba, the default without a GPU
    numpy   plain NumPy: slow; the reference that the others must equal to the bit
    gpu     CuPy on a CUDA device

Every kernel works on integers, or on floats in a fixed order, so that the three give the same labels. Trees
are grown and proposals are selected on the CPU with every backend. With `numpy`, atoms are made by Numba.

Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

BackendName: TypeAlias = Literal["cpu", "numpy", "gpu"]

DeviceArray: TypeAlias = Any
"""NumPy or CuPy array, on the backend. CuPy has no types: docstrings give axes and dtype."""


_THREADS = 256
"""Threads per block."""


class NoGpu(RuntimeError):  # noqa: N818 - the name says what is wrong
    """A GPU was requested, but there is none, or CuPy is missing."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Array backend and thread count."""

    name: BackendName
    num_threads: int = 1
    """Number of CPU threads; the result does not depend on it."""

    @property
    def xp(self) -> Any:
        """The array module: `cupy` on a GPU, else `numpy`."""
        if self.name == "gpu":
            import cupy

            return cupy
        return np

    @property
    def ndimage(self) -> Any:
        """`scipy.ndimage`, or CuPy's version of it on a GPU."""
        if self.name == "gpu":
            import cupyx.scipy.ndimage as gpu_ndimage

            return gpu_ndimage
        from scipy import ndimage

        return ndimage

    @property
    def volume_threads(self) -> int:
        """Threads that work on one volume: all of the CPU, or one that launches kernels on the GPU."""
        return self.num_threads if self.name == "cpu" else 1

    def to_device(self, array: DeviceArray) -> DeviceArray:
        """Return the array on the device of the kernels."""
        return self.xp.asarray(array)

    def to_host(self, array: DeviceArray) -> DeviceArray:
        """Return the array as a NumPy array."""
        return array.get() if self.name == "gpu" else np.asarray(array)

    def launch(self, kernel: str, num_threads: int, *arguments: Any) -> None:
        """Run a kernel of `kernels.cu` on the GPU.

        Args:
            kernel: Its name.
            num_threads: Smallest number of threads; it is rounded up to whole blocks.
            arguments: Arrays on the device, and numbers of NumPy's types.
        """
        if num_threads:
            blocks = -(-num_threads // _THREADS)
            _kernel(self.xp, kernel)((blocks,), (_THREADS,), arguments)

    def release(self) -> None:
        """Return unused memory to the device, for other processes."""
        if self.name == "gpu":
            self.xp.get_default_memory_pool().free_all_blocks()

    def scatter_min(self, target: DeviceArray, index: DeviceArray, values: DeviceArray) -> None:
        """Do `target[index] = min(target[index], values)` with repeated indices; no value may be negative."""
        if self.name == "gpu":
            import cupyx

            cupyx.scatter_min(_for_atomics(target), index, _for_atomics(values))
        else:
            np.minimum.at(target, index, values)

    def scatter_add(self, target: DeviceArray, index: DeviceArray, values: DeviceArray) -> None:
        """Do `target[index] += values` with repeated indices."""
        if self.name == "gpu":
            import cupyx

            cupyx.scatter_add(_for_atomics(target), index, _for_atomics(values))
        else:
            np.add.at(target, index, values)


@cache
def _kernel(cupy: Any, name: str) -> Callable[..., None]:
    """Return a kernel of `kernels.cu`, compiled for the device; CuPy caches it on disk."""
    made: Callable[..., None] = _module(cupy).get_function(name)
    return made


@cache
def _module(cupy: Any) -> Any:
    code = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=("--fmad=false",))


def _for_atomics(array: DeviceArray) -> DeviceArray:
    """Return int64 as uint64, with the same sums and order: CuPy's scatters do not accept int64."""
    return array.view(np.uint64) if array.dtype == np.int64 else array


HOST = Backend(name="cpu")
"""One thread of the CPU."""


def gpu_is_at_hand() -> bool:
    """Whether CuPy is installed and sees a CUDA device."""
    return num_gpus() > 0


def num_gpus() -> int:
    """Return how many CUDA devices CuPy sees; 0 where it is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return 0
    import cupy

    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


def get_backend(
    name: Literal["auto", "cpu", "numpy", "gpu"] = "auto", *, num_threads: int | None = None
) -> Backend:
    """Return the backend with this name; `auto` is the GPU if there is one, else the CPU.

    Args:
        name: Name of the backend.
        num_threads: Number of CPU threads; by default NUMBA_NUM_THREADS if it is set (as in the workers of a
            cluster), else one per core.

    Raises:
        NoGpu: The name is "gpu" and there is none.
    """
    if num_threads is None:
        num_threads = int(os.environ.get("NUMBA_NUM_THREADS") or os.cpu_count() or 1)
    if name == "auto":
        return Backend(name="gpu" if gpu_is_at_hand() else "cpu", num_threads=num_threads)
    if name == "gpu" and not gpu_is_at_hand():
        raise NoGpu("no CUDA device that CuPy can use; install `mass3d[gpu]`, or choose --device cpu")
    return Backend(name=name, num_threads=num_threads)
