"""`mass segment` on a disk that is full or may not be written to, and without memory."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import segment as segmenting
from commands.main import main
from commands.segmenting import targets
from commands.segmenting.targets import _failure
from pipeline.discovery import Source
from tests.commands.test_segment import draw, files_in, files_of
from tests.short_disk import files_of_at_most

SOURCE = Source(scan_id="a", format="file", files=(Path("a.nii"),), location="a.nii")
NO_MEMORY = "there is not enough memory for this scan"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("ITK ERROR: Image: Failed to allocate memory for image."),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=str,
)
def test_too_little_memory_is_told_by_the_kind_of_the_error(error: Exception) -> None:
    assert _failure(SOURCE, error).reason == NO_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/mnt/memory_study/.a/a_seg.nii"),
        OSError(errno.EIO, "/mnt/memory_study is gone"),
        RuntimeError("ITK ERROR: cannot write /mnt/memory_study/a_seg.nii"),
        ValueError("memory"),
    ],
    ids=str,
)
def test_a_path_that_speaks_of_memory_is_no_lack_of_it(error: Exception) -> None:
    assert _failure(SOURCE, error).reason != NO_MEMORY


def test_the_file_that_cannot_be_written_is_named_without_its_folder() -> None:
    failure = _failure(SOURCE, OSError(errno.EIO, "Input/output error", "/mnt/x/.a.mass.part/a_seg.nii"))
    assert failure.reason == "its result cannot be written (a_seg.nii: Input/output error)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reference with its mask, and three targets."""
    draw().write(tmp_path / "ref.nii.gz")
    draw().write_labels(tmp_path / "mask.nii.gz")
    for seed, name in enumerate("abc", start=1):
        draw(seed=seed).write(tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path


def segmented(folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit code and its document."""
    shown = ["--reference-image", folder / "ref.nii.gz", "--reference-mask", folder / "mask.nii.gz"]
    rest = [folder / "scans", "--out", folder / "out", "--modality", "ct", "--spacing", "5"]
    told = folder / "told.json"
    code = main([*map(str, ["segment", "none", *shown, *rest, "--json", told]), *more])
    return code, json.loads(told.read_text())


def test_a_folder_that_takes_no_byte_is_told_before_a_target_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segmenting, "segment_one", lambda *_: pytest.fail("a target was read"))
    with files_of_at_most(1000):
        code, told = segmented(folder)
    assert code == 2
    assert f"--out {folder}/out: nothing can be written there (File too large). Make room" in told["error"]
    assert told["error"] in capsys.readouterr().err
    assert files_in(folder / "out") == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_the_work_and_the_same_command_goes_on(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, seen = targets.draw_cases, []

    def full(cases: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise OSError(number, os.strerror(number))
        return whole(cases)

    monkeypatch.setattr(targets, "draw_cases", full)
    code, told = segmented(folder)
    assert code == 1
    assert len(seen) == 2
    assert [target["scan_id"] for target in told["targets"]] == ["a"]
    assert [failure["scan_id"] for failure in told["failed"]] == ["b"]
    assert os.strerror(number) in told["failed"][0]["reason"]
    assert told["not_done"] == ["c"]
    assert not told["interrupted"]
    out = capsys.readouterr().out
    assert "not done (1), because nothing more can be written into" in out
    assert "the same command goes on" in out
    assert files_in(folder / "out") == files_of("a_seg.nii.gz")
    code, told = segmented(folder)
    assert code == 0
    assert [target["kept"] for target in told["targets"]] == [True, False, False]
    assert told["not_done"] == []
    assert files_in(folder / "out") == files_of("a_seg.nii.gz", "b_seg.nii.gz", "c_seg.nii.gz")


def test_another_error_of_the_disk_stops_no_other_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(cases: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(targets, "draw_cases", broken)
    code, told = segmented(folder)
    assert code == 1
    assert [failure["scan_id"] for failure in told["failed"]] == ["a", "b", "c"]
    assert told["not_done"] == []
