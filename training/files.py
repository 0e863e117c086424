"""Atomic writing of files: after a crash either the old or the new file is there, complete."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, sync it to disk, and rename it to `path`.

    Args:
        path: The file to create or replace; its folder is created where it does not exist.
        write: Called with the open binary file; writes the content.

    Raises:
        OSError: The disk is full, or failed; also where `write` says something else of it, as `torch.save`
            does. The old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    raw = _NotingFile(temporary, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # a disk that is gone does not hide why it failed
            temporary.unlink(missing_ok=True)
        if raw.failure is not None and error is not raw.failure:
            raise raw.failure from error
        raise
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _NotingFile(io.FileIO):
    """A file that remembers the first error of writing."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
