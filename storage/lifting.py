"""Brings the scans of an older format version to the newest one, without making any proposal anew.

*Reads* a committed scan whole, every byte checked. *Writes* it again, under the same id and digests, in place
of the old one: level 0 of image, atoms and labels and all masks stay the same; levels, their table and the
smaller orders are made of them. A scan is replaced as any other (`committing`): a kill leaves the old one or
the new.
"""

from __future__ import annotations

from pathlib import Path

from storage.committing import commit_scan
from storage.layout import FORMAT_VERSION
from storage.stores import Store, open_store


def scans_to_lift(store: Store) -> tuple[str, ...]:
    """Return the ids of the scans that have an older format version, sorted."""
    return tuple(scan_id for scan_id, entry in store.entries.items() if entry.format_version < FORMAT_VERSION)


def lift_scan(store: str | Path, scan_id: str) -> bool:
    """Bring one scan to the newest format version.

    The store must be allowed to hold it, see `Store.raise_version`.

    Returns:
        Whether there was anything to do.

    Raises:
        CorruptScan: The scan is damaged; it stays as it is.
        StoreFull: No space left; it stays as it is.
    """
    opened = open_store(store)
    opened.require_current()
    scan = opened.scan(scan_id)
    if scan.entry.format_version == FORMAT_VERSION:
        return False
    commit_scan(opened.path, scan.record(), replace=True)
    return True
