"""Errors of the disk, injected into the calls that reach a folder: EIO, EACCES, ENOSPC, once or from then on.

Calls of Python's `os`, `io` and `fcntl` on paths and handles inside the folder are counted, and one of them
fails. What libraries do in C (HDF5, PyTorch's own writers) is not reached. A disk that is really full is a
small tmpfs (`small_disk`), or a limit on the size of a file where nothing can be mounted.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = (errno.EIO, errno.EACCES, errno.ENOSPC)

_BY_PATH = (
    "open",
    "mkdir",
    "rename",
    "replace",
    "unlink",
    "remove",
    "rmdir",
    "listdir",
    "scandir",
    "truncate",
)
_BY_HANDLE = ("write", "pwrite", "read", "pread", "fsync", "ftruncate")

_CANNOT_BE_FULL = ("unlink", "remove", "rmdir", "listdir", "scandir", "read", "pread", "flock", "ftruncate")
"""Calls that need no space: a full disk does not fail them."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A failure to come."""

    call: int
    """Number of the call that fails, from 1; 0 for none, to count them."""
    error: int
    """errno."""
    lasting: bool
    """Whether all later calls fail too, as on a disk that is gone."""

    def __str__(self) -> str:
        until = " and all later ones" if self.lasting else ""
        return f"{errno.errorcode[self.error]} at call {self.call}{until}"


class Injector:
    """Counts the calls inside a folder, and fails one."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self._inside = str(folder.resolve())
        self._fault = fault
        self._lock = threading.Lock()
        self.calls = 0
        self.failed = 0
        """Calls that were failed."""

    def reach(self, name: str, where: Any, dir_fd: int | None = None) -> None:
        """Take note of a call; raise the OSError if it is its turn."""
        if not self._is_inside(where, dir_fd):
            return
        fault = self._fault
        if fault.error == errno.ENOSPC and name in _CANNOT_BE_FULL:
            return
        with self._lock:
            self.calls += 1
            mine = self.calls == fault.call or (fault.lasting and 0 < fault.call < self.calls)
            self.failed += mine
        if mine:
            raise OSError(fault.error, os.strerror(fault.error), None if isinstance(where, int) else where)

    def _is_inside(self, where: Any, dir_fd: int | None) -> bool:
        with suppress(OSError, TypeError, ValueError):
            if isinstance(where, int):
                path = _readlink(f"/proc/self/fd/{where}")
            elif dir_fd is not None:
                path = os.path.join(_readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(where))
            else:
                path = os.path.abspath(os.fsdecode(where))
            return path == self._inside or path.startswith(self._inside + "/")
        return False


_readlink = os.readlink


@contextmanager
def injected(folder: Path, fault: Fault) -> Iterator[Injector]:
    """Fail a call inside the block; for a process of one's own, as all threads of it are reached."""
    injector = Injector(folder, fault)
    kept: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, make(getattr(owner, name)))

    for name in _BY_PATH:
        put(os, name, lambda real, name=name: _by_path(injector, name, real))
    for name in _BY_HANDLE:
        put(os, name, lambda real, name=name: _by_handle(injector, name, real))
    put(fcntl, "flock", lambda real: _by_handle(injector, "flock", real))
    put(io, "open", lambda real: _opening(injector, real))
    put(builtins, "open", lambda real: _opening(injector, real))
    try:
        yield injector
    finally:
        for owner, name, real in reversed(kept):
            setattr(owner, name, real)


def _by_path(injector: Injector, name: str, real: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        where = arguments[0] if arguments else options.get("path", ".")
        injector.reach(name, where, options.get("dir_fd") or options.get("src_dir_fd"))
        return real(*arguments, **options)

    return call


def _by_handle(injector: Injector, name: str, real: Any) -> Any:
    def call(handle: Any, *arguments: Any) -> Any:
        number = handle if isinstance(handle, int) else handle.fileno()
        injector.reach(name, number)
        return real(handle, *arguments)

    return call


def _opening(injector: Injector, real: Any) -> Any:
    def call(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, int) or not injector._is_inside(file, None):
            return real(file, *arguments, **options)
        injector.reach("open", file)
        return _File(real(file, *arguments, **options), injector, file)

    return call


class _File:
    """A file whose reads, writes and flushes are calls that may fail."""

    def __init__(self, file: Any, injector: Injector, path: Any) -> None:
        self._file, self._injector, self._path = file, injector, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def write(self, data: Any) -> Any:
        self._injector.reach("write", self._path)
        return self._file.write(data)

    def read(self, *size: Any) -> Any:
        self._injector.reach("read", self._path)
        return self._file.read(*size)

    def flush(self) -> None:
        self._injector.reach("write", self._path)
        self._file.flush()


# ------------------------------------------------------------ disks that are full


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return made.returncode == 0


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Callable[[], None]]:
    """Mount a tmpfs of this size on a folder; what is yielded makes it large enough."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder], check=True)
    try:
        yield lambda: resize(folder, 2 << 20)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, kibibytes: int) -> None:
    """Give a small disk another size; it cannot be smaller than what it holds."""
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", folder], check=True)


def limit_file_size(num_bytes: int) -> None:
    """Let no file of this process grow beyond this: a write that would is refused, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
