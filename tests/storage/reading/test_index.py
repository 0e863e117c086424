from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import storage.reading.index
from storage import CorruptStore, ScanRecord, StoreFull, commit_scan, finish, open_store, sweep
from storage.layout import dump_line
from storage.reading.index import IndexTail, append_entry, parse_index, read_index_file
from tests.storage.drawn_record import SMALL, draw_record, store_bytes


@pytest.fixture
def two(store: Path) -> Path:
    commit_scan(store, draw_record("a", shape=SMALL))
    return store


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_passed_over_cut_off_and_healed(two: Path, kept: int) -> None:
    finish(two)
    whole = store_bytes(two)
    first, second, _ = (two / "index.jsonl").read_bytes().split(b"\n")
    torn = first + b"\n" + second[:kept]
    (two / "index.jsonl").write_bytes(torn)
    assert open_store(two).scan_ids == ("a",)
    commit_scan(two, draw_record("b", shape=SMALL))
    assert open_store(two).scan_ids == ("a", "b")
    assert sweep(two) == 1
    assert open_store(two).scan_ids == ("a", "b", "scan-1")
    finish(two)
    assert {key: data for key, data in store_bytes(two).items() if key in whole and key != "index.jsonl"} == {
        key: data for key, data in whole.items() if key != "index.jsonl"
    }


def test_a_line_that_lacks_only_its_newline_is_torn_too(two: Path) -> None:
    data = (two / "index.jsonl").read_bytes()
    (two / "index.jsonl").write_bytes(data[:-1])
    assert open_store(two).scan_ids == ("scan-1",)
    assert sweep(two) == 1
    assert open_store(two).scan_ids == ("a", "scan-1")


def test_a_damaged_line_is_an_error_until_the_sweep(two: Path) -> None:
    data = (two / "index.jsonl").read_bytes()
    (two / "index.jsonl").write_bytes(b"garbage\n" + data)
    with pytest.raises(CorruptStore, match="line 1 is damaged"):
        _ = open_store(two).entries
    assert sweep(two) == 1
    finish(two)
    assert read_index_file(two).damaged_lines == ()
    assert open_store(two).scan_ids == ("a", "scan-1")


def test_a_later_line_of_an_id_wins(store: Path) -> None:
    entry = open_store(store).entries["scan-1"]
    newer = {**entry.to_json(), "num_proposals": 3}
    with open(store / "index.jsonl", "ab") as file:
        file.write(dump_line(newer))
    assert open_store(store).entries["scan-1"].num_proposals == 3


def test_a_lost_index_is_written_again_from_the_scans(two: Path) -> None:
    finish(two)
    before = store_bytes(two)
    (two / "index.jsonl").unlink()
    assert open_store(two).scan_ids == ()
    assert sweep(two) == 2
    assert store_bytes(two) == before


def test_a_line_without_its_scan_is_dropped(two: Path) -> None:
    folder = open_store(two).scan("a").path
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    assert sweep(two) == 1
    assert open_store(two).scan_ids == ("scan-1",)


def test_finish_sorts_and_changes_nothing_the_second_time(empty_store: Path, record: ScanRecord) -> None:
    for scan_id in ("b", "c", "a"):
        commit_scan(empty_store, draw_record(scan_id, shape=SMALL))
    commit_scan(empty_store, draw_record("b", seed=1, shape=SMALL), replace=True)
    assert (empty_store / "index.jsonl").read_bytes().count(b"\n") == 4
    finish(empty_store)
    lines = (empty_store / "index.jsonl").read_bytes().splitlines()
    assert [line.split(b'"id":"')[1][:1] for line in lines] == [b"a", b"b", b"c"]
    inode = (empty_store / "index.jsonl").stat().st_ino
    finish(empty_store)
    assert (empty_store / "index.jsonl").stat().st_ino == inode


def test_a_tail_gives_what_is_committed_from_now_on_once_and_whole(two: Path) -> None:
    commit_scan(two, draw_record("b", shape=SMALL))
    line = dump_line(read_index_file(two).entries["b"].to_json())
    tail = IndexTail(two)
    assert tail.new_ids() == []
    path = two / "index.jsonl"
    path.write_bytes(path.read_bytes() + line[:20])
    assert tail.new_ids() == []
    path.write_bytes(path.read_bytes() + line[20:] + b"no line\n")
    assert tail.new_ids() == ["b"]
    assert tail.new_ids() == []
    path.write_bytes(line)  # written anew
    assert tail.new_ids() == []
    path.write_bytes(line + line)
    assert tail.new_ids() == ["b"]
    assert IndexTail(two.parent).new_ids() == []


def test_a_torn_line_longer_than_a_block_is_cut_off(store: Path) -> None:
    entry = open_store(store).entries["scan-1"]
    with open(store / "index.jsonl", "ab") as file:
        file.write(b"x" * 20_000)
    append_entry(store, entry)
    assert read_index_file(store).damaged_lines == ()
    assert (store / "index.jsonl").read_bytes() == entry.to_line() * 2


@pytest.mark.parametrize(
    "change", [{"format_version": 9}, {"path": "scans/aa/other"}, {"shape": [1, 2]}, {"digests": 3}]
)
def test_a_line_of_another_version_or_place_is_damaged(store: Path, change: dict[str, object]) -> None:
    line = open_store(store).entries["scan-1"].to_json()
    (store / "index.jsonl").write_bytes(dump_line({**line, **change}))
    assert read_index_file(store).damaged_lines == (1,)
    assert read_index_file(store).entries == {}


def test_a_line_that_is_written_in_part_is_taken_back(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store_bytes(store)
    real = os.write

    def half(handle: int, data: bytes) -> int:
        if b'"id":' not in data:  # the rest of a line whose first half was written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[: data.index(b'"id":') + 5])

    with monkeypatch.context() as patch:
        patch.setattr(storage.reading.index.os, "write", half)
        with pytest.raises(StoreFull):
            commit_scan(store, draw_record("a", shape=SMALL))
    assert store_bytes(store) == before


def test_a_line_knows_the_bytes_of_its_scan_and_an_older_line_stays_as_it_is(two: Path) -> None:
    for scan_id, entry in open_store(two).entries.items():
        files = [path for path in (two / entry.path).rglob("*") if path.is_file()]
        assert entry.num_bytes == sum(path.stat().st_size for path in files), scan_id
    entries = open_store(two).entries.values()
    older = b"".join(dump_line({k: v for k, v in e.to_json().items() if k != "num_bytes"}) for e in entries)
    (two / "index.jsonl").write_bytes(older)
    assert {entry.num_bytes for entry in open_store(two).entries.values()} == {0}
    assert sweep(two) == 0
    finish(two)
    assert (two / "index.jsonl").read_bytes() == older


def test_a_flipped_bit_anywhere_in_a_line_is_found_before_a_scan_is_read(store: Path) -> None:
    whole = (store / "index.jsonl").read_bytes()
    (entry,) = parse_index(whole).entries.values()
    name = len(b'{"checksum"')  # under another name it is no checksum, and the rest is whole
    for position in range(len(whole) - 1):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        index = parse_index(bytes(data))
        if position >= name or index.damaged_lines:
            assert index.damaged_lines == (1,), (position, bytes(data))
        else:
            assert list(index.entries.values()) == [entry]
    (store / "index.jsonl").write_bytes(data)
    with pytest.raises(CorruptStore, match="is damaged"):
        _ = open_store(store).entries


def test_a_line_without_a_checksum_stays_as_it_is_and_new_ones_have_one(two: Path) -> None:
    finish(two)
    sealed = (two / "index.jsonl").read_bytes()
    older = b"".join(dump_line(entry.to_json()) for entry in open_store(two).entries.values())
    (two / "index.jsonl").write_bytes(older)
    assert open_store(two).scan_ids == ("a", "scan-1")
    assert sweep(two) == 0
    commit_scan(two, draw_record("z", shape=SMALL))
    finish(two)
    lines = (two / "index.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[:2] == older.splitlines(keepends=True)
    assert lines[2].startswith(b'{"checksum":"')
    assert all(line.startswith(b'{"checksum":"') for line in sealed.splitlines())
