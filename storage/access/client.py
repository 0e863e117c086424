"""Requests to an object store, tried again where they may succeed; the only module that knows obstore.

Credentials and endpoint come from the usual environment variables (AWS_..., GOOGLE_..., AZURE_...), which
obstore reads itself. They are never kept here, and no message holds what a server answers beyond its error
code, since some servers repeat the key's name.

A request is tried again after an error of the server (HTTP 5xx, 429, 408), a cut connection or a timeout. An
answer that ends early is an error, so bytes are returned completely or not at all.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from storage.access.urls import StoreUrl
from storage.errors import LibraryMissing, StoreDenied, StoreFull, StoreUnreachable

T = TypeVar("T")
S = TypeVar("S")

TIMEOUT_VARIABLE: Final = "MASS_OBJECT_TIMEOUT_SECONDS"
TRIES_VARIABLE: Final = "MASS_OBJECT_TRIES"

_TIMEOUT_SECONDS = 30
"""Most seconds of one request, with its answer; a part of an object has at most `PART_BYTES`."""

_TRIES = 8
"""Most tries of a request: with the waits between them, about a minute beside the timeouts."""

_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.2, 20.0

PART_BYTES: Final = 8 << 20
"""Most bytes that one request reads."""

_AT_ONCE = 16
"""Most requests of one process at the same time."""

_PAGE_OBJECTS = 1000
"""Objects of one answer to a listing, as the services limit it."""

_FULL_CODES = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "AccountIsDisabled"}

_METADATA_SERVER = "169.254.169.254"
"""Server that gives credentials to cloud machines; used only if the environment has none."""

_HTTP_STATUS = re.compile(r"status code: (\d{3})")
_ERROR_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


class ObjectConflictError(Exception):
    """An object is not in the state that a conditional put requires."""


@dataclass(frozen=True)
class Stamp:
    """Version of an object, for conditional puts."""

    etag: str | None
    generation: str | None


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a listing."""

    key: str
    """Key relative to the address that was listed."""
    size: int
    modified: datetime


class ObjectClient:
    """Requests of one bucket. Keys are relative to the bucket; safe to use from any thread."""

    def __init__(self, scheme: str, bucket: str) -> None:
        try:
            import obstore.exceptions
            import obstore.store
        except ImportError as error:
            raise LibraryMissing(
                f"{scheme}://{bucket}: stores at URLs need the library obstore, which is not installed. "
                "Install it: pip install obstore (or mass3d with its extra, [object-stores])"
            ) from error
        self._obstore = obstore
        self._name = f"{scheme}://{bucket}"
        self._tries = max(1, int(os.environ.get(TRIES_VARIABLE, _TRIES)))
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="objects")
        timeout = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT_SECONDS))
        self._store = obstore.store.from_url(
            self._name,
            client_options={
                "timeout": f"{float(timeout) * 1000:.0f}ms",
                "connect_timeout": "5s",
                "allow_http": _is_plain_http(scheme),
            },
            retry_config={"max_retries": 0},
            **_settings(scheme),
        )

    def get(self, key: str) -> tuple[bytes, Stamp]:
        """Return a whole object and its version; raises FileNotFoundError where there is none."""

        def call() -> tuple[bytes, Stamp]:
            answer = self._obstore.get(self._store, key)
            data = bytes(answer.bytes())
            if len(data) != answer.meta["size"]:
                raise _ShortAnswerError
            return data, _stamp(answer.meta)

        return self._tried("reading", key, call)

    def get_range(self, key: str, start: int, size: int) -> tuple[bytes, int, Stamp]:
        """Return `size` bytes (> 0) from `start`, the size of the whole object, and its version.

        The bytes are fewer only where the object ends; raises FileNotFoundError where there is none.
        """

        def call() -> tuple[bytes, int, Stamp]:
            answer = self._obstore.get(self._store, key, options={"range": (start, start + size)})
            data, whole = bytes(answer.bytes()), int(answer.meta["size"])
            if len(data) != min(size, max(0, whole - start)):
                raise _ShortAnswerError
            return data, whole, _stamp(answer.meta)

        return self._tried("reading", key, call)

    def modified(self, key: str) -> datetime:
        """Return when an object was written, by the clock of the service; raises FileNotFoundError."""

        def call() -> datetime:
            modified: datetime = self._obstore.head(self._store, key)["last_modified"]
            return modified

        return self._tried("reading", key, call)

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object, in place of any that is there; a file is not read into memory."""
        self._tried("writing", key, lambda: self._obstore.put(self._store, key, data))

    def put_if(self, key: str, data: bytes, *, unchanged: Stamp | None) -> None:
        """Write an object only if it is still in a known state.

        Args:
            key: The object.
            data: Its new bytes.
            unchanged: The version that it must still have; None if there must be none.

        Raises:
            ObjectConflictError: It has another version.
        """
        again = False

        def call() -> None:
            nonlocal again
            before, again = again, True
            try:
                self._obstore.put(self._store, key, data, mode=_mode(unchanged), use_multipart=False)
            except (self._exceptions.AlreadyExistsError, self._exceptions.PreconditionError) as error:
                # An earlier try may have written it although its answer was lost.
                if not (before and self._holds(key, data)):
                    raise ObjectConflictError(key) from error

        self._tried("writing", key, call)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; missing ones are no error."""
        remaining = iter(keys)
        while some := list(islice(remaining, _PAGE_OBJECTS)):
            self._delete(some)

    def objects(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, in the order of their keys; keys are relative to the prefix.

        Args:
            prefix: Without / at its end; empty for the whole bucket.
            after: Only keys after this one, relative to the prefix.
        """
        start = f"{prefix}/" if prefix else ""
        last = start + after if after else None
        while True:
            page = self._tried("listing", prefix, partial(self._page, start, last))
            for item in page:
                yield ObjectInfo(item["path"][len(start) :], int(item["size"]), item["last_modified"])
            if len(page) < _PAGE_OBJECTS:
                return
            last = page[-1]["path"]

    def each(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Return work(item) of each item, in order, several at once."""
        return self._pool.map(work, items)

    def _page(self, start: str, last: str | None) -> list[Mapping[str, Any]]:
        stream = self._obstore.list(self._store, start or None, offset=last, chunk_size=_PAGE_OBJECTS)
        for page in stream:
            return list(page)
        return []

    def _delete(self, keys: list[str]) -> None:
        """Remove objects by one request, where the service can."""
        try:
            self._tried("removing", keys[0], lambda: self._obstore.delete(self._store, keys))
        except FileNotFoundError:  # of a service that cannot; the others may still be there
            if len(keys) > 1:
                for key in keys:
                    self._delete([key])

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return bytes(self._obstore.get(self._store, key).bytes()) == data
        except FileNotFoundError:
            return False

    @property
    def _exceptions(self) -> Any:
        return self._obstore.exceptions

    def _tried(self, doing: str, key: str, call: Callable[[], T]) -> T:
        """Return call(), tried again after errors that may pass."""
        began = time.monotonic()
        for attempt in range(1, self._tries + 1):
            try:
                return call()
            except FileNotFoundError as error:
                self._raise_if_no_bucket(error)
                raise
            except (self._exceptions.BaseError, _ShortAnswerError, TimeoutError, ConnectionError) as error:
                self._raise_if_lasting(doing, key, error)
                if attempt == self._tries:
                    seconds = time.monotonic() - began
                    raise StoreUnreachable(
                        f"{self._name}/{key}: {doing} failed {attempt} times in {seconds:.0f} s "
                        f"({_what(error)}). Check network and endpoint{_endpoint_shown(self._name)}, then "
                        "run the same command again: finished scans are kept"
                    ) from None
            wait = min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            time.sleep(wait * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _raise_if_no_bucket(self, error: Exception) -> None:
        if _code(error) in ("NoSuchBucket", "ContainerNotFound"):
            raise StoreUnreachable(
                f"{self._name}: there is no such bucket{_endpoint_shown(self._name)}. Make it, or check the "
                "URL and the endpoint"
            ) from None

    def _raise_if_lasting(self, doing: str, key: str, error: Exception) -> None:
        """Raise an error that another try would meet again, without its cause, which may hold a key."""
        self._raise_if_no_bucket(error)
        exceptions, where = self._exceptions, f"{self._name}/{key}"
        status, code = _status(error), _code(error)
        if status == 507 or code in _FULL_CODES:
            raise StoreFull(
                f"{where}: {doing} failed, no space or quota is left ({_what(error)}). Free space or raise "
                "the quota, then run the same command again: finished scans are kept"
            ) from None
        denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if denied or status in (401, 403) or _METADATA_SERVER in str(error):
            raise StoreDenied(
                f"{where}: {doing} was refused ({_what(error)}). Check the credentials in the environment "
                "and the permissions that they give (docs/object-stores.md)"
            ) from None
        lasting = status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429)
        if lasting:
            raise StoreUnreachable(
                f"{where}: {doing} failed ({_what(error)}). Check the URL and the endpoint"
                f"{_endpoint_shown(self._name)}; the service may not offer what a store needs "
                "(docs/object-stores.md)"
            ) from None


class _ShortAnswerError(Exception):
    """An answer has fewer bytes than it says."""


def client_of(url: StoreUrl) -> ObjectClient:
    """Return the client of a bucket; one for each process, bucket and endpoint."""
    return _client(url.scheme, url.bucket, os.getpid(), _surroundings())


def close_clients() -> None:
    """Forget all clients, so that changed credentials are read anew."""
    _client.cache_clear()


@lru_cache(maxsize=16)
def _client(scheme: str, bucket: str, process: int, surroundings: tuple[str | None, ...]) -> ObjectClient:
    return ObjectClient(scheme, bucket)


def _surroundings() -> tuple[str | None, ...]:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "STORAGE_EMULATOR_HOST")
    return tuple(os.environ.get(name) for name in (*names, TIMEOUT_VARIABLE, TRIES_VARIABLE))


def _settings(scheme: str) -> dict[str, Any]:
    """Return the settings in the usual variables that obstore does not read itself."""
    if scheme == "s3":
        special = os.environ.get("AWS_ENDPOINT_URL_S3")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {"region": region} | ({"endpoint": special} if special else {})
    return {}


def _endpoint(scheme: str) -> str:
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "gs": (),
    }
    return next((os.environ[name] for name in names[scheme] if os.environ.get(name)), "")


def _endpoint_shown(name: str) -> str:
    endpoint = _endpoint(name.split(":", 1)[0])
    return f" ({endpoint.split('@')[-1]})" if endpoint else ""


def _is_plain_http(scheme: str) -> bool:
    return _endpoint(scheme).startswith("http://") or bool(os.environ.get("AZURE_STORAGE_USE_EMULATOR"))


def _mode(unchanged: Stamp | None) -> Any:
    if unchanged is None:
        return "create"
    values = {"e_tag": unchanged.etag, "version": unchanged.generation}
    return {name: value for name, value in values.items() if value is not None}


def _stamp(meta: Mapping[str, Any]) -> Stamp:
    return Stamp(meta.get("e_tag"), meta.get("version"))


def _status(error: Exception) -> int | None:
    found = _HTTP_STATUS.search(str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    found = _ERROR_CODE.search(str(error))
    return found[1] if found else ""


def _what(error: Exception) -> str:
    """Return what went wrong in a few words, without anything that a server or a library repeats."""
    status, code = _status(error), _code(error)
    if _METADATA_SERVER in str(error):
        return "no credentials in the environment, and none from the machine"
    if status is not None:
        return f"HTTP {status}{' ' + code if code else ''}"
    if isinstance(error, _ShortAnswerError):
        return "the answer ended early"
    text = str(error)
    if "TimedOut" in text:
        return "no complete answer in time"
    if "UnexpectedEof" in text or "IncompleteMessage" in text or "ConnectionReset" in text:
        return "the connection was cut"
    return "no connection" if "error sending request" in text else type(error).__name__
