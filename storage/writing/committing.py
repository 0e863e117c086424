"""Commits scans to a store: a scan is stored completely or not at all, also after a kill or on a full disk.

A commit: write everything under STORE/tmp, fsync, COMMIT.json last; then, holding the store's lock, rename
the folder to its final path and append its line to the index. What a crash leaves, and what repairs it:

    while writing             a folder in tmp/ whose lock nobody holds     sweep removes it
    between rename and line   a committed folder without an index line     sweep writes the line
    within the line           a line without newline                       readers skip it, writers cut it
    while replacing a scan    the old folder in tmp/, none at its path     sweep moves the old one back

A COMMIT.json that is damaged or lost is made anew, where the index and all other files of the scan are whole.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.access import StorePath, StoreUrl
from storage.errors import CorruptScan, ScanExists, ScanNotFound
from storage.files import (
    checksum,
    full_disk_named,
    paths_in,
    remove_if_empty,
    remove_tree,
    replace_file,
    store_lock,
    sync_folder,
    sync_tree,
    take_lock,
    write_file,
)
from storage.layout import (
    COMMIT_FILE,
    SCANS_FOLDER,
    TEMPORARY_FOLDER,
    commit_folder,
    is_safe_name,
    scan_key,
)
from storage.reading import (
    Commit,
    IndexEntry,
    append_entry,
    open_store,
    parse_commit,
    read_index,
    read_sound_index,
    with_address,
    write_index,
)
from storage.records import ScanRecord
from storage.writing.commit_documents import commit_document, rebuilt_commit
from storage.writing.object_commits import (
    commit_objects,
    remove_objects,
    restore_pointer,
    sweep_objects,
    write_object_index,
)

_OLD, _LOCK = ".old", ".lock"


def commit_scan(store: str | StorePath, record: ScanRecord, *, replace: bool = False) -> IndexEntry:
    """Store a scan: afterwards it is stored completely or, after an error or a crash, not at all.

    Safe from any number of processes at once. If the same scan is committed already and undamaged, nothing
    changes.

    Args:
        store: The store.
        record: The scan.
        replace: Whether a different scan with this id is replaced; its readers get an error, never a mixture.

    Returns:
        The scan's line in the index.

    Raises:
        ScanExists: A different scan with this id is committed, and `replace` is false.
        FormatVersionError: The store has an older version, see `lift_scan`.
        StoreFull: There is no space left; nothing of the scan remains.
    """
    from storage.writing.scan_writer import write_scan

    opened = open_store(store)
    opened.require_current()
    root = opened.path
    if isinstance(root, StoreUrl):
        return commit_objects(root, record, replace=replace)
    with full_disk_named(root, f"scan {record.scan_id}"), _temporary(root, record.scan_id) as temporary:
        write_scan(temporary.folder, record)
        commit_bytes = commit_document(temporary.folder, record)
        sync_tree(temporary.folder)
        write_file(temporary.folder / COMMIT_FILE, commit_bytes)
        sync_folder(temporary.folder)
        entry = parse_commit(commit_bytes, where=f"scan {record.scan_id}").entry
        with store_lock(root):
            _publish(root, temporary, entry, replace=replace)
    return entry


@dataclass(frozen=True)
class _Temporary:
    """Paths in tmp/ that belong to one running writer."""

    folder: Path
    """The scan is written here."""
    old: Path
    """The scan that it replaces is moved here until it is removed."""


@contextmanager
def _temporary(root: Path, scan_id: str) -> Iterator[_Temporary]:
    """Make a folder in tmp/ for one scan; remove it at the end in any case."""
    parent = root / TEMPORARY_FOLDER
    base = f"{scan_id}.{secrets.token_hex(8)}"
    temporary = _Temporary(parent / base, parent / (base + _OLD))
    lock = parent / (base + _LOCK)
    with store_lock(root):  # no sweep between making the lock file and locking it
        parent.mkdir(exist_ok=True)
        try:
            handle = take_lock(lock, create=True)
        finally:
            remove_if_empty(parent)
    assert handle is not None
    try:
        temporary.folder.mkdir()
        yield temporary
    finally:
        remove_tree(temporary.folder)
        remove_tree(temporary.old)
        with store_lock(root):
            lock.unlink()
            remove_if_empty(parent)
        os.close(handle)


def _publish(root: Path, temporary: _Temporary, entry: IndexEntry, *, replace: bool) -> None:
    """Rename a written scan to its final path and add its index line; undo the rename if the line fails."""
    target = root / entry.path
    present = _read_commit(target)
    if present is not None and present.entry == entry and not damaged_keys(target, present):
        if read_sound_index(root).entries.get(entry.scan_id) != entry:
            append_entry(root, entry)
        return
    if present is not None and present.entry != entry and not replace:
        raise ScanExists(
            f"scan {entry.scan_id}: another scan of this id is in {root}. Replace it on purpose "
            "(replace=True), or give this one another id"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(root / SCANS_FOLDER)
    sync_folder(root)
    try:
        if target.exists():  # another scan, a damaged one, or a folder without COMMIT.json
            target.rename(temporary.old)
        temporary.folder.rename(target)
        sync_folder(target.parent)
        append_entry(root, entry)
    except BaseException:
        if not temporary.folder.exists():
            target.rename(temporary.folder)
        if temporary.old.exists():
            temporary.old.rename(target)
        remove_if_empty(target.parent)
        raise


def _read_commit(folder: Path) -> Commit | None:
    """Return a folder's COMMIT.json, or None if it is not a committed scan."""
    try:
        return parse_commit((folder / COMMIT_FILE).read_bytes(), where=f"scan {folder.name}")
    except (FileNotFoundError, NotADirectoryError, CorruptScan):
        return None


def damaged_keys(folder: Path, commit: Commit) -> list[str]:
    """Return the committed files that are missing or have different bytes."""
    damaged = []
    for key, committed in commit.keys.items():
        try:
            found = checksum(folder / key)
        except OSError:
            found = None
        if found != committed:
            damaged.append(key)
    return damaged


def remove_scan(store: str | StorePath, scan_id: str) -> None:
    """Remove a committed scan from the store: its index line and its folder."""
    root = open_store(store).path
    if not is_safe_name(scan_id):
        raise ScanNotFound(f"scan {scan_id!r}: not an id that a store can hold")
    if isinstance(root, StoreUrl):
        remove_objects(root, scan_id)
        return
    with full_disk_named(root, f"removing scan {scan_id}"), store_lock(root):
        target = root / scan_key(scan_id)
        entries = dict(read_sound_index(root).entries)
        if entries.pop(scan_id, None) is None and not target.exists():
            raise ScanNotFound(f"scan {scan_id}: not in {root}. `mass status` lists what is")
        parent = root / TEMPORARY_FOLDER
        parent.mkdir(exist_ok=True)
        doomed = parent / f"{scan_id}.{secrets.token_hex(8)}"
        if target.exists():
            target.rename(doomed)
        write_index(root, entries.values())
        remove_tree(doomed)
        remove_if_empty(target.parent)
        remove_if_empty(parent)


def sweep(store: str | StorePath) -> int:
    """Repair what crashed writers have left; running writers are not affected.

    Removes their temporary folders, moves back a scan that was being replaced, writes a damaged COMMIT.json
    again where all else is whole, and makes the index agree with the committed folders: a missing or outdated
    line is written, a line without a committed scan is removed.

    Returns:
        Number of repairs.
    """
    root = open_store(store).path
    if isinstance(root, StoreUrl):
        return sweep_objects(root)
    with full_disk_named(root, "sweep"), store_lock(root):
        return _sweep_temporary(root) + _sweep_index(root)


def _sweep_temporary(root: Path) -> int:
    parent = root / TEMPORARY_FOLDER
    if not parent.is_dir():
        return 0
    repaired = 0
    in_use: set[str] = set()
    for lock in [path for path in paths_in(parent) if path.name.endswith(_LOCK)]:
        base = lock.name.removesuffix(_LOCK)
        handle = take_lock(lock, create=False)
        if handle is None:
            in_use |= {base, base + _OLD, lock.name}
            continue
        os.close(handle)
        repaired += 1
        old, target = parent / (base + _OLD), root / scan_key(base.rsplit(".", 1)[0])
        if (old / COMMIT_FILE).is_file() and not target.exists():
            old.rename(target)
    # All other paths belong to no running writer: it would have a lock here, or hold the store's lock, which
    # we hold now.
    for path in sorted(parent.iterdir()):
        if path.name not in in_use:
            remove_tree(path)
    remove_if_empty(parent)
    return repaired


def restore_commit(store: str | StorePath, entry: IndexEntry) -> bool:
    """Write a scan's COMMIT.json again if it is damaged or lost and all other files are whole.

    Args:
        store: The store.
        entry: The scan's line in the index, which names the digest of COMMIT.json.

    Returns:
        Whether it was written.
    """
    root = open_store(store).path
    if isinstance(root, StoreUrl):
        return restore_pointer(root, entry)
    with full_disk_named(root, f"scan {entry.scan_id}"), store_lock(root):
        return _restore_commit(root, entry)


def _restore_commit(root: Path, entry: IndexEntry) -> bool:
    """See `restore_commit`; the caller holds the store's lock."""
    folder = root / entry.path
    present = _read_commit(folder)
    if not folder.is_dir() or (present is not None and present.entry.digest == entry.digest):
        return False
    data = rebuilt_commit(folder, entry)
    if data is not None:
        replace_file(root, f"{entry.path}/{COMMIT_FILE}", data)
    return data is not None


def _sweep_index(root: Path) -> int:
    index = read_index(root)
    truth = {commit.entry.scan_id: commit.entry for commit in committed_scans(root)}
    restored = 0
    for scan_id, entry in index.entries.items():
        differs = scan_id not in truth or truth[scan_id].digest != entry.digest
        if differs and _restore_commit(root, entry):
            truth[scan_id] = entry
            restored += 1
    differing = [
        scan_id for scan_id in {*truth, *index.entries} if truth.get(scan_id) != index.entries.get(scan_id)
    ]
    repaired = len(differing) + len(index.damaged_lines)
    if repaired or index.torn:
        write_index(root, truth.values())
    return repaired + restored


def committed_scans(root: Path) -> Iterator[Commit]:
    """Yield the COMMIT.json of every folder under scans/ that has a valid one and the right path."""
    for parent in paths_in(root / SCANS_FOLDER):
        for folder in paths_in(parent):
            # Damaged ones are left out: verify reports them, a commit replaces them.
            commit = _read_commit(folder)
            if commit is not None and root / commit.entry.path == folder:
                # A store that was copied from an object store has the files one folder deeper.
                addressed = (folder / commit_folder(commit.entry.digest)).is_dir()
                yield with_address(commit, addressed=addressed)


def finish(store: str | StorePath) -> None:
    """Write the index in its canonical form: sorted, one line per scan.

    Two stores of the same scans then have the same bytes, whatever the order of writing and the number of
    writers.
    """
    root = open_store(store).path
    if isinstance(root, StoreUrl):
        write_object_index(root)
        return
    with full_disk_named(root, "finish"), store_lock(root):
        write_index(root, read_sound_index(root).entries.values())
        remove_if_empty(root / TEMPORARY_FOLDER)
        for parent in paths_in(root / SCANS_FOLDER):
            remove_if_empty(parent)
        remove_if_empty(root / SCANS_FOLDER)
