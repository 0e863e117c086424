"""The store: the only code that knows how scans lie on disk (format version 2, one Zarr v3 group a scan).

    from storage import open_store

    store = open_store("STORE")
    scan = store.scan(store.scan_ids[0])
    scan.image()                      # float32 (z, y, x) in real units
    scan.proposals.voxels             # int32 (N,), best proposal first
    scan.masks([3, 17])               # bool (2, z, y, x)
    scan.words([3, 17, 40], region)   # uint16 (z, y, x): bit k is mask k
    level = scan.level_for((64, 64, 64))     # the finest level at which the whole scan fits a window
    scan.image(level=level), scan.masks([3, 17], level=level), scan.voxels_at(level)

Writers use `create_store`, `commit_scan`, `finish`; `sweep` and `verify` look after a store,
`lift_scan` brings its scans to the newest version. Names are loaded
when first used, so that importing `storage` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.committing import commit_scan, finish, remove_scan, sweep
    from storage.errors import (
        CorruptScan,
        CorruptStore,
        FormatVersionError,
        InvalidRecord,
        InvalidSelection,
        ScanExists,
        ScanNotFound,
        StorageError,
        StoreExists,
        StoreFull,
        StoreNotFound,
    )
    from storage.index import IndexEntry
    from storage.layout import FORMAT_VERSION, PROPOSAL_COLUMNS, digest_of
    from storage.ledger import LedgerEntry, LedgerFile, read_ledger, write_ledger
    from storage.levels import Level
    from storage.lifting import lift_scan, scans_to_lift
    from storage.records import Intensity, LabelVolume, Proposals, ScanRecord
    from storage.regions import Region
    from storage.scans import Crop, Scan
    from storage.stores import Store, StoreInfo, create_store, open_store
    from storage.verifying import Problem, verify, verify_scan

_HOME = {
    "commit_scan": "committing",
    "finish": "committing",
    "remove_scan": "committing",
    "sweep": "committing",
    "CorruptScan": "errors",
    "CorruptStore": "errors",
    "FormatVersionError": "errors",
    "InvalidRecord": "errors",
    "InvalidSelection": "errors",
    "ScanExists": "errors",
    "ScanNotFound": "errors",
    "StorageError": "errors",
    "StoreExists": "errors",
    "StoreFull": "errors",
    "StoreNotFound": "errors",
    "IndexEntry": "index",
    "FORMAT_VERSION": "layout",
    "PROPOSAL_COLUMNS": "layout",
    "digest_of": "layout",
    "Level": "levels",
    "LedgerEntry": "ledger",
    "LedgerFile": "ledger",
    "read_ledger": "ledger",
    "write_ledger": "ledger",
    "lift_scan": "lifting",
    "scans_to_lift": "lifting",
    "Intensity": "records",
    "LabelVolume": "records",
    "Proposals": "records",
    "ScanRecord": "records",
    "Region": "regions",
    "Crop": "scans",
    "Scan": "scans",
    "Store": "stores",
    "StoreInfo": "stores",
    "create_store": "stores",
    "open_store": "stores",
    "Problem": "verifying",
    "verify": "verifying",
    "verify_scan": "verifying",
}

__all__ = [
    "FORMAT_VERSION",
    "PROPOSAL_COLUMNS",
    "CorruptScan",
    "CorruptStore",
    "Crop",
    "FormatVersionError",
    "IndexEntry",
    "Intensity",
    "InvalidRecord",
    "InvalidSelection",
    "LabelVolume",
    "LedgerEntry",
    "LedgerFile",
    "Level",
    "Problem",
    "Proposals",
    "Region",
    "Scan",
    "ScanExists",
    "ScanNotFound",
    "ScanRecord",
    "StorageError",
    "Store",
    "StoreExists",
    "StoreFull",
    "StoreInfo",
    "StoreNotFound",
    "commit_scan",
    "create_store",
    "digest_of",
    "finish",
    "lift_scan",
    "open_store",
    "read_ledger",
    "remove_scan",
    "scans_to_lift",
    "sweep",
    "verify",
    "verify_scan",
    "write_ledger",
]


def __getattr__(name: str) -> object:
    """Load an exported name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'storage' has no attribute {name!r}")
    return getattr(import_module(f"storage.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the exported names."""
    return sorted(__all__)
