"""Commits to a real S3 server: the bytes of a store on disk; kills, two writers, repair, what is left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from storage import (
    CorruptStore,
    LedgerEntry,
    ScanExists,
    ScanNotFound,
    ScanRecord,
    StoreExists,
    StoreUnreachable,
    StoreUrl,
    commit_scan,
    create_store,
    finish,
    open_store,
    parse_store_path,
    read_ledger,
    remove_scan,
    restore_commit,
    stored_bytes,
    sweep,
    verify,
    verify_scan,
    write_ledger,
)
from storage.access import client_of
from storage.checksums import sealed_line, unsealed_line
from storage.layout import commit_folder
from storage.reading import read_object_index
from storage.writing import object_commits
from tests.storage.access.object_server import Proxy, new_url
from tests.storage.drawn_record import SMALL, differently, draw_record, store_bytes

CONFIG = {"max_atoms": 100}


@pytest.fixture(scope="module")
def small() -> ScanRecord:
    return draw_record("scan-1", shape=SMALL, layers=1)


def place_of(url: str) -> StoreUrl:
    place = parse_store_path(url)
    assert isinstance(place, StoreUrl)
    return place


def made(url: str) -> StoreUrl:
    create_store(url, spacing_mm=1.5, config=CONFIG)
    return place_of(url)


def objects_of(place: StoreUrl) -> dict[str, bytes]:
    """Every object of a store by key."""
    client = client_of(place)
    keys = [item.key for item in client.objects(place.key)]
    return {key: client.get((place / key).key)[0] for key in keys}


def commit_folders(objects: dict[str, bytes]) -> set[str]:
    """Names of the folders of commits among the objects of a store."""
    return {key.split("/")[3] for key in objects if key.startswith("scans") and key.count("/") > 3}


def as_on_disk(objects: dict[str, bytes]) -> dict[str, bytes]:
    """The objects as files of a store on disk: without the folder of the commit, and lines likewise."""
    files: dict[str, bytes] = {}
    for key, data in objects.items():
        parts = key.split("/")
        if parts[0] == "scans" and len(parts) > 4:
            assert len(parts[3]) == 16
            key = "/".join([*parts[:3], *parts[4:]])
        files[key] = data
    if "index.jsonl" in files:
        lines = files["index.jsonl"].splitlines(keepends=True)
        files["index.jsonl"] = b"".join(_line_on_disk(line) for line in lines)
    return files


def _line_on_disk(line: bytes) -> bytes:
    start, _, rest = unsealed_line(line.rstrip(b"\n")).partition(b'"path":"')
    path, _, end = rest.partition(b'"')
    return sealed_line(start + b'"path":"' + b"/".join(path.split(b"/")[:3]) + b'"' + end + b"\n")


def test_a_scan_has_the_bytes_that_it_has_on_disk(url: str, record: ScanRecord, tmp_path: Path) -> None:
    local = create_store(tmp_path / "store", spacing_mm=1.5, config=CONFIG).path
    for store in (local, made(url)):
        commit_scan(store, record)
        write_ledger(store, [LedgerEntry(scan_id="scan-1", location="x.nii", state="committed")])
        finish(store)
    assert isinstance(local, Path)
    on_disk = {key: data for key, data in store_bytes(local).items() if data != b"<folder>"}
    assert on_disk.pop("store.lock") == b""
    assert as_on_disk(objects_of(place_of(url))) == on_disk
    assert list(verify(url)) == []
    assert open_store(url).entries["scan-1"].digest == open_store(local).entries["scan-1"].digest
    assert stored_bytes(open_store(url)) == stored_bytes(open_store(local))
    assert read_ledger(url) == read_ledger(local)


def test_a_scan_is_there_at_once_and_for_those_who_opened_the_store_before_it_is_not(
    url: str, small: ScanRecord
) -> None:
    made(url)
    before = open_store(url)
    assert before.scan_ids == ()
    commit_scan(url, small)
    assert before.scan_ids == ()
    assert open_store(url).scan_ids == ("scan-1",)
    assert open_store(url).find("scan-1") == open_store(url).entries["scan-1"]
    assert open_store(url).find("scan-2") is None


def test_the_same_scan_again_changes_nothing_and_another_is_refused_or_replaces(
    url: str, small: ScanRecord
) -> None:
    place = made(url)
    first = commit_scan(url, small)
    finish(url)
    before = objects_of(place)
    assert commit_scan(url, small) == first
    finish(url)
    assert objects_of(place) == before
    with pytest.raises(ScanExists, match="replace=True"):
        commit_scan(url, differently(small))
    opened = open_store(url).scan("scan-1")
    _ = opened.proposals
    second = commit_scan(url, differently(small), replace=True)
    assert open_store(url).entries["scan-1"] == second != first
    assert (opened.image() == small.image * small.scale + small.offset).all(), "old readers go on"
    assert list(verify(url)) == []


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_writer_killed_at_any_request_leaves_no_scan_or_the_whole_scan(
    every: int, proxy: Proxy, small: ScanRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASS_OBJECT_TRIES", "1")
    base = new_url()
    made(f"{base}-whole")
    proxy.seen.clear()
    commit_scan(f"{base}-whole", small)
    num_requests = len(proxy.seen)
    assert num_requests > 20
    files_are_put = range(6, num_requests - 6)  # several at once, in any order
    for killed_at in sorted({*range(1, num_requests)} - {*files_are_put} | {*files_are_put[::6]})[::every]:
        url = f"{base}-{killed_at}"
        place = made(url)
        start = len(proxy.seen)
        proxy.rule = lambda one, start=start, at=killed_at: "500" if one.number - start >= at else None
        with pytest.raises(StoreUnreachable):
            commit_scan(url, small)
        proxy.rule = None
        found = open_store(url).scan_ids
        assert found in ((), ("scan-1",))
        if found:
            assert open_store(url).scan("scan-1").record().image.shape == small.image.shape
        assert [problem for problem in verify(url) if problem.key != "COMMIT.json"] == []
        if killed_at % 6 == 0 or found:
            commit_scan(url, small)
            finish(url)
            assert list(verify(url)) == []
            assert as_on_disk(objects_of(place)).keys() >= {"index.jsonl", "store.json"}


def test_two_writers_of_one_scan_leave_one_of_the_two(url: str, small: ScanRecord) -> None:
    place = made(url)
    others = [differently(small), small]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: commit_scan(url, others[k % 2], replace=True), range(8)))
    finish(url)
    assert list(verify(url)) == []
    scan = open_store(url).scan("scan-1")
    assert scan.digests in (small.digests, others[0].digests)
    assert scan.record().table.shape == small.table.shape
    assert read_object_index(place).written.entries == read_object_index(place).entries


def test_writers_of_many_scans_at_once_lose_none(url: str, small: ScanRecord) -> None:
    made(url)
    ids = [f"scan-{number}" for number in range(6)]

    def write(scan_id: str) -> None:
        commit_scan(url, draw_record(scan_id, shape=SMALL, layers=1))
        write_ledger(url, [LedgerEntry(scan_id=scan_id, location=scan_id, state="committed")])
        finish(url)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, ids))
    finish(url)
    assert list(open_store(url).scan_ids) == ids
    assert list(read_ledger(url)) == ids
    assert read_object_index(place_of(url)).changes == ()


def test_of_two_who_create_a_store_both_open_the_same(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda k: create_store(url, spacing_mm=1.5, config={"n": k}), range(4)))
    assert len({store.info.config_digest for store in stores}) == 1
    with pytest.raises(StoreExists, match="a store already"):
        create_store(url, spacing_mm=1.5, config={}, exist_ok=False)
    with pytest.raises(StoreExists, match=r"not empty \('store/store\.json'"):
        create_store(url.rsplit("/", 1)[0], spacing_mm=1.5, config={})


@pytest.mark.parametrize("damage", ["gone", "line", "torn"])
def test_sweep_makes_the_index_again_from_the_commits(damage: str, url: str, small: ScanRecord) -> None:
    place = made(url)
    for number in range(3):
        commit_scan(url, draw_record(f"scan-{number}", shape=SMALL, layers=1))
    finish(url)
    whole = objects_of(place)["index.jsonl"]
    key = (place / "index.jsonl").key
    if damage == "gone":
        client_of(place).delete([key])
    else:
        client_of(place).put(key, whole.replace(b'"id"', b'"ix"', 1) if damage == "line" else whole[:-9])
    if damage == "line":
        with pytest.raises(CorruptStore, match="line 1 is damaged"):
            _ = open_store(url).entries
    assert len(list(verify(url))) >= 1
    assert sweep(url) > 0
    assert objects_of(place)["index.jsonl"] == whole
    assert sweep(url) == 0


def test_a_scan_is_removed_and_can_come_again(url: str, small: ScanRecord) -> None:
    made(url)
    with pytest.raises(ScanNotFound):
        remove_scan(url, "scan-1")
    commit_scan(url, small)
    remove_scan(url, "scan-1")
    assert open_store(url).scan_ids == ()
    assert list(verify(url)) == []
    commit_scan(url, small)
    assert open_store(url).scan_ids == ("scan-1",)
    assert list(verify(url)) == []


def test_what_no_commit_names_is_removed_after_a_day(
    proxy: Proxy, small: ScanRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    place = made(url)
    first = commit_scan(url, small)
    second = commit_scan(url, differently(small), replace=True)
    monkeypatch.setenv("MASS_OBJECT_TRIES", "1")
    proxy.rule = lambda one: "500" if one.method == "PUT" and "COMMIT.json" in one.path else None
    with pytest.raises(StoreUnreachable):
        commit_scan(url, draw_record("scan-2", shape=SMALL, layers=1))
    proxy.rule = None
    finish(url)
    assert sweep(url) == 0, "the writer may still be at work, and readers may have the old scan open"
    assert len(commit_folders(objects_of(place))) == 3
    later = object_commits._time_of(place) + timedelta(hours=25)
    monkeypatch.setattr(object_commits, "_time_of", lambda root: later)
    assert sweep(url) > 0
    left = objects_of(place)
    assert commit_folders(left) == {commit_folder(second.digest)}
    assert not [key for key in left if key.startswith(("changes/", "garbage/"))]
    assert commit_folder(first.digest) not in str(left.keys())
    assert list(verify(url)) == []


def test_verify_finds_every_kind_of_damage(url: str, small: ScanRecord) -> None:
    place = made(url)
    entry = commit_scan(url, small)
    finish(url)
    folder, client = place / entry.path, client_of(place)
    whole = {key: client.get((folder / key).key)[0] for key in ("scores/c.0", "0/c.0.0.0", "zarr.json")}
    flipped = bytes([whole["0/c.0.0.0"][0] ^ 1]) + whole["0/c.0.0.0"][1:]
    client.put((folder / "0/c.0.0.0").key, flipped)
    client.put((folder / "scores/c.0").key, whole["scores/c.0"][:-1])
    client.delete([(folder / "zarr.json").key])
    client.put((folder / "more").key, b"x")
    client.put((place / "scans" / "00" / "nobody" / "file").key, b"x")
    found = {(problem.scan_id, problem.key): problem.what for problem in verify(url)}
    assert "checksum" in found.pop(("scan-1", "0/c.0.0.0"))
    assert "bytes" in found.pop(("scan-1", "scores/c.0"))
    assert "missing" in found.pop(("scan-1", "zarr.json"))
    assert "not part" in found.pop(("scan-1", f"{commit_folder(entry.digest)}/more"))
    assert "does not belong there" in found.pop((None, "scans/00/nobody/file"))
    assert found == {}
    client.delete([(place / "scans" / "00" / "nobody" / "file").key])
    assert len(verify_scan(url, "scan-1")) == 4
    commit_scan(url, small)
    assert {problem.key for problem in verify(url)} == {f"{commit_folder(entry.digest)}/more"}
    finish(url)
    client.put((place / entry.path.rsplit("/", 1)[0] / "COMMIT.json").key, b"{}")
    assert any("damaged" in problem.what for problem in verify(url))
    assert open_store(url).scan("scan-1").shape == SMALL, "the commit's folder has a COMMIT.json of its own"
    commit_scan(url, small)
    assert {problem.key for problem in verify(url)} == {f"{commit_folder(entry.digest)}/more"}


def test_files_that_were_copied_from_disk_wait_for_the_sweep_when_they_are_replaced(
    url: str, small: ScanRecord, tmp_path: Path
) -> None:
    local = create_store(tmp_path / "store", spacing_mm=1.5, config=CONFIG).path
    commit_scan(local, small)
    place = place_of(url)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            key = (place / str(path.relative_to(tmp_path / "store"))).key
            client_of(place).put(key, path.read_bytes())
    commit_scan(place, differently(small), replace=True)
    finish(place)
    assert list(verify(place)) == []


def test_a_damaged_commit_of_either_place_is_written_again_from_the_other(
    url: str, small: ScanRecord
) -> None:
    place = made(url)
    commit_scan(place, small)
    finish(place)
    before = objects_of(place)
    entry = open_store(place).entries[small.scan_id]
    scan = place / f"{entry.path.rsplit('/', 1)[0]}"
    for damaged in (scan / "COMMIT.json", place / entry.path / "COMMIT.json"):
        for bad in (b"{", before_of(before, damaged, place) + b" ", None):
            client_of(place).delete([damaged.key]) if bad is None else client_of(place).put(damaged.key, bad)
            assert list(verify(place))
            assert restore_commit(place, entry)
            assert (objects_of(place), list(verify(place))) == (before, [])
    assert not restore_commit(place, entry)


def before_of(objects: dict[str, bytes], url: StoreUrl, store: StoreUrl) -> bytes:
    return objects[url.key.removeprefix(f"{store.key}/")]


def test_a_long_list_of_changes_is_written_into_the_index_while_scans_are_stored(
    url: str, small: ScanRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made(url)
    monkeypatch.setattr(object_commits, "_MANY_MARKS", 2)
    for number in range(2):
        commit_scan(url, draw_record(f"scan-{number}", shape=SMALL, layers=1))
        write_ledger(url, [])
        assert len(read_object_index(place).written.entries) == (0 if number == 0 else 2)
