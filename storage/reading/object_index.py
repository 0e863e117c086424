"""The index of a store on an object store, where nothing can be appended and there are no locks.

    scans/<aa>/<scan_id>/COMMIT.json   the present commit of a scan, replaced by conditional puts
    index.jsonl                        one line per scan, as on disk; written now and then
    changes/<scan_id>.<digest>.<n>     empty objects: a scan that changes or has changed since

A writer puts its mark into changes/ before it replaces COMMIT.json. A reader takes the index, and for every
scan with a mark its COMMIT.json in place of the line. So a crash at any moment loses nothing, and a store
that nobody writes to opens with three requests. A mark is removed when the written index agrees with it; the
mark of a dead writer is removed after a day.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from storage.access import Stamp, StorePath, StoreUrl, client_of
from storage.errors import CorruptScan
from storage.layout import CHANGES_FOLDER, COMMIT_FILE, INDEX_FILE, commit_folder, scan_key
from storage.reading.index import (
    Index,
    IndexEntry,
    parse_commit,
    parse_index,
    read_index_file,
    read_sound_index,
    require_sound,
)

REMOVED = "removed"
"""Stands in a mark in place of a digest: the scan is removed."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mark of a change of a scan."""

    scan_id: str
    folder: str
    """Name of the commit's folder, or `REMOVED`."""
    name: str
    """Name of the mark."""
    modified: datetime
    """When it was put, by the clock of the service."""


@dataclass(frozen=True, kw_only=True)
class ObjectIndex:
    """The index of a store on an object store, as it is now."""

    written: Index
    """index.jsonl."""
    stamp: Stamp | None
    """Its version; None if there is none."""
    changes: tuple[Change, ...]
    entries: Mapping[str, IndexEntry]
    """The lines, brought up to date by COMMIT.json of every scan with a mark."""


def read_index(store: StorePath) -> Index:
    """Return a store's index as it is, with the changes since it was written; empty if there is none."""
    if not isinstance(store, StoreUrl):
        return read_index_file(store)
    index = read_object_index(store)
    return replace(index.written, entries=index.entries)


def read_entries(store: StorePath) -> Mapping[str, IndexEntry]:
    """Return the entries of a store by scan id; raises CorruptStore if a line of its index is damaged."""
    if not isinstance(store, StoreUrl):
        return read_sound_index(store).entries
    index = read_object_index(store)
    require_sound(index.written, store)
    return index.entries


def read_object_index(store: StoreUrl) -> ObjectIndex:
    """Return the index with all changes since it was written.

    The order of the requests matters: a change that is older than the marks read here is in the index, a
    newer one has its mark.
    """
    client = client_of(store)
    try:
        data, stamp = client.get((store / INDEX_FILE).key)
    except FileNotFoundError:
        data, stamp = b"", None
    written = parse_index(data)
    changes = list_marks(store, CHANGES_FOLDER)
    entries = dict(written.entries)
    ids = sorted({change.scan_id for change in changes})
    current = client.each(lambda scan_id: read_pointer(store, scan_id)[0], ids)
    committed = {(change.scan_id, change.folder) for change in changes}
    for scan_id, entry in zip(ids, current, strict=True):
        line = entries.get(scan_id)
        if entry is None:
            entries.pop(scan_id, None)
        elif line is None or line.digest != entry.digest or (scan_id, _folder(entry)) in committed:
            entries[scan_id] = entry
    return ObjectIndex(written=written, stamp=stamp, changes=tuple(changes), entries=entries)


def list_marks(store: StoreUrl, folder: str) -> list[Change]:
    """Return the marks in a folder of a store, sorted by name."""
    marks = []
    for item in client_of(store).objects((store / folder).key):
        scan_id, commit, number = item.key.rsplit(".", 2) if item.key.count(".") >= 2 else ("", "", "")
        if number:
            marks.append(Change(scan_id=scan_id, folder=commit, name=item.key, modified=item.modified))
    return marks


def put_mark(store: StoreUrl, folder: str, scan_id: str, commit: str) -> None:
    """Put a mark; every mark has a name of its own."""
    client_of(store).put((store / folder / f"{scan_id}.{commit}.{secrets.token_hex(4)}").key, b"")


def read_pointer(store: StoreUrl, scan_id: str) -> tuple[IndexEntry | None, Stamp | None]:
    """Return the entry in a scan's COMMIT.json and the object's version; None where there is none.

    One that is damaged has no entry: verify reports it, a commit replaces it.
    """
    try:
        data, stamp = client_of(store).get((store / scan_key(scan_id) / COMMIT_FILE).key)
    except FileNotFoundError:
        return None, None
    try:
        return parse_commit(data, where=f"scan {scan_id}", addressed=True).entry, stamp
    except CorruptScan:
        return None, stamp


def find_entry(store: StoreUrl, scan_id: str) -> IndexEntry | None:
    """Return the entry of one scan; None if it is not committed.

    The index is read only where the scan's COMMIT.json is damaged.
    """
    entry, stamp = read_pointer(store, scan_id)
    if entry is None:
        return read_entries(store).get(scan_id) if stamp is not None else None
    # Files that were copied from a store on disk lie beside COMMIT.json.
    addressed = any(True for _ in client_of(store).objects((store / entry.path).key))
    return replace(entry, addressed=addressed)


def _folder(entry: IndexEntry) -> str:
    return commit_folder(entry.digest)
