"""A file is the old one or the new one, and what the disk says reaches the user."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from storage import write_atomically
from storage.files import remove_tree


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond this, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    for data in (b"one", b"another"):
        write_atomically(path, lambda file, data=data: file.write(data))
        assert path.read_bytes() == data
        assert os.listdir(path.parent) == ["a.bin"]


def test_a_full_disk_is_told_as_such_also_by_torch_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    path.write_bytes(b"old")
    state = {"weights": torch.zeros(100_000)}
    with largest_file(50_000), pytest.raises(OSError, match="File too large") as caught:
        write_atomically(path, lambda file: torch.save(state, file))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["step.pt"]


def test_an_error_of_the_writer_stays_what_it_is(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a", fail)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_gone_is_told_though_nothing_can_be_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", gone)
    monkeypatch.setattr(os, "unlink", lambda *_: gone() or pytest.fail("not reached"))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "a", lambda file: file.write(b"x"))


def test_a_folder_is_removed_whose_files_other_threads_take_away_or_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scan"
    (folder / "image").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / "image" / name).touch()
    unlink, rmdir, pending = os.unlink, os.rmdir, ["gone", "added"]

    def taken_away(*args: object, **options: object) -> None:
        unlink(*args, **options)  # type: ignore[arg-type]
        if "gone" in pending:
            pending.remove("gone")
            raise FileNotFoundError(errno.ENOENT, "gone")

    def added(*args: object, **options: object) -> None:
        if "added" in pending:
            pending.remove("added")
            (folder / "image" / "c").touch()
        rmdir(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", taken_away)
    monkeypatch.setattr(os, "rmdir", added)
    remove_tree(folder)
    assert (os.listdir(tmp_path), pending) == ([], [])


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO])
def test_a_folder_that_cannot_be_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    tries = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError(code, os.strerror(code))

    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "a").touch()
    monkeypatch.setattr(os, "unlink", fail)
    monkeypatch.setattr("storage.files._REMOVAL_PAUSE_SECONDS", 0)
    with pytest.raises(OSError, match=os.strerror(code)):
        remove_tree(tmp_path / "scan")
    assert (len(tries) > 1) == (code == errno.ENOENT)
