"""Reading from a real S3 server: by range, few requests, copies of a store, damage, the cache."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import (
    CacheSettings,
    CorruptScan,
    ScanRecord,
    StoreNotFound,
    StoreUrl,
    commit_scan,
    create_store,
    finish,
    open_store,
    parse_store_path,
    sweep,
    verify,
    with_cache,
)
from storage.access import client_of
from storage.access.folders import join_spans
from tests.storage.access.object_server import SLOW_SECONDS, Proxy, new_url
from tests.storage.drawn_record import SMALL, draw_record, record_masks


def noisy(*, shape: tuple[int, int, int], seed: int = 0) -> ScanRecord:
    """A scan whose image does not compress: a chunk has about 500 kB."""
    record = draw_record("noisy", shape=shape, layers=1, seed=seed)
    codes = np.random.default_rng(seed).integers(-30_000, 30_000, shape, dtype=np.int16)
    return replace(record, image=codes, labels=())


@pytest.fixture(scope="module")
def large() -> ScanRecord:
    return noisy(shape=(64, 192, 192))


def place_of(url: str) -> StoreUrl:
    place = parse_store_path(url)
    assert isinstance(place, StoreUrl)
    return place


def upload(folder: Path, url: str) -> None:
    """Copy a store from disk, as `aws s3 sync` does."""
    place = place_of(url)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "store.lock":
            client_of(place).put((place / path.relative_to(folder).as_posix()).key, path)


def download(url: str, folder: Path) -> None:
    """Copy a store to disk."""
    place = place_of(url)
    for item in list(client_of(place).objects(place.key)):
        path = folder / item.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client_of(place).get((place / item.key).key)[0])


def test_everything_reads_as_it_was_written(url: str, record: ScanRecord) -> None:
    create_store(url, spacing_mm=1.5, config={})
    commit_scan(url, record)
    scan = pickle.loads(pickle.dumps(open_store(url).scan("scan-1")))
    np.testing.assert_array_equal(scan.image_codes(), record.image)
    np.testing.assert_array_equal(scan.masks(range(len(record.table))), record_masks(record))
    region = (slice(10, 70), slice(3, 44), slice(60, 90))
    np.testing.assert_array_equal(scan.image_codes(region), record.image[region])
    np.testing.assert_array_equal(scan.labels("organs", region), record.labels[0].array[region])
    np.testing.assert_array_equal(scan.level_voxels[:, 0], record.table[:, 9])
    with pytest.raises(StoreNotFound, match="no store here"):
        open_store(f"{url}-other")


def test_a_crop_reads_its_chunks_only_by_range(proxy: Proxy, large: ScanRecord) -> None:
    url = new_url()
    create_store(url, spacing_mm=1.5, config={})
    commit_scan(url, large)
    scan = open_store(url).scan("noisy")
    _ = scan.proposals
    proxy.seen.clear()
    proxy.bytes_sent = 0
    region = (slice(0, 64), slice(70, 120), slice(70, 120))  # one of nine chunks
    np.testing.assert_array_equal(scan.image_codes(region), large.image[region])
    whole = large.image.nbytes
    assert proxy.bytes_sent < whole / 8
    assert [one.range != "" for one in proxy.of("GET", "/0/c.0.0.0")] == [True, True], "index, then the chunk"
    proxy.seen.clear()
    np.testing.assert_array_equal(scan.image_codes(region), large.image[region])
    assert len(proxy.seen) == 1, "the index is kept"
    proxy.seen.clear()
    np.testing.assert_array_equal(scan.image_codes(), large.image)
    assert len(proxy.seen) < 9, "neighbouring chunks are read by one request"


def test_a_scan_opens_with_few_requests_of_which_most_are_made_at_once(proxy: Proxy) -> None:
    url = new_url()
    create_store(url, spacing_mm=1.5, config={})
    commit_scan(url, draw_record(shape=SMALL, layers=1))
    finish(url)
    proxy.seen.clear()
    store = open_store(url)
    assert store.scan_ids == ("scan-1",)
    assert len(proxy.seen) == 3, "store.json, index, list of changes"
    proxy.seen.clear()
    scan = store.scan("scan-1")
    _ = scan.words([0, 1, 2]), scan.image()
    assert len(proxy.seen) <= 22
    assert len({one.path for one in proxy.seen}) == len(proxy.seen), "nothing is read twice"


@pytest.mark.parametrize("fault", ["500", "cut", "slow"])
def test_faults_while_a_crop_is_read_change_nothing(
    fault: str, proxy: Proxy, large: ScanRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "slow":  # a busy machine is slow too: any number of answers may come too late
        monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", str(SLOW_SECONDS / 2))
        monkeypatch.setenv("MASS_OBJECT_TRIES", "100")
    url = new_url()
    create_store(url, spacing_mm=1.5, config={})
    commit_scan(url, large)
    store = open_store(url)
    proxy.seen.clear()
    proxy.rule = lambda one: fault if one.number % 7 == 3 else None  # type: ignore[return-value]
    np.testing.assert_array_equal(store.scan("noisy").image_codes(), large.image)
    assert len(proxy.seen) > 7


def test_a_copy_of_a_store_on_disk_is_read_verified_and_written_to(
    url: str, record: ScanRecord, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    create_store(folder, spacing_mm=1.5, config={})
    for number in range(2):
        commit_scan(folder, draw_record(f"scan-{number}", shape=SMALL, layers=1))
    finish(folder)
    upload(folder, url)
    assert open_store(url).entries == open_store(folder).entries
    assert open_store(url).find("scan-0") == open_store(folder).entries["scan-0"]
    assert list(verify(url)) == []
    assert sweep(url) == 0
    commit_scan(url, draw_record("scan-0", shape=SMALL, layers=1, seed=5), replace=True)
    commit_scan(url, draw_record("scan-1", shape=SMALL, layers=1))
    finish(url)
    assert [entry.addressed for entry in open_store(url).entries.values()] == [True, True]
    np.testing.assert_array_equal(
        open_store(url).scan("scan-0").image_codes(), draw_record(shape=SMALL, layers=1, seed=5).image
    )


def test_a_copy_on_disk_of_a_store_at_a_url_is_read_verified_and_written_to(url: str, tmp_path: Path) -> None:
    create_store(url, spacing_mm=1.5, config={})
    first = draw_record("scan-0", shape=SMALL, layers=1)
    commit_scan(url, first)
    finish(url)
    folder = tmp_path / "copy"
    download(url, folder)
    np.testing.assert_array_equal(open_store(folder).scan("scan-0").image_codes(), first.image)
    assert list(verify(folder)) == []
    assert sweep(folder) == 0
    (folder / "index.jsonl").unlink()
    assert sweep(folder) == 1
    np.testing.assert_array_equal(open_store(folder).scan("scan-0").image_codes(), first.image)
    commit_scan(folder, draw_record("scan-0", shape=SMALL, layers=1, seed=3), replace=True)
    commit_scan(folder, draw_record("scan-1", shape=SMALL, layers=1))
    assert list(verify(folder)) == []
    assert open_store(folder).scan_ids == ("scan-0", "scan-1")
    assert not open_store(folder).entries["scan-0"].addressed


def test_damage_is_noticed_and_not_kept_in_the_cache(url: str, large: ScanRecord, tmp_path: Path) -> None:
    place = with_cache(place_of(url), CacheSettings(tmp_path / "cache", 1 << 30))
    create_store(place, spacing_mm=1.5, config={})
    entry = commit_scan(place, large)
    key = (place_of(url) / entry.path / "0/c.0.0.0").key
    client = client_of(place_of(url))
    whole, _ = client.get(key)
    client.put(key, bytes([whole[100] ^ 1] * 200) + whole[200:])
    with pytest.raises(CorruptScan, match=r"0: c\.0\.0\.0 fails its checksum"):
        open_store(place).scan("noisy").image()
    client.put(key, whole[:-1])
    with pytest.raises(CorruptScan, match=r"has \d+ bytes, COMMIT\.json says"):
        open_store(url).scan("noisy").image()
    client.delete([key])
    with pytest.raises(CorruptScan, match="is missing"):
        open_store(url).scan("noisy").image()
    small = (place_of(url) / entry.path / "zarr.json").key
    document, _ = client.get(small)
    client.put(small, document.replace(b"drawn", b"drown"))
    other = with_cache(place_of(url), CacheSettings(tmp_path / "other", 1 << 30))
    with pytest.raises(CorruptScan, match=r"zarr\.json is not what was committed"):
        _ = open_store(other).scan("noisy").scale
    client.put(small, document)
    client.put(key, whole)
    for repaired in (place, other):
        np.testing.assert_array_equal(open_store(repaired).scan("noisy").image_codes(), large.image)


def test_an_object_that_is_exchanged_while_it_is_read_is_noticed(url: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    for path, seed in ((folder, 0), (other, 1)):
        create_store(path, spacing_mm=1.5, config={})
        commit_scan(path, noisy(shape=(64, 64, 128), seed=seed))
    upload(folder, url)
    scan = open_store(url).scan("noisy")
    left, right = ((slice(0, 64), slice(0, 64), part) for part in (slice(0, 64), slice(64, 128)))
    scan.image_codes(left)
    upload(other, url)
    with pytest.raises(CorruptScan, match=r"was replaced|COMMIT\.json says"):
        scan.image_codes(right)


def test_the_second_reading_comes_from_the_cache(proxy: Proxy, large: ScanRecord, tmp_path: Path) -> None:
    place = with_cache(place_of(new_url()), CacheSettings(tmp_path, 1 << 30))
    create_store(place, spacing_mm=1.5, config={})
    commit_scan(place, large)
    finish(place)
    np.testing.assert_array_equal(open_store(place).scan("noisy").image_codes(), large.image)
    proxy.seen.clear()
    store = open_store(place)
    np.testing.assert_array_equal(store.scan("noisy").image_codes(), large.image)
    _ = store.entries
    assert {one.path.split("/")[-1].split("?")[0] for one in proxy.of("GET", "/scans/")} <= {"COMMIT.json"}
    assert not proxy.of("GET", "c.0.0.0")


def test_near_spans_are_joined_and_far_ones_are_not() -> None:
    assert join_spans([]) == {}
    assert join_spans([(100, 50), (0, 100)]) == {(0, 150): [(0, 100), (100, 50)]}
    far = 10 << 20
    assert join_spans([(0, 10), (far, 10)]) == {(0, 10): [(0, 10)], (far, 10): [(far, 10)]}
    large = 5 << 20
    assert len(join_spans([(0, large), (large, large)])) == 2, "no more than one request may read"
