"""Addresses of stores: a path on disk, or a URL of an object store. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from storage.errors import InvalidLocation

SCHEMES: Final = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
"""Object stores by the scheme of their URLs."""

# pathlib makes s3:/bucket of s3://bucket.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*)", re.DOTALL)


@dataclass(frozen=True)
class CacheSettings:
    """A local cache of what is read from an object store."""

    folder: Path
    """Folder on a local disk; made where there is none."""
    max_bytes: int
    """Most bytes of its files together."""


@dataclass(frozen=True)
class StoreUrl:
    """Address of a store, or of something in it, on an object store. Holds no credentials."""

    scheme: str
    """`s3`, `gs` or `az`."""
    bucket: str
    """Bucket; for `az` the container."""
    key: str = ""
    """Path inside the bucket, without / at its ends; empty for the bucket itself."""
    cache: CacheSettings | None = None
    """Cache of what readers read; None for no cache."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, part: str) -> StoreUrl:
        """Return the address of something below this."""
        key = f"{self.key}/{part}" if self.key else part
        return StoreUrl(self.scheme, self.bucket, key, self.cache)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.key.rsplit("/", 1)[-1] or self.bucket


StorePath: TypeAlias = Path | StoreUrl
"""Path or address of a store."""


def parse_store_path(value: str | Path | StoreUrl) -> StorePath:
    """Return the location of a store: a path as it was given, or the address in a URL.

    Args:
        value: A path, or a URL with the scheme s3, gs, az or file.

    Raises:
        InvalidLocation: The URL is not that of a store.
    """
    if isinstance(value, StoreUrl):
        return value
    found = _URL.fullmatch(str(value))
    if found is None:
        return Path(value)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return _local_path(str(value))
    if scheme not in SCHEMES:
        raise InvalidLocation(
            f"{scheme}://...: no store can be there. A store is a folder, or at a URL with s3://, gs://, "
            "az:// or file://"
        )
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise InvalidLocation(
            f"{scheme}://...@...: a URL must not hold credentials, since it is printed and stored. Set them "
            "in the environment (docs/object-stores.md)"
        )
    parts = [part for part in key.split("/") if part]
    if not bucket or any(part in (".", "..") for part in parts) or re.search(r"[\s?#%]", rest):
        raise InvalidLocation(
            f"{scheme}://{rest}: not an address of a store. It must be {scheme}://BUCKET/NAME, without "
            "`.`, `..`, spaces, `?`, `#` and `%`"
        )
    return StoreUrl(scheme, bucket, "/".join(parts))


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidLocation(f"{url}: not a path on this machine. It must be file:///FOLDER")
    return Path(unquote(parts.path))


def absolute_store_path(value: str | Path | StoreUrl) -> StorePath:
    """Return the location of a store, absolute, for a process in another working folder."""
    path = parse_store_path(value)
    return path.absolute() if isinstance(path, Path) else path


def store_name(path: StorePath) -> str:
    """Return the name of a store: that of its folder, or the last part of its URL."""
    return path.name if isinstance(path, StoreUrl) else path.resolve().name


def with_cache(path: StorePath, cache: CacheSettings | None) -> StorePath:
    """Return the location of a store, to be read through a cache; a store on disk needs none."""
    if isinstance(path, StoreUrl):
        return StoreUrl(path.scheme, path.bucket, path.key, cache)
    return path
