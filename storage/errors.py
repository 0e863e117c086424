"""Errors of a store. Every message names the scan or file and says what to do.

    StorageError
    ├── StoreNotFound       (FileNotFoundError)  no store at this path
    ├── StoreExists         (FileExistsError)    there is something at this path already
    ├── FormatVersionError  (ValueError)         written by a newer version, or not a mass3d store
    ├── StoreFull           (OSError)            no space or quota left; no incomplete files remain
    ├── StoreLocksMissing   (OSError)            the file system does not keep two writers apart
    ├── StoreUnreachable    (ConnectionError)    an object store gave no answer, after several tries
    ├── StoreDenied         (PermissionError)    an object store refused access
    ├── InvalidLocation     (ValueError)         a URL that no store can have
    ├── LibraryMissing      (ImportError)        a library for object stores is not installed
    ├── ScanNotFound        (KeyError)           no committed scan with this id
    ├── ScanExists          (FileExistsError)    a different scan with this id is committed
    ├── InvalidRecord       (ValueError)         a scan that violates the rules of the format
    ├── InvalidSelection    (ValueError)         a region, mask id, layer or label name outside the scan
    └── CorruptStore        (ValueError)         bytes on disk that contradict the index or each other
        └── CorruptScan                          the same, of one scan

Each takes one message, so that it can be pickled on its way back from a worker.
"""

# ruff: noqa: N818 - "ScanNotFound" is clear; "Error" would only lengthen every except clause.
from __future__ import annotations


class StorageError(Exception):
    """Base class of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message, OSError a tuple.
        return str(self.args[0]) if self.args else ""


class StoreNotFound(StorageError, FileNotFoundError):
    """No store at this path."""


class StoreExists(StorageError, FileExistsError):
    """There is something at this path already."""


class FormatVersionError(StorageError, ValueError):
    """Written by a newer version, or not a mass3d store."""


class StoreFull(StorageError, OSError):
    """No space or quota left on the store's file system; no incomplete files remain."""


class StoreLocksMissing(StorageError, OSError):
    """The store's file system does not keep two writers apart."""


class StoreUnreachable(StorageError, ConnectionError):
    """An object store gave no answer, or only errors, after several tries."""


class StoreDenied(StorageError, PermissionError):
    """An object store refused access."""


class InvalidLocation(StorageError, ValueError):
    """A URL that no store can have."""


class LibraryMissing(StorageError, ImportError):
    """A library for object stores is not installed."""


class ScanNotFound(StorageError, KeyError):
    """No committed scan with this id."""


class ScanExists(StorageError, FileExistsError):
    """A different scan with this id is committed."""


class InvalidRecord(StorageError, ValueError):
    """A scan that violates the rules of the format."""


class InvalidSelection(StorageError, ValueError):
    """A region, mask id, layer or label name outside the scan."""


class CorruptStore(StorageError, ValueError):
    """Bytes on disk that contradict the index or each other."""


class CorruptScan(CorruptStore):
    """Bytes of one scan that contradict its COMMIT.json."""
