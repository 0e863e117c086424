"""A store written when format 1 was made still reads, and reads the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from storage import commit_scan, finish, open_store, read_ledger, verify
from tests.storage.drawn_record import SMALL, draw_record
from tests.storage.make_fixture import describe

FIXTURE = Path(__file__).parent / "fixtures" / "v1"


@pytest.mark.parametrize("scan_id", ["case-1", "case-2"])
def test_every_array_of_an_old_scan_reads_as_it_did(scan_id: str) -> None:
    expected = json.loads((FIXTURE / "expected.json").read_text())[scan_id]
    assert json.loads(json.dumps(describe(open_store(FIXTURE / "store").scan(scan_id)))) == expected


def test_an_old_store_is_whole_and_its_ledger_reads() -> None:
    assert open_store(FIXTURE / "store").scan_ids == ("case-1", "case-2")
    assert open_store(FIXTURE / "store").info.config == {"max_atoms": 100}
    assert list(verify(FIXTURE / "store")) == []
    ledger = read_ledger(FIXTURE / "store")
    assert [(entry.scan_id, entry.state, entry.kind) for entry in ledger.values()] == [
        ("case-1", "committed", ""),
        ("case-3", "failed", "NotFinite"),
    ]


def test_an_old_store_takes_new_scans(tmp_path: Path) -> None:
    store = shutil.copytree(FIXTURE / "store", tmp_path / "store")
    commit_scan(store, draw_record("case-0", shape=SMALL))
    finish(store)
    assert open_store(store).scan_ids == ("case-0", "case-1", "case-2")
    assert list(verify(store)) == []
