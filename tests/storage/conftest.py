from __future__ import annotations

from pathlib import Path

import pytest

from storage import ScanRecord, commit_scan, create_store
from tests.storage.drawn_record import draw_record


@pytest.fixture(scope="session")
def record() -> ScanRecord:
    return draw_record()


@pytest.fixture
def empty_store(tmp_path: Path) -> Path:
    return create_store(tmp_path / "store", spacing_mm=1.5, config={"max_atoms": 100}).path


@pytest.fixture
def store(empty_store: Path, record: ScanRecord) -> Path:
    commit_scan(empty_store, record)
    return empty_store
