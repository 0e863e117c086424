"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable

import hypothesis
import pytest

from tests.phantom import Phantom, phantom as make_phantom

# As `mass` does: threads that spin while they wait starve each other where processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No test depends on the speed of the machine: examples may take any time to draw and to check.
# A failing example prints the line that reproduces it; in CI examples are the same in every run.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("any machine")


def share_cores(num_workers: int) -> None:
    """Let the processes of pytest-xdist, and what they start, share the cores; before torch is imported."""
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share_cores(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


FIRST = (
    "tests/notebooks/",
    "tests/training/finetuning/test_run.py",
    "tests/commands/test_demo.py",
    "tests/training/pretraining/",
    "tests/flows/",
    "tests/training/",
)
"""Long files begin first, so that no process is left with one at the end. The first two go to two processes:
one compiles what Numba compiles, for all, while the other needs none of it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by `FIRST`; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        return next((k for k, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """The factory of `tests.phantom`."""
    return make_phantom
