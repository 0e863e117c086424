"""A Prefect server that several tests share, as starting one takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commands.caches import cache_folder
from commands.prepare.prefect_server import prefect_server
from tests.waits import PATIENT_SECONDS


@contextmanager
def running_prefect(cache: Path) -> Iterator[str]:
    """Run the embedded server, and lead this process, and those that it starts, to it; yields its address.

    Args:
        cache: Takes the place of the user's folder for caches.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(PATIENT_SECONDS))
        cache_folder.cache_clear()  # another server of this process may have had another
        before = set(os.environ)
        with prefect_server() as settings:
            url, password = settings.values()
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_API_AUTH_STRING", password)
            yield url
        for name in set(os.environ) - before:
            del os.environ[name]
    cache_folder.cache_clear()
