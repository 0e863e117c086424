"""A local cache of bytes that were read from an object store, for several processes at once.

*Writes* FOLDER/<aa>/<name>: sha256 of the payload, then the payload; `name` is a digest of the address and
version of the bytes. A file appears with all its bytes (written under another name, then renamed), and is
checked when read, so that a half-written or damaged file is read anew from the store. FOLDER/used holds the
bytes of all files together; it is locked (flock, on a local disk) while a process adds a file or removes old
ones.

The bound holds at all times: room is reserved before a file is written. When there is none, the files that
were used longest ago are removed, down to nine tenths of the bound. It is no error if bytes cannot be kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.access.urls import CacheSettings
from storage.errors import InvalidLocation

_DIGEST_BYTES = 32
_KEPT_FRACTION = 0.9
"""Part of the bound that is kept when old files are removed."""

_FRESH_SECONDS = 60.0
"""A file's time of use is written only when it is older than this."""

_DEAD_SECONDS = 3600.0
"""Age of a half-written file whose writer is taken for dead."""

_LOCK_SECONDS = 1.0
"""Longest wait for another process that adds or removes files; after it, bytes are not kept."""

_BLOCK_BYTES = 4096
"""A file takes whole blocks of the disk."""


@dataclass(frozen=True)
class ReadCache:
    """A bounded cache in a folder; holds no open file, so it can be pickled."""

    settings: CacheSettings

    def get(self, name: str) -> bytes | None:
        """Return the bytes under a name, if they are there and undamaged; else None."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            payload = data[_DIGEST_BYTES:]
            if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
                self.remove(name)
                return None
            if time.time() - path.stat().st_mtime > _FRESH_SECONDS:
                os.utime(path)
        except OSError:
            return None
        return payload

    def put(self, name: str, payload: bytes) -> None:
        """Keep bytes under a name, if there is room or can be made."""
        path = self._path(name)
        size = _on_disk(len(payload) + _DIGEST_BYTES)
        if size > self.settings.max_bytes // 4:
            return
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as used:
                if used is None or path.exists():
                    return
                self._reserve(used, size)
                temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")
                try:
                    temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
                    os.replace(temporary, path)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise

    def remove(self, name: str) -> None:
        """Remove the bytes under a name; the bytes in use are counted anew when room is made."""
        with suppress(OSError):
            self._path(name).unlink()

    def check(self) -> None:
        """Make the folder; raises InvalidLocation where that is impossible, or the bound is too small."""
        folder = self.settings.folder
        if self.settings.max_bytes < 1 << 20:
            raise InvalidLocation(
                f"{folder}: a cache needs at least 1 MB, got {self.settings.max_bytes} bytes"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise InvalidLocation(
                f"{folder}: cannot be used as a cache ({error.strerror}). Choose a folder on a local disk "
                "that can be written to"
            ) from error

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.settings.folder / digest[:2] / digest[2:]

    def _reserve(self, used: _Used, size: int) -> None:
        """Add to the bytes in use, after removing old files if need be."""
        limit = self.settings.max_bytes
        total = used.read()
        if total + size > limit:
            total = self._make_room(int(limit * _KEPT_FRACTION) - size)
        used.write(total + size)

    def _make_room(self, most: int) -> int:
        """Remove the files used longest ago until all take at most `most` bytes; return what they take."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= most:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield time of last use, bytes and path of every file; half-written ones of dead writers are old."""
        now = time.time()
        for folder in os.scandir(self.settings.folder):
            if not folder.is_dir():
                continue
            for file in os.scandir(folder.path):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    used = status.st_mtime
                    if file.name.endswith(".tmp"):
                        used = 0.0 if now - used > _DEAD_SECONDS else now + _DEAD_SECONDS
                    yield used, _on_disk(status.st_size), file.path

    @contextmanager
    def _locked(self) -> Iterator[_Used | None]:
        """Hold the lock of the cache inside the block; None if another process keeps it for long."""
        handle = os.open(self.settings.folder / "used", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield _Used(handle, self) if _lock(handle) else None
        finally:
            os.close(handle)


@dataclass(frozen=True)
class _Used:
    """The bytes that all files of a cache take, in its locked file."""

    handle: int
    cache: ReadCache

    def read(self) -> int:
        """Return the bytes; counted anew where the file is new or damaged."""
        text = os.pread(self.handle, 32, 0)
        return int(text) if text.isdigit() else sum(size for _, size, _ in self.cache._files())

    def write(self, size: int) -> None:
        """Write the bytes."""
        os.pwrite(self.handle, str(size).zfill(20).encode(), 0)


def _lock(handle: int) -> bool:
    """Lock a file, waiting for a moment; return whether it is locked."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        else:
            return True


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def check_cache(settings: CacheSettings) -> None:
    """Make the folder of a cache; raises InvalidLocation where that is impossible."""
    ReadCache(settings).check()
