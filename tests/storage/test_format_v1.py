"""A store written when format 1 was made still reads, and reads the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage import (
    FormatVersionError,
    commit_scan,
    finish,
    open_store,
    read_ledger,
    remove_scan,
    sweep,
    verify,
)
from storage.records.levels import downsample_image
from tests.storage.drawn_record import SMALL, draw_record, store_bytes
from tests.storage.make_fixture import describe

FIXTURE = Path(__file__).parent / "fixtures" / "v1"


@pytest.mark.parametrize("scan_id", ["case-1", "case-2"])
def test_every_array_of_an_old_scan_reads_as_it_did(scan_id: str) -> None:
    expected = json.loads((FIXTURE / "expected.json").read_text())[scan_id]
    assert json.loads(json.dumps(describe(open_store(FIXTURE / "store").scan(scan_id)))) == expected


@pytest.mark.parametrize("scan_id", ["case-1", "case-2"])
def test_an_old_scan_tells_how_many_atoms_it_has(scan_id: str) -> None:
    scan = open_store(FIXTURE / "store").scan(scan_id)
    assert scan.num_atoms() == int(scan.atoms().max()) + 1


def test_an_old_store_is_whole_and_its_ledger_reads() -> None:
    assert open_store(FIXTURE / "store").scan_ids == ("case-1", "case-2")
    assert open_store(FIXTURE / "store").info.config == {"max_atoms": 100}
    assert list(verify(FIXTURE / "store")) == []
    ledger = read_ledger(FIXTURE / "store")
    assert [(entry.scan_id, entry.state, entry.kind) for entry in ledger.values()] == [
        ("case-1", "committed", ""),
        ("case-3", "failed", "NotFinite"),
    ]


def test_an_old_store_takes_no_new_scans_and_says_what_to_do(tmp_path: Path) -> None:
    store = shutil.copytree(FIXTURE / "store", tmp_path / "store")
    with pytest.raises(
        FormatVersionError, match=r"format version 1; .* writes version 2\. `mass lift STORE`"
    ):
        commit_scan(store, draw_record("case-0", shape=SMALL))
    assert open_store(store).scan_ids == ("case-1", "case-2")


def test_the_store_itself_is_looked_after_without_a_change_of_version(tmp_path: Path) -> None:
    store = shutil.copytree(FIXTURE / "store", tmp_path / "store")
    before = store_bytes(store)
    assert sweep(store) == 0
    finish(store)
    opened = open_store(store)
    opened.set_config(opened.info.config)
    assert store_bytes(store) == before
    remove_scan(store, "case-2")
    assert open_store(store).scan_ids == ("case-1",)
    assert list(verify(store)) == []


def test_levels_of_an_old_scan_are_made_when_read() -> None:
    scan = open_store(FIXTURE / "store").scan("case-1")
    assert scan.num_levels == 1
    level = scan.level_for((8, 16, 16))
    assert level.factors_zyx == (1, 2, 4)
    np.testing.assert_array_equal(
        scan.image_codes(level=level), downsample_image(scan.image_codes(), (1, 2, 4))
    )
    np.testing.assert_array_equal(scan.level_voxels[:, 0], scan.proposals.voxels)
    assert not scan.level_voxels.flags.writeable
