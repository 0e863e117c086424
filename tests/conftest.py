"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    "tests/flows/",
    "tests/training/finetuning/test_run.py",
    "tests/notebooks/",
    "tests/training/pretraining/",
    "tests/commands/test_demo.py",
    "tests/training/",
)
"""Long files begin first, so that no process is left with one at the end. The first two go to two processes:
one compiles what Numba compiles, for all, while the other needs none of it."""


TOGETHER = "tests/flows/"
"""Files that one process takes, as they share a Prefect server, which takes seconds to start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out files to processes, and those below `TOGETHER` as if they were one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)

    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by `FIRST`; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        return next((k for k, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))

    items.sort(key=place)


class LongTests:
    """A last line that says how many tests marked `long` were left out, and how to run them."""

    def __init__(self) -> None:
        self.num_left_out = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.num_left_out += sum(item.get_closest_marker("long") is not None for item in items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Of pytest-xdist: every process has the same tests to choose from."""
        self.num_left_out = max(self.num_left_out, getattr(node, "workeroutput", {}).get(LEFT_OUT, 0))

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # around the terminal's, which writes the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[LEFT_OUT] = self.num_left_out
        yield
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        if output is None and terminal is not None and "not long" in session.config.option.markexpr:
            terminal.write_line(f"left out: {self.num_left_out} long tests; `make test-long` runs them")


LEFT_OUT = "num_long_left_out"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LongTests())


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """The factory of `tests.phantom`."""
    return make_phantom


@pytest.fixture
def quick_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the iterations of demons, for tests of what is tried and how its result is used."""
    from training.inference import registration

    levels = tuple((factor, sigma, iterations // 3) for factor, sigma, iterations in registration.LEVELS)
    monkeypatch.setattr(registration, "LEVELS", levels)
    monkeypatch.setattr(registration, "BRIEF_LEVELS", levels[:2])
