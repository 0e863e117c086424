"""What tests of writing share."""

from __future__ import annotations

import pytest

from storage import (
    commit_scan,
    create_store,
    finish,
)
from tests.storage.drawn_record import SMALL, draw_record, store_bytes
from tests.storage.writing.writers import IDS


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a store of four scans that nothing happened to."""
    path = create_store(
        tmp_path_factory.mktemp("undisturbed") / "store", spacing_mm=1.5, config={"max_atoms": 100}
    ).path
    for scan_id in sorted(IDS):
        commit_scan(path, draw_record(scan_id, shape=SMALL))
    finish(path)
    return store_bytes(path)
