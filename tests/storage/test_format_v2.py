"""A store written when format 2 was made still reads, and reads the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import commit_scan, create_store, finish, open_store, read_ledger, verify
from tests.storage.drawn_record import draw_record
from tests.storage.make_fixture import LONG, describe

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "format.md"
FIXTURE = Path(__file__).parent / "fixtures" / "v2"


@pytest.mark.parametrize("scan_id", ["case-1", "case-2"])
def test_every_array_of_an_old_scan_reads_as_it_did(scan_id: str) -> None:
    expected = json.loads((FIXTURE / "expected.json").read_text())[scan_id]
    scan = open_store(FIXTURE / "store").scan(scan_id)
    assert scan.entry.format_version == 2
    assert scan.num_levels == 2
    assert json.loads(json.dumps(describe(scan, levels=True))) == expected


@pytest.mark.parametrize("scan_id", ["case-1", "case-2"])
def test_the_reader_in_the_documentation_reads_every_mask(scan_id: str) -> None:
    scan = open_store(FIXTURE / "store").scan(scan_id)
    code = DOCUMENTATION.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"FOLDER": scan.path}
    exec(code, names)
    for level in range(2):
        masks = np.stack([names["mask"](proposal, level) for proposal in range(7)])
        np.testing.assert_array_equal(masks, scan.masks(range(7), level=level))


def test_an_old_store_is_whole_and_its_ledger_reads() -> None:
    store = open_store(FIXTURE / "store")
    assert store.info.format_version == 2
    assert store.scan_ids == ("case-1", "case-2")
    assert store.info.config == {"max_atoms": 100}
    assert list(verify(store.path)) == []
    assert [(entry.scan_id, entry.state) for entry in read_ledger(store.path).values()] == [
        ("case-1", "committed"),
        ("case-3", "failed"),
    ]


def test_a_case_is_kept_and_a_scan_without_one_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    create_store(tmp_path / "store", spacing_mm=1.5, config={})
    record = draw_record("case-0", shape=LONG)
    commit_scan(tmp_path / "store", replace(record, case="patient 7"))
    commit_scan(tmp_path / "store", replace(record, scan_id="case-1"))
    store = open_store(tmp_path / "store")
    one, other = store.scan("case-0"), store.scan("case-1")
    assert (one.case, one.entry.case_key, one.record().case) == ("patient 7", "patient 7", "patient 7")
    assert (other.case, other.entry.case_key) == ("", "case-1")
    for name in ("COMMIT.json", "zarr.json"):
        assert '"case": "patient 7"' in (one.path / name).read_text()
        assert '"case":' not in (other.path / name).read_text()
    lines = (store.path / "index.jsonl").read_text().splitlines()
    assert ['"case":' in line for line in lines] == [True, False]


def test_an_old_store_takes_new_scans(tmp_path: Path) -> None:
    store = shutil.copytree(FIXTURE / "store", tmp_path / "store")
    commit_scan(store, draw_record("case-0", shape=LONG))
    finish(store)
    assert open_store(store).scan_ids == ("case-0", "case-1", "case-2")
    assert list(verify(store)) == []
