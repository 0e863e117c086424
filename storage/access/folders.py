"""The folder of a committed scan: on disk, or as objects below a prefix. Files are read whole or by range.

On disk a replaced scan has another inode. On an object store the objects of a commit are never changed: a
scan made anew has another prefix (`storage.writing.object_commits`). Where objects were copied there by hand,
an object that is replaced while it is read has another ETag.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.access.cache import ReadCache
from storage.access.client import PART_BYTES, client_of
from storage.access.urls import StorePath, StoreUrl

_GAP_BYTES = 32 << 10
"""Parts of an object that lie closer than this are read by one request."""

_SMALL_BYTES = 256 << 10
"""Objects up to this size are read whole, by one request."""

Span = tuple[int, int]
"""First byte and number of bytes."""


class WrongSizeError(Exception):
    """A file has another size than it must have; the argument is the size that was found."""


class ReplacedError(Exception):
    """A file was replaced while it was being read."""


class OpenFile(Protocol):
    """A file that is read by range."""

    ahead: int
    """Number of spans that are read ahead at once; 0 where that gains nothing."""

    @property
    def identity(self) -> int | str:
        """Number or text that identifies this file; a file that replaces it has another one."""

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Read spans ahead, which `read` then returns."""

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file; fewer where it ends. Raises WrongSizeError or ReplacedError."""

    def forget(self, start: int, size: int) -> None:
        """Drop bytes from the cache, since they are damaged."""

    def close(self) -> None:
        """Close the file."""


class Folder(Protocol):
    """The folder of a scan."""

    def read(self, key: str) -> bytes:
        """Return a small file; raises FileNotFoundError."""

    def open(self, key: str, num_bytes: int) -> OpenFile:
        """Return a file of a known size for reading; raises FileNotFoundError or WrongSizeError."""

    def read_ahead(self, sizes: Mapping[str, int]) -> None:
        """Read small files ahead, where this saves time.

        Args:
            sizes: Bytes of files, by key.
        """

    def forget(self, key: str) -> None:
        """Drop a small file from the cache, since it is damaged."""

    def is_in_place(self) -> bool:
        """Return whether the folder is still the one that was opened."""


def folder_of(path: StorePath, version: str) -> Folder:
    """Return the folder of a scan.

    Args:
        path: Path or address of the folder.
        version: Digest of the scan; what is cached of it belongs to this version.

    Raises:
        FileNotFoundError: There is no such folder on disk.
    """
    if isinstance(path, StoreUrl):
        return ObjectFolder(path, version)
    return LocalFolder(path, path.stat().st_ino)


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk, as it was when it was opened."""

    path: Path
    inode: int

    def read(self, key: str) -> bytes:
        """Return a small file."""
        return (self.path / key).read_bytes()

    def open(self, key: str, num_bytes: int) -> LocalFile:
        """Return a file of a known size for reading."""
        handle = os.open(self.path / key, os.O_RDONLY)
        status = os.fstat(handle)
        if status.st_size != num_bytes:
            os.close(handle)
            raise WrongSizeError(status.st_size)
        return LocalFile(handle, status.st_ino)

    def read_ahead(self, sizes: Mapping[str, int]) -> None:
        """Do nothing: files on disk are read when they are needed."""

    def forget(self, key: str) -> None:
        """Do nothing: nothing is cached."""

    def is_in_place(self) -> bool:
        """Return whether the same folder still has this path; a replaced scan has another inode."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except FileNotFoundError:
            return False


class LocalFile:
    """An open file on disk."""

    ahead = 0

    def __init__(self, handle: int, inode: int) -> None:
        self._handle = handle
        self.identity = inode

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Do nothing."""

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._handle, size, start)

    def forget(self, start: int, size: int) -> None:
        """Do nothing: nothing is cached."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


class ObjectFolder:
    """The objects below a prefix. Holds no connection, so it can be pickled."""

    def __init__(self, url: StoreUrl, version: str) -> None:
        self._url = url
        self._version = version
        self._cache = ReadCache(url.cache) if url.cache else None
        self._ahead: dict[str, bytes] = {}
        self._etags: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": {}, "_etags": {}}

    def read(self, key: str) -> bytes:
        """Return a small object."""
        if key in self._ahead:
            return self._ahead.pop(key)
        name = self._cache_name(key, "whole")
        data = self._cache.get(name) if self._cache else None
        if data is None:
            data, _ = client_of(self._url).get((self._url / key).key)
            if self._cache:
                self._cache.put(name, data)
        return data

    def open(self, key: str, num_bytes: int) -> ObjectFile:
        """Return an object of a known size for reading; no request is made yet."""
        return ObjectFile(self, key, num_bytes)

    def read_ahead(self, sizes: Mapping[str, int]) -> None:
        """Read the small objects, several at once: one after the other, each would wait for the network."""

        def read(key: str) -> bytes | None:
            try:
                return self.read(key)
            except FileNotFoundError:
                return None  # the error is raised when the file is needed

        keys = [key for key, size in sizes.items() if size <= _SMALL_BYTES]
        found = zip(keys, client_of(self._url).each(read, keys), strict=True)
        self._ahead = {key: data for key, data in found if data is not None}

    def forget(self, key: str, what: str = "whole") -> None:
        """Drop bytes of an object from the cache, since they are damaged."""
        self._ahead.pop(key, None)
        if self._cache:
            self._cache.remove(self._cache_name(key, what))

    def is_in_place(self) -> bool:
        """Return True: objects of a commit stay as they are."""
        return True

    def cached(self, key: str, span: Span) -> bytes | None:
        """Return bytes of an object from the cache, without a request; None if they are not there."""
        return self._cache.get(self._cache_name(key, f"{span[0]}+{span[1]}")) if self._cache else None

    def keep(self, key: str, start: int, data: bytes) -> None:
        """Keep bytes of an object in the cache."""
        if self._cache:
            self._cache.put(self._cache_name(key, f"{start}+{len(data)}"), data)

    def fetch(self, key: str, start: int, size: int, num_bytes: int) -> bytes:
        """Return bytes of an object from the store; at most `PART_BYTES` are asked for at once."""
        parts = []
        for first in range(start, start + size, PART_BYTES):
            length = min(PART_BYTES, start + size - first)
            data, whole, stamp = client_of(self._url).get_range((self._url / key).key, first, length)
            if whole != num_bytes:
                raise WrongSizeError(whole)
            if self._etags.setdefault(key, stamp.etag or "") != (stamp.etag or ""):
                raise ReplacedError
            parts.append(data)
        return b"".join(parts)

    def at_once(self, key: str, spans: Sequence[Span], num_bytes: int) -> Iterator[bytes]:
        """Return spans of an object from the store, several requests at once."""
        client = client_of(self._url)
        return client.each(lambda span: self.fetch(key, *span, num_bytes), spans)

    def _cache_name(self, key: str, what: str) -> str:
        url = StoreUrl(self._url.scheme, self._url.bucket, self._url.key)
        return f"{url}/{key} {self._version} {what}"


class ObjectFile:
    """An object that is read by range."""

    ahead = 64

    def __init__(self, folder: ObjectFolder, key: str, num_bytes: int) -> None:
        self._folder = folder
        self._key = key
        self._num_bytes = num_bytes
        self._is_small = num_bytes <= _SMALL_BYTES
        self._whole: bytes | None = None
        self._spans: dict[Span, bytes] = {}

    @property
    def identity(self) -> str:
        """Key of the object; the folder itself notices a replaced object."""
        return self._key

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Read spans ahead, by few requests at once; they replace those read ahead before."""
        if self._is_small:
            return
        self._spans = {}
        missing = []
        for span in spans:
            data = self._folder.cached(self._key, span)
            if data is None:
                missing.append(span)
            else:
                self._spans[span] = data
        joined = join_spans(missing)
        wholes = self._folder.at_once(self._key, list(joined), self._num_bytes)
        for (first, _), members, whole in zip(joined, joined.values(), wholes, strict=True):
            for start, size in members:
                self._spans[start, size] = whole[start - first : start - first + size]
                self._folder.keep(self._key, start, self._spans[start, size])

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the object."""
        if self._is_small:
            return self._read_whole()[start : start + size]
        data = self._spans.pop((start, size), None)
        if data is None:
            self.prefetch([(start, size)])
            data = self._spans.pop((start, size))
        return data

    def _read_whole(self) -> bytes:
        if self._whole is None:
            data = self._folder.read(self._key)
            if len(data) != self._num_bytes:
                self._folder.forget(self._key)
                raise WrongSizeError(len(data))
            self._whole = data
        return self._whole

    def forget(self, start: int, size: int) -> None:
        """Drop bytes from the cache, since they are damaged."""
        self._whole = None
        self._folder.forget(self._key, "whole" if self._is_small else f"{start}+{size}")

    def close(self) -> None:
        """Drop the bytes that were read ahead."""
        self._spans, self._whole = {}, None


def join_spans(spans: Sequence[Span]) -> dict[Span, list[Span]]:
    """Join near spans; return the larger spans, each with the given ones inside it."""
    joined: dict[Span, list[Span]] = {}
    members: list[Span] = []
    first = end = 0
    for start, size in sorted(spans):
        if members and start - end <= _GAP_BYTES and max(end, start + size) - first <= PART_BYTES:
            members.append((start, size))
            end = max(end, start + size)
            continue
        if members:
            joined[first, end - first] = members
        members, first, end = [(start, size)], start, start + size
    if members:
        joined[first, end - first] = members
    return joined
