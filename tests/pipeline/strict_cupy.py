"""A stand-in for CuPy that is as strict about what it takes, so that the GPU's path runs without a GPU.

As in CuPy: arrays of host and device do not mix, none turns into a NumPy array but by `get`, a reduction is
an array, and scatters know no int64. Kernels are compiled for the host (`host_cuda`). What only a device can
show (other rounding, other order) it cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin
from scipy import ndimage

from tests.pipeline import host_cuda

_SCATTERED = (np.int32, np.uint32, np.uint64, np.float32, np.float64)
"""Types of `cupyx.scatter_add` and `cupyx.scatter_min` (CuPy 14)."""


class DeviceArray(NDArrayOperatorsMixin):
    """Holds an array that is out of NumPy's reach."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # __array_interface__ and the like
            raise AttributeError(name)
        value = getattr(self._array, name)
        return on_device(value) if callable(value) else wrapped(value)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"{ufunc.__name__}.{method} on a device array")
        out = options.get("out")
        result = wrapped(
            ufunc(*unwrapped(inputs), **{name: unwrapped(value) for name, value in options.items()})
        )
        return out[0] if out else result

    def __getitem__(self, key: Any) -> Any:
        return wrapped(self._array[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[unwrapped(key)] = unwrapped(value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self._array)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def get(self) -> Any:
        return self._array.copy()


def wrapped(value: Any) -> Any:
    """Arrays, also those in tuples, put on the device; a reduction too."""
    if isinstance(value, tuple):
        return tuple(wrapped(item) for item in value)
    return DeviceArray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def unwrapped(value: Any) -> Any:
    """The arrays within device arrays; an array of the host is refused."""
    if isinstance(value, (tuple, list)):
        return type(value)(unwrapped(item) for item in value)
    if isinstance(value, np.ndarray):
        raise TypeError("unsupported type: an array of the host")
    return value._array if isinstance(value, DeviceArray) else value


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **options: Any) -> Any:
        return wrapped(function(*unwrapped(args), **{k: unwrapped(v) for k, v in options.items()}))

    return called


def scatter(ufunc: np.ufunc) -> Callable[..., None]:
    def scattered(target: DeviceArray, index: DeviceArray, values: DeviceArray) -> None:
        if target.dtype not in _SCATTERED:
            raise TypeError(f"scatters do not support {target.dtype}")
        ufunc.at(unwrapped(target), unwrapped(index), unwrapped(values))

    return scattered


class _Module(ModuleType):
    """NumPy's names: types as they are, functions on device arrays."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        return value if isinstance(value, type) or not callable(value) else on_device(value)


class Pool:
    """Of memory."""

    def free_all_blocks(self) -> None:
        """Nothing to free."""

    def total_bytes(self) -> int:
        """Nothing held."""
        return 0


class Device:
    """The only one."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `import cupy` and `import cupyx` give the stand-in."""
    cupy, cupyx = _Module("cupy"), ModuleType("cupyx")
    scipy, gpu_ndimage = ModuleType("cupyx.scipy"), ModuleType("cupyx.scipy.ndimage")
    cupy.RawModule = host_cuda.RawModule  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(Device=Device)  # type: ignore[attr-defined]
    cupy.get_default_memory_pool = Pool  # type: ignore[attr-defined]
    cupy.asarray = lambda array: array if isinstance(array, DeviceArray) else DeviceArray(array)  # type: ignore[attr-defined]
    cupyx.scatter_add, cupyx.scatter_min = scatter(np.add), scatter(np.minimum)  # type: ignore[attr-defined]
    cupyx.scipy, scipy.ndimage = scipy, gpu_ndimage  # type: ignore[attr-defined]
    gpu_ndimage.label = on_device(ndimage.label)  # type: ignore[attr-defined]
    for module in (cupy, cupyx, scipy, gpu_ndimage):
        monkeypatch.setitem(sys.modules, module.__name__, module)
