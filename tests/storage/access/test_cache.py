"""The cache: bounded, the oldest out first, never a damaged byte, several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage import CacheSettings, InvalidLocation, check_cache
from storage.access import ReadCache
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[3]
KB = 1 << 10


def cache_in(folder: Path, max_bytes: int = 1 << 20) -> ReadCache:
    cache = ReadCache(CacheSettings(folder, max_bytes))
    cache.check()
    return cache


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "used"]


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of(folder))


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    assert cache.get("a") is None
    cache.put("a", b"some bytes")
    cache.put("b", b"")
    assert (cache.get("a"), cache.get("b")) == (b"some bytes", b"")
    cache.remove("a")
    cache.remove("a")
    assert cache.get("a") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_as_good_as_none(damage: str, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("a", bytes(1000))
    (path,) = files_of(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"flip": data[:500] + b"x" + data[501:], "cut": data[:500], "empty": b""}[damage])
    assert cache.get("a") is None
    cache.put("a", bytes(1000))
    assert cache.get("a") == bytes(1000)


def test_the_bound_holds_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    for number in range(15):
        cache.put(str(number), bytes(60 * KB))
        for path in files_of(tmp_path):  # a minute passes
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 100 * 10**9))
    assert cache.get("0") is not None  # used again: now the newest
    for number in range(15, 25):
        cache.put(str(number), bytes(60 * KB))
        assert bytes_of(tmp_path) <= 1 << 20
    assert cache.get("0") is not None
    assert cache.get("1") is None
    assert cache.get("24") is not None


def test_bytes_too_large_for_the_cache_are_not_kept(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("a", bytes(300 * KB))
    assert cache.get("a") is None


def test_the_bound_holds_after_a_count_that_a_crash_has_damaged(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    for number in range(12):
        cache.put(str(number), bytes(60 * KB))
    (tmp_path / "used").write_bytes(b"")
    for number in range(12, 30):
        cache.put(str(number), bytes(60 * KB))
        assert bytes_of(tmp_path) <= 1 << 20


def test_half_written_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    (tmp_path / "aa").mkdir()
    old, new = tmp_path / "aa" / "old.tmp", tmp_path / "aa" / "new.tmp"
    for path in (old, new):
        path.write_bytes(bytes(60 * KB))
    os.utime(old, (1, 1))
    for number in range(30):
        cache.put(str(number), bytes(60 * KB))
    assert not old.exists()
    assert new.exists()


def test_a_disk_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    (tmp_path / "cache" / "used").unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_bytes(b"a file")
    cache.put("a", b"x")
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidLocation, match="cannot be used as a cache"):
        check_cache(CacheSettings(tmp_path / "file", 1 << 30))
    with pytest.raises(InvalidLocation, match="at least 1 MB"):
        check_cache(CacheSettings(tmp_path / "cache", 1000))


WORKER = """
import sys
from pathlib import Path
from storage import CacheSettings
from storage.access import ReadCache


folder, step = Path(sys.argv[1]), int(sys.argv[2])
cache = ReadCache(CacheSettings(folder, 1 << 20))
for turn in range(200):
    name = (turn * step) % 60
    expected = bytes([name]) * (20_000 + name)
    found = cache.get(str(name))
    assert found in (None, expected), name
    if found is None:
        cache.put(str(name), expected)
"""


def test_several_processes_share_a_cache_without_half_a_read_and_within_the_bound(tmp_path: Path) -> None:
    cache_in(tmp_path / "cache")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "cache"), step], cwd=ROOT)
        for step in ("7", "11", "13")
    ]
    assert [worker.wait(timeout=PATIENT_SECONDS) for worker in workers] == [0, 0, 0]
    assert 0 < bytes_of(tmp_path / "cache") <= 1 << 20
