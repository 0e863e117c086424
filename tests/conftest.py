"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.phantom import Phantom
from tests.phantom import phantom as make_phantom


@pytest.fixture(scope="session")
def phantom() -> Callable[..., Phantom]:
    """The factory of `tests.phantom`."""
    return make_phantom
