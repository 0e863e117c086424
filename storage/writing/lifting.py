"""Rewrites scans of an older format version in the newest one; proposals are not computed again.

*Reads* a committed scan completely, and checks every byte. *Writes* it again with the same id and digests, in
place of the old one. Level 0 of image, atoms and labels and all masks are unchanged; levels, their table and
the smaller orders are computed from them. The scan is replaced as in every commit (`committing`): after a
kill the store has the old scan or the new one.
"""

from __future__ import annotations

from storage.access import StorePath
from storage.layout import FORMAT_VERSION
from storage.reading import Store, open_store
from storage.writing.committing import commit_scan


def scans_to_lift(store: Store) -> tuple[str, ...]:
    """Return the ids of the scans with an older format version, sorted."""
    return tuple(scan_id for scan_id, entry in store.entries.items() if entry.format_version < FORMAT_VERSION)


def lift_scan(store: str | StorePath, scan_id: str) -> bool:
    """Rewrite one scan in the newest format version.

    The store must accept this version first, see `Store.raise_version`.

    Returns:
        Whether the scan was rewritten.

    Raises:
        CorruptScan: The scan is damaged; it is unchanged.
        StoreFull: There is no space left; the scan is unchanged.
    """
    opened = open_store(store)
    opened.require_current()
    scan = opened.scan(scan_id)
    if scan.entry.format_version == FORMAT_VERSION:
        return False
    commit_scan(opened.path, scan.record(), replace=True)
    return True
