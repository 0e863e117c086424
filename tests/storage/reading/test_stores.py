from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import storage.reading.stores
from storage import (
    CorruptScan,
    CorruptStore,
    FormatVersionError,
    InvalidRecord,
    ScanNotFound,
    ScanRecord,
    StorageError,
    StoreExists,
    StoreNotFound,
    commit_scan,
    create_store,
    digest_of,
    errors as error_module,
    open_store,
)
from storage.layout import dump_line
from storage.reading.index import IndexEntry
from tests.storage.drawn_record import SMALL, differently, draw_record, store_bytes


def test_a_new_store_says_how_it_was_made(tmp_path: Path) -> None:
    config = {"b": 1, "a": [1.5, "x"]}
    made = create_store(tmp_path / "deep" / "store", spacing_mm=1.5, config=config)
    info = open_store(made.path).info
    assert info == made.info
    assert (info.format_version, info.spacing_mm, info.config) == (2, 1.5, config)
    assert info.config_digest == digest_of({"a": [1.5, "x"], "b": 1})
    assert sorted(path.name for path in made.path.iterdir()) == ["store.json", "store.lock"]


def test_making_a_store_twice_leaves_the_first(store: Path) -> None:
    before = store_bytes(store)
    assert create_store(store, spacing_mm=3.0, config={}).info.spacing_mm == 1.5
    assert store_bytes(store) == before
    with pytest.raises(StoreExists, match="already"):
        create_store(store, spacing_mm=1.5, config={}, exist_ok=False)


def test_of_two_makers_at_once_the_first_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = storage.reading.stores.store_lock
    root = tmp_path / "store"

    @contextmanager
    def overtaken(path: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(storage.reading.stores, "store_lock", real)
            create_store(root, spacing_mm=3.0, config={})
        with real(path):
            yield

    monkeypatch.setattr(storage.reading.stores, "store_lock", overtaken)
    assert create_store(root, spacing_mm=1.5, config={}).info.spacing_mm == 3.0


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreExists, match=r"thesis\.txt"):
        create_store(tmp_path, spacing_mm=1.5, config={})
    with pytest.raises(StoreExists, match="a file"):
        create_store(tmp_path / "thesis.txt", spacing_mm=1.5, config={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_config_with_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecord, match="JSON"):
        create_store(tmp_path / "store", spacing_mm=1.5, config={"x": float("nan")})
    with pytest.raises(InvalidRecord, match="spacing_mm"):
        create_store(tmp_path / "store", spacing_mm=0.0, config={})
    assert not (tmp_path / "store").exists()


def test_a_changed_config_is_written_in_one_step(store: Path) -> None:
    opened = open_store(store)
    opened.set_config({"max_atoms": 7}, spacing_mm=2.0)
    info = open_store(store).info
    assert (info.config, info.spacing_mm) == ({"max_atoms": 7}, 2.0)
    assert opened.info == info
    assert not (store / "tmp").exists()


def test_no_store_is_told_from_another_version(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreNotFound, match="mass prepare"):
        open_store(tmp_path / "nowhere")
    document = json.loads((store / "store.json").read_text())
    for broken, reason in [
        (json.dumps(document | {"format_version": 3}), "format version 3; this mass3d reads versions 1 to 2"),
        (json.dumps(document | {"format": "other"}), "not that of a mass3d store"),
        (json.dumps({k: v for k, v in document.items() if k != "config"}), "damaged"),
        ("{", "not JSON"),
    ]:
        (store / "store.json").write_text(broken)
        with pytest.raises(FormatVersionError, match=reason):
            open_store(store)


def test_a_flipped_bit_of_store_json_is_an_error_or_changes_nothing(store: Path) -> None:
    path, info = store / "store.json", open_store(store).info
    whole, found = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert open_store(store).info == info
        except FormatVersionError:
            found += 1
    assert found > 0.9 * len(whole), "all but a few spaces"


def test_a_store_json_of_an_older_version_is_read_and_its_config_is_checked(store: Path) -> None:
    path, info = store / "store.json", open_store(store).info
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document))
    assert open_store(store).info == info
    path.write_text(json.dumps(document | {"config": {"max_atoms": 101}}))
    with pytest.raises(FormatVersionError, match="config_digest is not that of config"):
        open_store(store)


def test_an_unknown_scan_is_named(store: Path) -> None:
    with pytest.raises(ScanNotFound, match=r"scan 'nobody': not in .* which has 1 scans"):
        open_store(store).scan("nobody")
    with pytest.raises(KeyError):
        open_store(store).scan("../scan-1")


def test_scan_ids_are_sorted_whatever_the_order_of_work(empty_store: Path) -> None:
    for scan_id in ("b", "a", "C", "a.1"):
        commit_scan(empty_store, draw_record(scan_id, shape=SMALL))
    store = open_store(empty_store)
    assert store.scan_ids == ("C", "a", "a.1", "b") == tuple(store.entries)
    assert len(store) == 4


def test_the_index_tells_what_a_scan_is_without_opening_it(store: Path, record: ScanRecord) -> None:
    entry = open_store(store).entries["scan-1"]
    assert entry.shape_zyx == record.image.shape
    assert entry.spacing_zyx_mm == record.spacing_zyx_mm
    assert (entry.modality, entry.dataset, entry.split) == ("ct", "drawn", "train")
    assert (entry.num_proposals, entry.labels) == (7, ("organs",))
    assert entry.digests == record.digests
    assert (store / entry.path / "COMMIT.json").exists()


def test_a_pickled_store_holds_its_path_only(store: Path) -> None:
    opened = open_store(store)
    assert opened.scan_ids == ("scan-1",)
    again = pickle.loads(pickle.dumps(opened))
    assert "entries" not in vars(again)
    assert again.scan("scan-1").shape == opened.scan("scan-1").shape


def test_a_scan_replaced_under_a_reader_is_an_error_not_a_mixture(store: Path, record: ScanRecord) -> None:
    opened = open_store(store)
    begun, fresh = opened.scan("scan-1"), opened.scan("scan-1")
    begun.image()
    commit_scan(store, differently(record), replace=True)
    for read in (begun.image, fresh.image, lambda: begun.words([4])):
        with pytest.raises(CorruptScan, match="scan-1"):
            read()
    assert open_store(store).scan("scan-1").image().shape == record.image.shape


def test_a_store_of_5000_scans_opens_without_a_look_at_any_of_them(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = open_store(store).entries["scan-1"]
    lines = [
        dump_line(IndexEntry(**{**vars(entry), "scan_id": f"scan-{number}"}).to_json())
        for number in range(1, 5001)
    ]
    (store / "index.jsonl").write_bytes(b"".join(lines))
    real, read = Path.read_bytes, list[str]()

    def noted(path: Path) -> bytes:
        read.append(path.relative_to(store).parts[0])
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    (store / "scans").rename(store / "elsewhere")
    opened = open_store(store)
    assert len(opened.scan_ids) == 5000
    assert sorted(read) == ["index.jsonl", "store.json"]
    (store / "elsewhere").rename(store / "scans")
    opened.scan("scan-1").image((slice(0, 1),) * 3)


def test_errors_survive_pickling_and_are_the_builtins_they_refine() -> None:
    kinds = [
        kind for kind in vars(error_module).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert len(kinds) >= 11
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("scan x: no. Do y")))
        assert isinstance(error, StorageError)
        assert str(error) == "scan x: no. Do y"
    assert issubclass(CorruptScan, CorruptStore)
    assert issubclass(ScanNotFound, KeyError)
    assert issubclass(StoreNotFound, FileNotFoundError)


def test_a_scan_is_found_in_its_folder_without_the_index(store: Path, record: ScanRecord) -> None:
    before = open_store(store)
    (store / "index.jsonl").unlink()
    found = before.committed_now("scan-1")
    assert found is not None
    assert found.record().image.shape == record.image.shape
    assert before.committed_now("scan-2") is None
    (found.path / "COMMIT.json").write_bytes(b"{")
    assert before.committed_now("scan-1") is None
