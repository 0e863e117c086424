"""`mass segment` on a disk that is full or may not be written to, and without memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from commands.segmenting.targets import _failure
from pipeline.discovery import Source

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
