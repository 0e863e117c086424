from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage import CorruptScan, Scan, ScanRecord, commit_scan, open_store, sweep, verify, verify_scan
from storage.checksums import sealed_line, unsealed_line
from storage.layout import dump_document
from tests.storage.drawn_record import SMALL, draw_record, store_bytes


@pytest.fixture
def scan(store: Path) -> Scan:
    commit_scan(store, draw_record("healthy", shape=SMALL))
    return open_store(store).scan("scan-1")


def read_all(store: Path) -> None:
    scan = open_store(store).scan("scan-1")
    scan.record()
    for level in range(1, scan.num_levels):
        scan.image_codes(level=level)
        scan.labels("organs", level=level)
        for layer in range(scan.num_layers):
            scan.atoms(layer, level=level)
    _ = scan.level_voxels


def every_file(store: Path) -> list[str]:
    folder = open_store(store).scan("scan-1").path
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_whole_store_has_no_problem(store: Path, scan: Scan) -> None:
    seen: list[str] = []
    assert list(verify(store, on_scan=seen.append)) == []
    assert seen == ["healthy", "scan-1"]


def test_damage_to_any_file_is_found_and_never_read_as_data(
    store: Path, scan: Scan, record: ScanRecord
) -> None:
    for key in every_file(store):
        path = scan.path / key
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for damage, what in (
            (bytes(flipped), "checksum"),
            (whole[:-1], "bytes"),
            (whole[: len(whole) // 2], "bytes"),
            (b"", "bytes"),
            (None, "missing"),
        ):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            problems = list(verify(store))
            assert {problem.scan_id for problem in problems} == {"scan-1"}, (key, what)
            assert problems[0].key == key
            if key != "COMMIT.json":
                assert what in problems[0].what
            if key not in (
                "labels/zarr.json",
                "segments/zarr.json",
                "labels/atoms/zarr.json",
                "labels/atoms_1/zarr.json",
            ):
                with pytest.raises(CorruptScan, match="scan-1"):
                    read_all(store)
            path.write_bytes(whole)
    assert list(verify(store)) == []
    read_all(store)


def test_every_bit_of_a_shard_is_guarded_when_it_is_read(store: Path, scan: Scan) -> None:
    path = scan.path / "labels/atoms_1/0/c.0.0.0"
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CorruptScan, match="labels/atoms_1/0"):
            open_store(store).scan("scan-1").atoms(1)


def test_what_does_not_belong_is_named(store: Path, scan: Scan) -> None:
    (scan.path / "0" / "c.0.0.1").write_bytes(b"x")
    (store / "scans" / "zz" / "stray").mkdir(parents=True)
    problems = {(problem.scan_id, problem.key): problem.what for problem in verify(store)}
    assert set(problems) == {("scan-1", "0/c.0.0.1"), (None, "scans/zz/stray")}
    assert "remove it" in problems["scan-1", "0/c.0.0.1"]


def test_index_and_folders_must_agree(store: Path, scan: Scan) -> None:
    line = unsealed_line((store / "index.jsonl").read_bytes().splitlines()[1])
    other = sealed_line(line.replace(b'"digest":"', b'"digest":"0') + b"\n")
    (store / "index.jsonl").write_bytes(other + b"{}\n" + b'{"id"')
    found = {(problem.scan_id, problem.key): problem.what for problem in verify(store)}
    assert "cut off" in found.pop((None, "index.jsonl"))
    assert set(found) == {("healthy", "COMMIT.json"), ("scan-1", "COMMIT.json")}
    assert "not the one that the index names" in found["healthy", "COMMIT.json"]
    assert "without a line in the index" in found["scan-1", "COMMIT.json"]
    assert sweep(store) == 3
    assert list(verify(store)) == []


def test_a_scan_that_the_index_names_but_is_gone_is_a_problem(store: Path, scan: Scan) -> None:
    scan.path.rename(store.parent / "elsewhere")
    (problem,) = verify(store)
    assert (problem.scan_id, problem.key) == ("scan-1", "COMMIT.json")
    assert "missing, though the index names it" in problem.what
    assert verify_scan(store, "healthy") == ()
    assert verify_scan(store, "scan-1") == (problem,)


def test_committing_a_damaged_scan_again_heals_it(store: Path, scan: Scan, record: ScanRecord) -> None:
    before = store_bytes(store)
    for key in ("0/c.0.0.0", "COMMIT.json", "labels/zarr.json"):
        (scan.path / key).write_bytes(b"")
        assert list(verify(store))
        commit_scan(store, record)
        sweep(store)
        assert list(verify(store)) == []
    after = store_bytes(store)
    assert {k: v for k, v in after.items() if k != "index.jsonl"} == {
        k: v for k, v in before.items() if k != "index.jsonl"
    }


@pytest.mark.parametrize("key", ["0/c.0.0.0", "0/zarr.json"])
def test_a_file_that_was_never_committed_is_not_read(store: Path, scan: Scan, key: str) -> None:
    path = scan.path / "COMMIT.json"
    document = json.loads(path.read_bytes())
    del document["keys"][key]
    path.write_bytes(dump_document(document))
    (store / "index.jsonl").unlink()
    sweep(store)  # the index names this COMMIT.json from now on
    with pytest.raises(CorruptScan, match=f"scan-1: COMMIT.json lacks {key}"):
        open_store(store).scan("scan-1").image_codes()


def test_a_commit_with_a_flipped_bit_is_not_taken_for_a_new_state(store: Path, scan: Scan) -> None:
    path = scan.path / "COMMIT.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"sha256", b"sha257", 1).replace(b'"split": "', b'"split": "x'))
    assert sweep(store) == 1
    assert path.read_bytes() == before
    assert list(verify(store)) == []


def test_a_store_without_its_lock_file_can_be_verified(store: Path, scan: Scan) -> None:
    (store / "store.lock").unlink()
    assert list(verify(store)) == []
    assert not (store / "store.lock").exists()
