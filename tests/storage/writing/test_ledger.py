from __future__ import annotations

from pathlib import Path

import pytest

from storage import CorruptStore, InvalidRecord, LedgerEntry, LedgerFile, read_ledger, write_ledger

GOOD = LedgerEntry(
    scan_id="b",
    location="ct/b.nii.gz",
    state="committed",
    source_digest="aa",
    files=(LedgerFile(location="ct/b.nii.gz", size=10, mtime_ns=123),),
)
BAD = LedgerEntry(
    scan_id="../x",
    location="ct/ü.nii",
    state="failed",
    kind="UnsafeId",
    reason="the id leaves its folder",
    remedy="give it another",
)


def test_the_ledger_comes_back_sorted(empty_store: Path) -> None:
    assert read_ledger(empty_store) == {}
    write_ledger(empty_store, [GOOD, BAD])
    assert read_ledger(empty_store) == {"../x": BAD, "b": GOOD}
    assert list(read_ledger(empty_store)) == ["../x", "b"]


def test_writers_keep_each_others_lines(empty_store: Path) -> None:
    write_ledger(empty_store, [GOOD])
    write_ledger(empty_store, [BAD])
    assert set(read_ledger(empty_store)) == {"b", "../x"}
    newer = LedgerEntry(
        scan_id="b", location="ct/b.nii.gz", state="failed", kind="K", reason="r", remedy="do"
    )
    write_ledger(empty_store, [newer], remove=["../x", "never was"])
    assert read_ledger(empty_store) == {"b": newer}


def test_the_same_ledger_is_the_same_bytes(empty_store: Path) -> None:
    write_ledger(empty_store, [GOOD, BAD])
    before = (empty_store / "ledger.jsonl").read_bytes()
    write_ledger(empty_store, [BAD])
    write_ledger(empty_store, [GOOD])
    assert (empty_store / "ledger.jsonl").read_bytes() == before
    assert not (empty_store / "tmp").exists()


def test_a_damaged_ledger_is_named_with_its_remedy(empty_store: Path) -> None:
    (empty_store / "ledger.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorruptStore, match=r"line 1 is damaged.*keeps the finished scans"):
        read_ledger(empty_store)


def test_a_state_is_one_of_two() -> None:
    with pytest.raises(InvalidRecord, match="state of x"):
        LedgerEntry(scan_id="x", location="x", state="maybe")  # type: ignore[arg-type]
