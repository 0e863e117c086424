from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.compute.backend import Backend, NoGpu, get_backend, gpu_is_at_hand


class CudaError(RuntimeError):
    """Stands in for CuPy's error where there is no driver."""


def put_cupy(monkeypatch: pytest.MonkeyPatch, num_devices: int | None) -> None:
    """A CuPy that counts so many devices, or has no driver to count them."""

    def count() -> int:
        if num_devices is None:
            raise CudaError("no CUDA-capable device is detected")
        return num_devices

    cupy = ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)
    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CudaError)
    cupy.cuda = SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)


@pytest.mark.parametrize(("num_devices", "name"), [(2, "gpu"), (0, "cpu"), (None, "cpu")])
def test_the_gpu_is_taken_where_cupy_counts_one(
    monkeypatch: pytest.MonkeyPatch, num_devices: int | None, name: str
) -> None:
    put_cupy(monkeypatch, num_devices)
    assert gpu_is_at_hand() == (name == "gpu")
    assert get_backend("auto", num_threads=3) == Backend(name=name, num_threads=3)
    if name == "gpu":
        assert get_backend("gpu", num_threads=1).name == "gpu"
    else:
        with pytest.raises(NoGpu, match="no CUDA device"):
            get_backend("gpu")


def test_threads_are_as_many_as_cores_where_nobody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert get_backend("cpu").num_threads == 5


def test_no_thread_launches_nothing() -> None:
    Backend(name="gpu").launch("no such kernel", 0)  # would load the kernels, or fail for want of CuPy
