from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from storage import (
    CorruptStore,
    InvalidRecord,
    LedgerEntry,
    LedgerFile,
    mend_ledger,
    read_failed,
    read_ledger,
    verify,
    write_ledger,
)
from storage.layout import dump_line

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


def test_any_flipped_bit_of_the_ledger_is_found_and_mended_without_the_other_line(empty_store: Path) -> None:
    write_ledger(empty_store, [GOOD, BAD])
    path = empty_store / "ledger.jsonl"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptStore, match="is damaged"):
            read_ledger(empty_store)
        with suppress(CorruptStore):  # it parses no other lines, so a name may differ in those
            assert read_failed(empty_store) == {"../x": BAD}
        assert {problem.key for problem in verify(empty_store)} == {"ledger.jsonl"}
    path.write_bytes(whole.replace(b"leaves", b"leavEs"))
    assert mend_ledger(empty_store) == 1
    assert read_ledger(empty_store) == {"b": GOOD}
    assert (list(verify(empty_store)), mend_ledger(empty_store)) == ([], 0)
    write_ledger(empty_store, [BAD])
    assert path.read_bytes() == whole


def test_lines_of_older_versions_have_no_checksum_and_stay_as_they_are(empty_store: Path) -> None:
    old = dump_line(BAD.to_json())
    (empty_store / "ledger.jsonl").write_bytes(old)
    assert read_failed(empty_store) == read_ledger(empty_store) == {"../x": BAD}
    write_ledger(empty_store, [GOOD])
    assert (empty_store / "ledger.jsonl").read_bytes().startswith(old)


def test_a_state_is_one_of_two() -> None:
    with pytest.raises(InvalidRecord, match="state of x"):
        LedgerEntry(scan_id="x", location="x", state="maybe")  # type: ignore[arg-type]
