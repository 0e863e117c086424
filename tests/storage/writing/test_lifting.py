"""Stores of format version 1 become version 2, and every mask stays what it was."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage import (
    CorruptScan,
    FormatVersionError,
    finish,
    lift_scan,
    open_store,
    scans_to_lift,
    sweep,
    verify,
)
from tests.storage.drawn_record import store_bytes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1" / "store"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "store"))


def lift_all(store: Path) -> None:
    open_store(store).raise_version()
    for scan_id in scans_to_lift(open_store(store)):
        assert lift_scan(store, scan_id)
    finish(store)


def test_every_mask_and_voxel_is_the_same_after_lifting(old: Path) -> None:
    lift_all(old)
    assert list(verify(old)) == []
    for scan_id in ("case-1", "case-2"):
        before, after = open_store(FIXTURE).scan(scan_id), open_store(old).scan(scan_id)
        assert (before.entry.format_version, after.entry.format_version) == (1, 2)
        everything = range(len(before.proposals))
        np.testing.assert_array_equal(after.masks(everything), before.masks(everything))
        np.testing.assert_array_equal(after.proposals.table[:, 3:], before.proposals.table[:, 3:])
        np.testing.assert_array_equal(after.proposals.scores, before.proposals.scores)
        np.testing.assert_array_equal(after.level_voxels, before.level_voxels)
        for level in (0, after.level_for((4, 9, 16))):
            np.testing.assert_array_equal(after.image_codes(level=level), before.image_codes(level=level))
            np.testing.assert_array_equal(
                after.labels("organs", level=level), before.labels("organs", level=level)
            )
            for layer in range(2):
                np.testing.assert_array_equal(
                    after.atoms(layer, level=level), before.atoms(layer, level=level)
                )
        assert after.digests == before.digests
        assert after.attributes == before.attributes


def test_a_store_of_both_versions_reads_and_is_whole(old: Path) -> None:
    with pytest.raises(FormatVersionError, match="mass lift"):
        lift_scan(old, "case-1")
    open_store(old).raise_version()
    assert lift_scan(old, "case-1")
    store = open_store(old)
    assert store.info.format_version == 2
    assert [entry.format_version for entry in store.entries.values()] == [2, 1]
    assert list(verify(old)) == []
    assert sweep(old) == 0
    assert store.scan("case-2").masks([0, 6]).shape == (2, 8, 25, 41)
    assert scans_to_lift(store) == ("case-2",)
    assert not lift_scan(old, "case-1")


def test_lifting_a_damaged_scan_leaves_it_as_it_is(old: Path) -> None:
    open_store(old).raise_version()
    victim = open_store(old).scan("case-1").path / "scores/c.0"
    victim.write_bytes(b"")
    before = store_bytes(old)
    with pytest.raises(CorruptScan, match="case-1"):
        lift_scan(old, "case-1")
    assert store_bytes(old) == before


@pytest.mark.parametrize(
    "point", ["array:7", "commit:1", "rename:1", "rename:2", "append:1", "torn:1", "unlink:2"]
)
def test_a_lift_killed_at_this_point_goes_on_to_the_same_store(old: Path, tmp_path: Path, point: str) -> None:
    undisturbed = Path(shutil.copytree(old, tmp_path / "undisturbed"))
    lift_all(undisturbed)
    open_store(old).raise_version()
    code = (
        "import sys; from pathlib import Path; from tests.storage.writer import plan_death; "
        "from storage import lift_scan, open_store, scans_to_lift; import storage.writing.scan_writer; "
        "store = Path(sys.argv[1]); "
        "plan_death(*sys.argv[2].split(':')); "
        "[lift_scan(store, scan_id) for scan_id in scans_to_lift(open_store(store))]"
    )
    done = subprocess.run([sys.executable, "-c", code, str(old), point], check=False)
    assert done.returncode == -signal.SIGKILL
    sweep(old)
    assert list(verify(old)) == []
    assert open_store(old).scan_ids == ("case-1", "case-2")
    lift_all(old)
    assert store_bytes(old) == store_bytes(undisturbed)
