"""Bytes that the scans of a store take: from the index, else from their files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from storage.access import StoreUrl, client_of
from storage.files import raise_unless_gone
from storage.layout import SCANS_FOLDER
from storage.reading.scans import Scan
from storage.reading.stores import Store


def stored_bytes(store: Store) -> Mapping[str, int]:
    """Return the bytes of all files of each scan of a store, by scan id."""
    sizes = {scan_id: entry.num_bytes for scan_id, entry in store.entries.items()}
    if all(sizes.values()):
        return sizes
    if isinstance(store.path, StoreUrl):
        return _listed_bytes(store, store.path)
    return {
        scan_id: size or _folder_bytes(store.path / store.entries[scan_id].path)
        for scan_id, size in sizes.items()
    }


def scan_bytes(scan: Scan) -> int:
    """Return the bytes of all files of a scan."""
    if scan.entry.num_bytes:
        return scan.entry.num_bytes
    if isinstance(scan.path, StoreUrl):
        return sum(item.size for item in client_of(scan.path).objects(scan.path.key))
    return _folder_bytes(scan.path)


def _folder_bytes(folder: Path) -> int:
    return sum(
        os.stat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(folder, onerror=raise_unless_gone)
        for name in names
    )


def _listed_bytes(store: Store, url: StoreUrl) -> Mapping[str, int]:
    """Return the bytes of the objects in each scan's folder, from one listing of all."""
    scans = {entry.path: scan_id for scan_id, entry in store.entries.items()}
    sizes = Counter(dict.fromkeys(scans.values(), 0))
    for item in client_of(url).objects((url / SCANS_FOLDER).key):
        key = f"{SCANS_FOLDER}/{item.key}"
        parts = key.split("/")
        # The folder of a scan, or that of its commit; no folder of a scan is named like a commit's.
        for depth in (4, 3):
            scan_id = scans.get("/".join(parts[:depth]))
            if scan_id is not None:
                sizes[scan_id] += item.size
                break
    return sizes
