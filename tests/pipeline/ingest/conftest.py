"""What tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.phantom import Phantom, phantom


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No library writes to the terminal, whatever it is fed."""
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.fixture(scope="module")
def scan() -> Phantom:
    return phantom()


@pytest.fixture
def good(scan: Phantom, tmp_path: Path) -> Path:
    return scan.write(tmp_path / "good.nii.gz")
