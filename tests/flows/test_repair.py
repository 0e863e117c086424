"""`mass repair` makes again what is damaged, and touches nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands.caches import cache_folder
from commands.main import main
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from storage import open_store, verify
from tests.phantom import phantom


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store by its path."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def times(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each scan's COMMIT.json."""
    found = store.glob("scans/*/*/COMMIT.json")
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def folder(store: Path, scan_id: str) -> Path:
    return store / open_store(store).entries[scan_id].path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def repair(store: Path, out: Path, *more: object) -> tuple[int, dict[str, object]]:
    code = main(["repair", str(store), "--json", str(out), *map(str, more)])
    return code, json.loads(out.read_text()) if code < 2 else {}


def import_box(store: Path, scan_id: str, source: str, folder: Path) -> None:
    """Import one mask, a box on the stored grid."""
    mask = np.zeros((1, *open_store(store).entries[scan_id].shape_zyx), dtype=bool)
    mask[:, 2:6, 2:6, 2 : 5 + len(source)] = True
    np.savez(folder / f"{source}.npz", mask)
    words = ["import-masks", str(store), str(folder / f"{source}.npz"), "--scan", scan_id, "--source", source]
    assert main([*words, "--grid", "stored"]) == 0


@pytest.fixture
def made(raw: Path, tmp_path: Path, settings: Settings) -> Path:
    assert prepare_store(raw, tmp_path / "store", settings, Options()).exit_code == 0
    return tmp_path / "store"


def test_damage_of_every_kind_is_mended_to_the_byte_and_the_rest_is_left_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("one", "two"):
        import_box(made, "ann_ct", source, tmp_path)
    before, then = store_bytes(made), times(made)
    flip(folder(made, "ann_ct") / "0" / "c.0.0.0")
    (folder(made, "ben_ct") / "COMMIT.json").write_bytes(b"{")
    flip(folder(made, "ben_ct") / "scores" / "c.0")
    (folder(made, "cis_ct") / "0" / "notes.txt").write_text("mine")
    index = made / "index.jsonl"
    index.write_bytes(b"garbage\n" + index.read_bytes())
    code, told = repair(made, tmp_path / "r.json")
    assert (code, sorted(told["made_again"])) == (0, ["ann_ct", "ben_ct"])  # type: ignore[call-overload]
    assert told["removed"] == ["cis_ct/0/notes.txt"]
    assert list(verify(made)) == []
    assert store_bytes(made) == before, "with the imported masks"
    assert times(made)["cis_ct"] == then["cis_ct"]
    assert times(made)["ann_ct"] != then["ann_ct"]
    assert "2 scans made again, 1 files removed, 0 problems left" in capsys.readouterr().out
    assert repair(made, tmp_path / "r.json")[1]["made_again"] == []


def test_what_is_known_from_elsewhere_is_written_again_and_no_scan_is_made(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_box(made, "ann_ct", "one", tmp_path)
    before = store_bytes(made)
    whole = before[f"{open_store(made).entries['ann_ct'].path}/COMMIT.json"]
    named = whole.replace(
        b"level_voxels/c", b"level_voxelr/c"
    )  # one bit: a file of the scan seems to be none
    assert named != whole
    for damage in (b"{", None, whole[:-1] + b" ", named):
        commit = folder(made, "ann_ct") / "COMMIT.json"
        commit.unlink() if damage is None else commit.write_bytes(damage)
        ledger = made / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes() + b"garbage\n")
        code, told = repair(made, tmp_path / "r.json")
        assert (code, told["made_again"], told["commit_written_again"]) == (0, [], ["ann_ct"])
        assert store_bytes(made) == before
    flip(folder(made, "ann_ct") / "labels" / "atoms_1" / "0" / "c.0.0.0")
    code, told = repair(made, tmp_path / "r.json")
    assert (code, told["made_again"], told["lost_imports"]) == (1, ["ann_ct"], {"ann_ct": ["one"]})
    shown = capsys.readouterr().out
    assert "imported masks of one lost: 1 masks" in shown
    assert "ann_ct: imported masks of one are lost: mass import-masks them again" in shown
    assert list(verify(made)) == []


def test_a_source_that_is_gone_or_changed_is_told_and_the_others_are_made(
    made: Path, raw: Path, tmp_path: Path
) -> None:
    before = store_bytes(made)
    for scan_id in ("ann_ct", "ben_ct", "cis_ct"):
        flip(folder(made, scan_id) / "scores" / "c.0")
    (raw / "ben_ct.nii.gz").rename(tmp_path / "ben_ct.nii.gz")
    kept = (raw / "cis_ct.nii.gz").read_bytes()
    phantom(seed=9).write(raw / "cis_ct.nii.gz")
    code, told = repair(made, tmp_path / "r.json")
    assert (code, told["made_again"]) == (1, ["ann_ct"])
    reasons = {failure["scan"]: failure["reason"] for failure in told["failed"]}  # type: ignore[attr-defined]
    assert reasons == {
        "ben_ct": "damaged, and its source is not where it was",
        "cis_ct": "damaged, and its source has changed since it was prepared",
    }
    assert {problem["scan_id"] for problem in told["left"]} == {"ben_ct", "cis_ct"}  # type: ignore[attr-defined]
    (raw / "cis_ct.nii.gz").write_bytes(kept)
    (tmp_path / "ben_ct.nii.gz").rename(raw / "ben_ct.nii.gz")
    assert repair(made, tmp_path / "r.json")[0] == 0
    after = store_bytes(made)
    assert {key for key in after if after[key] != before[key]} <= {"ledger.jsonl"}, "only times of files"


def test_without_a_memory_of_the_sources_the_user_names_them(
    made: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = store_bytes(made)
    shutil.rmtree(cache_folder() / "sources")
    assert repair(made, tmp_path / "r.json")[0] == 0, "nothing is damaged, so nothing has to be known"
    flip(folder(made, "ann_ct") / "proposals" / "c.0.0")
    assert repair(made, tmp_path / "r.json")[0] == 2
    assert "mass repair STORE --raw RAW" in capsys.readouterr().err
    assert repair(made, tmp_path / "r.json", "--raw", raw)[0] == 0
    assert store_bytes(made) == before
