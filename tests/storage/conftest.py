from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ScanRecord, commit_scan, create_store
from tests.storage.drawn_record import draw_record


@pytest.fixture(scope="session")
def record() -> ScanRecord:
    return draw_record()


@pytest.fixture
def empty_store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    create_store(path, spacing_mm=1.5, config={"max_atoms": 100})
    return path


@pytest.fixture
def store(empty_store: Path, record: ScanRecord) -> Path:
    commit_scan(empty_store, record)
    return empty_store


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real S3 server."""
    from tests.storage.access.object_server import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A proxy before it, and the variables that lead there."""
    from tests.storage.access.object_server import proxy_before, set_variables

    with proxy_before(endpoint) as running:
        set_variables(monkeypatch, running.endpoint, tries=4)
        monkeypatch.setattr("storage.access.client._FIRST_WAIT_SECONDS", 0.01)
        yield running


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store that is not there yet, without a proxy."""
    from tests.storage.access.object_server import new_url, set_variables

    set_variables(monkeypatch, endpoint)
    return new_url()
