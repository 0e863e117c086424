"""What a disk refuses ends a command with one sentence that says what to do, and names no patient."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import commands.status
from commands.disk_errors import explain_disk_error
from commands.main import main


def error(number: int, path: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), None if path is None else str(path))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "who may write"),
        (errno.EROFS, "who may write"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "the disk or the network"),
        (errno.ESTALE, "the disk or the network"),
    ],
)
def test_every_kind_of_error_has_its_remedy(number: int, remedy: str, tmp_path: Path) -> None:
    told = explain_disk_error(error(number, tmp_path / "store" / "index.jsonl"), [tmp_path / "store", 3])
    assert told.startswith(f"{tmp_path}/store/index.jsonl: {os.strerror(number)}. ")
    assert remedy in told


def test_a_path_that_nobody_gave_is_not_named(tmp_path: Path) -> None:
    told = explain_disk_error(error(errno.EIO, tmp_path / "DOE_JOHN" / "1.dcm"), [tmp_path / "store"])
    assert told.startswith("Input/output error. ")
    assert "DOE" not in told
    beside = explain_disk_error(error(errno.EIO, tmp_path / "store2"), [tmp_path / "store"])
    assert beside.startswith("Input/output error. ")


def test_a_path_of_a_list_that_was_given_is_named_however_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [Path("scans") / "a.nii.gz", tmp_path / "b.nii.gz"]
    for path in (given[0], given[0].absolute(), given[1]):
        told = explain_disk_error(error(errno.EACCES, path), [tmp_path / "store", given, None])
        assert told.startswith(f"{path}: Permission denied. ")
    assert explain_disk_error(error(errno.EACCES, tmp_path / "c"), [given]).startswith("Permission denied. ")


def test_a_missing_file_is_explained_where_it_was_named_and_is_a_bug_elsewhere(tmp_path: Path) -> None:
    gone = error(errno.ENOENT, tmp_path / "out" / "x.json")
    assert "Correct the path" in explain_disk_error(gone, [tmp_path / "out" / "x.json"])
    assert explain_disk_error(gone, [tmp_path / "store"]) == ""
    assert explain_disk_error(OSError("no number"), [tmp_path]) == ""


def test_a_command_ends_with_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: Any) -> None:
        raise error(errno.EIO, tmp_path / "index.jsonl")

    monkeypatch.setattr(commands.status, "run_status", broken)
    assert main(["status", str(tmp_path)]) == 2
    assert f"mass: {tmp_path}/index.jsonl: Input/output error. Check the disk" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere")

    monkeypatch.setattr(commands.status, "run_status", broken)
    with pytest.raises(FileNotFoundError):
        main(["status", str(tmp_path)])
