"""Commits scans to an object store, where there are no renames and no locks.

A commit: the files are written to a local folder, as on disk, so that they have the same bytes; a mark is put
into changes/; the files are put below scans/<aa>/<scan_id>/<digest>/, where no other commit writes anything
else; then COMMIT.json is put at scans/<aa>/<scan_id>/, by a conditional put. Of two writers one is refused;
it reads the present commit and decides again. What a crash leaves, and what repairs it:

    before COMMIT.json        files that nothing names, and a mark     sweep removes both after a day
    after it                  a scan with a mark, without a line       readers see it, sweep writes the line
    after a replacement       the old files, and a mark in garbage/    sweep removes both after a day

So readers that have opened the old commit of a scan can still read it for a day.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace as changed
from datetime import datetime, timedelta
from pathlib import Path

from storage.access import ObjectConflictError, StoreUrl, client_of
from storage.errors import ScanExists, ScanNotFound, StoreUnreachable
from storage.files import full_disk_named, list_files
from storage.layout import (
    CHANGES_FOLDER,
    COMMIT_FILE,
    GARBAGE_FOLDER,
    INDEX_FILE,
    SCANS_FOLDER,
    commit_folder,
    scan_key,
)
from storage.reading import (
    REMOVED,
    Change,
    IndexEntry,
    ObjectIndex,
    dump_index,
    list_marks,
    parse_commit,
    put_mark,
    read_object_index,
    read_pointer,
)
from storage.records import ScanRecord
from storage.writing.commit_documents import commit_document

GARBAGE_HOURS = 24
"""Age at which files that no commit names are removed: their writer is dead, their readers are done."""

_MOST_CONFLICTS = 20
"""Most refused tries to commit one scan; after more, something is wrong."""

_MANY_MARKS = 256
"""Number of marks from which the index is written anew while scans are being written."""

_COMMIT_FOLDER = re.compile("[0-9a-f]{16}")


def commit_objects(root: StoreUrl, record: ScanRecord, *, replace: bool) -> IndexEntry:
    """Store a scan; see `commit_scan`."""
    from storage.writing.scan_writer import write_scan

    with tempfile.TemporaryDirectory(prefix="mass-scan-") as name:
        folder = Path(name)
        with full_disk_named(folder, f"scan {record.scan_id}"):
            write_scan(folder, record)
            commit = commit_document(folder, record)
        entry = parse_commit(commit, where=f"scan {record.scan_id}", addressed=True).entry
        present, _ = read_pointer(root, entry.scan_id)
        _require_replaceable(root, present, entry, replace=replace)
        put_mark(root, CHANGES_FOLDER, entry.scan_id, commit_folder(entry.digest))
        _put_files(root / entry.path, folder)
        client_of(root).put((root / entry.path / COMMIT_FILE).key, commit)
        _point_to(root, entry, commit, replace=replace)
        _put_missing(root / entry.path, folder)
    return entry


def _require_replaceable(
    root: StoreUrl, present: IndexEntry | None, entry: IndexEntry, *, replace: bool
) -> None:
    if present is not None and present.digest != entry.digest and not replace:
        raise ScanExists(
            f"scan {entry.scan_id}: another scan of this id is in {root}. Replace it on purpose "
            "(replace=True), or give this one another id"
        )


def _put_files(target: StoreUrl, folder: Path, keys: Iterable[str] | None = None) -> None:
    """Put files of a folder below an address, several at once."""

    def put(key: str) -> None:
        client.put((target / key).key, folder / key)

    client = client_of(target)
    for _ in client.each(put, list_files(folder) if keys is None else keys):
        pass


def _put_missing(target: StoreUrl, folder: Path) -> None:
    """Put files again that are missing or changed: a sweep took the writer for dead and removed them."""
    there = {item.key: item.size for item in client_of(target).objects(target.key)}
    sizes = {key: (folder / key).stat().st_size for key in list_files(folder)}
    _put_files(target, folder, [key for key, size in sizes.items() if there.get(key) != size])


def _point_to(root: StoreUrl, entry: IndexEntry, commit: bytes, *, replace: bool) -> None:
    """Make a commit the scan's present one, unless it is."""
    key = (root / scan_key(entry.scan_id) / COMMIT_FILE).key
    for _ in range(_MOST_CONFLICTS):
        present, stamp = read_pointer(root, entry.scan_id)
        if present is not None and present.digest == entry.digest:
            return
        _require_replaceable(root, present, entry, replace=replace)
        if present is not None:
            put_mark(root, GARBAGE_FOLDER, entry.scan_id, commit_folder(present.digest))
        with suppress(ObjectConflictError):
            client_of(root).put_if(key, commit, unchanged=stamp)
            return
    raise StoreUnreachable(
        f"{root}: scan {entry.scan_id} was replaced by others {_MOST_CONFLICTS} times while it was being "
        "stored. Run one command at a time on it"
    )


def restore_pointer(root: StoreUrl, entry: IndexEntry) -> bool:
    """Put a scan's COMMIT.json again, in whichever of its two places it is damaged; see `restore_commit`."""
    client = client_of(root)
    places = [root / scan_key(entry.scan_id) / COMMIT_FILE, root / entry.path / COMMIT_FILE]
    found = {}
    for place in places if entry.addressed else ():
        with suppress(FileNotFoundError):
            found[place] = client.get(place.key)
    whole = next(
        (data for data, _ in found.values() if hashlib.sha256(data).hexdigest() == entry.digest), None
    )
    damaged = [place for place in places if place not in found or found[place][0] != whole]
    if whole is None or not damaged:
        return False
    for place in damaged:
        try:
            client.put_if(place.key, whole, unchanged=found[place][1] if place in found else None)
        except ObjectConflictError:  # another writer was faster
            return False
    return True


def remove_objects(root: StoreUrl, scan_id: str) -> None:
    """Remove a scan; see `remove_scan`. Its files are removed by a sweep a day later."""
    present, stamp = read_pointer(root, scan_id)
    if stamp is None:
        raise ScanNotFound(f"scan {scan_id}: not in {root}. `mass status` lists what is")
    put_mark(root, CHANGES_FOLDER, scan_id, REMOVED)
    if present is not None:
        put_mark(root, GARBAGE_FOLDER, scan_id, commit_folder(present.digest))
    client_of(root).delete([(root / scan_key(scan_id) / COMMIT_FILE).key])
    write_object_index(root)


def write_object_index(root: StoreUrl, *, if_long: bool = False) -> ObjectIndex:
    """Write all changes into index.jsonl, sorted, one line per scan; return the index.

    Args:
        root: The store.
        if_long: Whether to write it only if there are so many marks that readers would be slow.
    """
    for _ in range(_MOST_CONFLICTS):
        index = read_object_index(root)
        worth = len(index.changes) >= max(_MANY_MARKS, len(index.written.entries) // 8)
        if if_long and not worth:
            return index
        try:
            _put_index(root, index)
        except ObjectConflictError:
            continue  # another writer was faster, and its index may have more
        _remove_marks(root, index)
        return index
    raise StoreUnreachable(
        f"{root / INDEX_FILE}: was changed by others {_MOST_CONFLICTS} times while it was being written. "
        "Run the same command again"
    )


def _put_index(root: StoreUrl, index: ObjectIndex) -> None:
    written = index.written
    is_sound = not written.damaged_lines and not written.torn
    is_there = index.stamp is not None or not index.entries
    if is_sound and is_there and dict(written.entries) == dict(index.entries):
        return
    client_of(root).put_if((root / INDEX_FILE).key, dump_index(index.entries.values()), unchanged=index.stamp)


def _remove_marks(root: StoreUrl, index: ObjectIndex) -> None:
    """Remove the marks of changes that the index has; the scans of other marks have not changed yet."""
    done = [change.name for change in index.changes if change.folder == _state(index, change.scan_id)]
    client_of(root).delete((root / CHANGES_FOLDER / name).key for name in done)


def _state(index: ObjectIndex, scan_id: str) -> str:
    """Return the folder of the present commit of a scan, or `REMOVED`."""
    entry = index.entries.get(scan_id)
    return REMOVED if entry is None else commit_folder(entry.digest)


def sweep_objects(root: StoreUrl) -> int:
    """Repair what crashed writers have left; see `sweep`."""
    index = read_object_index(root)
    if index.stamp is None or index.written.damaged_lines or index.written.torn:
        index = changed(index, entries=_committed(root))
        with suppress(ObjectConflictError):
            _put_index(root, index)
    before = dict(index.written.entries)
    after = dict(write_object_index(root).entries)
    differing = [scan_id for scan_id in {*before, *after} if before.get(scan_id) != after.get(scan_id)]
    return len(differing) + len(index.written.damaged_lines) + _remove_garbage(root)


def _committed(root: StoreUrl) -> dict[str, IndexEntry]:
    """Return the entries of all scans, from a listing of all objects."""
    folders: set[str] = set()
    ids: set[str] = set()
    for item in client_of(root).objects((root / SCANS_FOLDER).key):
        parts = item.key.split("/")
        if len(parts) == 3 and parts[2] == COMMIT_FILE:
            ids.add(parts[1])
        elif len(parts) > 3:
            folders.add("/".join([SCANS_FOLDER, *parts[:3]]))
    entries = {}
    for entry, _ in client_of(root).each(lambda scan_id: read_pointer(root, scan_id), sorted(ids)):
        if entry is not None:
            entries[entry.scan_id] = changed(entry, addressed=entry.path in folders)
    return entries


def _remove_garbage(root: StoreUrl) -> int:
    """Remove files that no commit has named for a day, and the marks that say so; return their number."""
    changes, garbage = (list_marks(root, folder) for folder in (CHANGES_FOLDER, GARBAGE_FOLDER))
    if not changes and not garbage:
        return 0
    now = _time_of(root)
    young = {(mark.scan_id, mark.folder) for mark in (*changes, *garbage) if not _is_old(mark.modified, now)}
    removed = 0
    for folder, marks in ((CHANGES_FOLDER, changes), (GARBAGE_FOLDER, garbage)):
        for mark in marks:
            if (mark.scan_id, mark.folder) not in young:
                _remove_old(root, mark, now)
                client_of(root).delete([(root / folder / mark.name).key])
                removed += 1
    return removed


def _remove_old(root: StoreUrl, mark: Change, now: datetime) -> None:
    """Remove the files of the commit of a mark, unless it is the present one or they are new."""
    present, _ = read_pointer(root, mark.scan_id)
    current = commit_folder(present.digest) if present else ""
    if mark.folder in (REMOVED, current):
        return
    scan = root / scan_key(mark.scan_id)
    items = list(client_of(root).objects(scan.key))
    parts = {item.key.split("/")[0] for item in items}
    # Files that were copied from a store on disk lie beside COMMIT.json, in no commit's folder.
    beside = {name for name in parts if not _COMMIT_FOLDER.fullmatch(name)} - {COMMIT_FILE}
    gone = {mark.folder} | (beside if present is None or current in parts else set())
    old = [item.key for item in items if item.key.split("/")[0] in gone and _is_old(item.modified, now)]
    client_of(root).delete((scan / key).key for key in old)


def _is_old(modified: datetime, now: datetime) -> bool:
    return now - modified > timedelta(hours=GARBAGE_HOURS)


def _time_of(root: StoreUrl) -> datetime:
    """Return the time by the clock of the service, from an object that is written for it."""
    client, key = client_of(root), (root / GARBAGE_FOLDER / f"clock-{secrets.token_hex(8)}").key
    client.put(key, b"")
    now = client.modified(key)
    client.delete([key])
    return now
