"""File operations that leave either the old or the new state after a crash, a full disk or a second writer.

Locks are `flock`: the kernel releases them when their holder dies. On NFS they need Linux 2.6.12 or later, on
Lustre the mount option `flock`; `storage.check_locks` tries them.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from storage.errors import StoreFull, StoreLocksMissing
from storage.layout import LOCK_FILE, TEMPORARY_FOLDER

# EFBIG: a limit on the size of one file (ulimit -f) is treated like a quota.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_REMOVALS, _REMOVAL_PAUSE_SECONDS = 100, 0.02
"""How often a folder is removed whose files other threads still change."""

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


@contextmanager
def full_disk_named(store: Path, doing: str) -> Iterator[None]:
    """Turn "no space left" inside the block into StoreFull with the store's path and the remedy.

    Args:
        store: Folder of the store.
        doing: What is done inside the block, for the message.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreFull) or error.errno not in _FULL:
            raise
        raise StoreFull(
            f"{doing}: {os.strerror(error.errno)} on the file system of {store}. Nothing half-written was "
            "left. Free space or raise the quota, then run the same command again: finished scans are kept"
        ) from error


def flock(handle: int, operation: int, where: Path) -> None:
    """Lock an open file, as `fcntl.flock` does.

    Raises:
        BlockingIOError: Another handle has the lock, and the operation does not wait.
        StoreLocksMissing: The file system has no locks.
    """
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreLocksMissing(
            f"{where}: its file system has no locks ({os.strerror(error.errno)}), so that two writers could "
            "damage the store. Mount it with locks (NFS: a running lock service; Lustre: -o flock), or "
            "choose another folder"
        ) from error


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder that is no store while the block runs, where its file system has locks.

    Args:
        folder: The folder.
        wait: Whether to wait until another process gives it back.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in {*_NO_LOCKS, errno.EBADF}:  # NFS: a folder cannot be opened for writing
                raise
        yield
    finally:
        os.close(handle)


@contextmanager
def reader_lock(store: Path) -> Iterator[None]:
    """Keep writers from publishing inside the block; needs no write permission, and no existing lock file."""
    try:
        handle = os.open(store / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        flock(handle, fcntl.LOCK_SH, store)
        yield
    finally:
        os.close(handle)


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Hold the store's lock inside the block, for renames and index lines. Not reentrant."""
    handle = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        flock(handle, fcntl.LOCK_EX, store)
        yield
    finally:
        os.close(handle)


def take_lock(path: Path, *, create: bool) -> int | None:
    """Return an open, locked handle on `path`, or None if another running process holds the lock."""
    handle = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
    try:
        flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk, so that they survive a power failure."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Flush every file and name under `root` to disk, files first, so that they survive a power failure."""
    for folder, _, names in os.walk(root, topdown=False, onerror=raise_unless_gone):
        for name in names:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(folder))


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush its bytes to disk (its name is flushed by `sync_folder`)."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(store: Path, name: str, data: bytes) -> None:
    """Replace STORE/name (a path in it) by `data` in one step. The caller holds the store's lock."""
    folder = store / TEMPORARY_FOLDER
    folder.mkdir(exist_ok=True)
    temporary = folder / Path(name).name
    try:
        temporary.unlink(missing_ok=True)
        write_file(temporary, data)
        os.replace(temporary, store / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        remove_if_empty(folder)
    sync_folder((store / name).parent)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, sync it to disk, and rename it to `path`.

    Args:
        path: The file to create or replace; its folder is created where it does not exist.
        write: Called with the open binary file; writes the content.

    Raises:
        OSError: The disk is full or failed, even if `write` raises another error for it, as `torch.save`
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
        with suppress(OSError):  # an error here must not hide the first one
            temporary.unlink(missing_ok=True)
        if raw.failure is not None and error is not raw.failure:
            raise raw.failure from error
        raise
    sync_folder(path.parent)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector inside the block, which creates very many objects and no cycles.

    Its repeated collections would take a third of the time of reading 100,000 lines.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def remove_if_empty(folder: Path) -> None:
    """Remove `folder` if it is empty."""
    with suppress(OSError):
        folder.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with its contents; a missing path is not an error.

    When a write of Zarr fails (a full disk), its other threads may still finish theirs. So if a file is gone
    before it is removed, or a new one is there afterwards, the folder is listed again.
    """
    for tries_left in reversed(range(_REMOVALS)):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except OSError as error:
            if not tries_left or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            time.sleep(_REMOVAL_PAUSE_SECONDS)


def checksum(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its sha256 (hex)."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def raise_unless_gone(error: OSError) -> None:
    """Raise an error that os.walk met while listing a folder, unless the folder is gone.

    By default os.walk skips such a folder with its contents. Another process may have removed a folder, so a
    missing one is no error.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def paths_in(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted; none if it is gone, or no folder.

    Not Path.glob: that takes a folder without permission for an empty one.

    Raises:
        OSError: The folder cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_files(root: Path) -> list[str]:
    """Return the keys (relative paths, / between parts) of all files under `root`, sorted.

    Raises:
        OSError: A folder cannot be listed.
    """
    keys = []
    for folder, _, names in os.walk(root, onerror=raise_unless_gone):
        keys += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(keys)


class _NotingFile(io.FileIO):
    """A file that remembers the first error of writing."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
