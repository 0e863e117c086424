"""Check that a store on disk is as it was committed. Reads every byte of every scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from storage.access import StorePath, StoreUrl
from storage.errors import CorruptScan, InvalidSelection
from storage.files import checksum, list_files, paths_in, reader_lock, remove_if_empty, remove_tree
from storage.layout import COMMIT_FILE, INDEX_FILE, SCANS_FOLDER, scan_key
from storage.reading import Index, IndexEntry, open_store, parse_commit, read_index
from storage.writing.ledger import ledger_problems
from storage.writing.object_verifying import remove_stray_object, verify_objects
from storage.writing.problems import Cure, Problem


def verify(store: str | StorePath, *, on_scan: Callable[[str], None] | None = None) -> Iterator[Problem]:
    """Yield every difference from what was committed: sizes, checksums, files and index lines.

    Args:
        store: The store.
        on_scan: Called with the id of each scan before it is checked.
    """
    root = open_store(store).path
    yield from ledger_problems(root)
    if isinstance(root, StoreUrl):
        yield from verify_objects(root, on_scan=on_scan)
        return
    with reader_lock(root):  # no commit between its rename and its line
        index = read_index(root)
        folders = _scan_folders(root)
    yield from _index_problems(index, folders)
    in_place = {name for path, name in folders.items() if path == scan_key(name)}
    for scan_id in sorted(in_place | set(index.entries)):
        if on_scan is not None:
            on_scan(scan_id)
        yield from _scan_problems(root, scan_id, index.entries.get(scan_id))


def verify_scan(store: str | StorePath, scan_id: str) -> tuple[Problem, ...]:
    """Return every difference of one scan from what was committed."""
    root = open_store(store).path
    if isinstance(root, StoreUrl):
        return tuple(verify_objects(root, scan_id=scan_id))
    return tuple(_scan_problems(root, scan_id, read_index(root).entries.get(scan_id)))


def remove_stray(store: str | StorePath, scan_id: str, key: str) -> None:
    """Remove a file that is no part of the scan in whose folder it lies, and folders that it leaves empty.

    Raises:
        InvalidSelection: The file is a part of the scan.
    """
    root = open_store(store).path
    if isinstance(root, StoreUrl):
        remove_stray_object(root, scan_id, key)
        return
    folder = root / scan_key(scan_id)
    if key in parse_commit((folder / COMMIT_FILE).read_bytes(), where=f"scan {scan_id}").keys:
        raise InvalidSelection(f"scan {scan_id}: {key} is a part of it")
    path = folder / key
    remove_tree(path)
    while path.parent != folder:
        path = path.parent
        remove_if_empty(path)


def _scan_folders(root: Path) -> dict[str, str]:
    """Return the name of every folder two levels under scans/, by its path."""
    return {
        f"{SCANS_FOLDER}/{folder.parent.name}/{folder.name}": folder.name
        for parent in paths_in(root / SCANS_FOLDER)
        for folder in paths_in(parent)
    }


def _index_problems(index: Index, folders: dict[str, str]) -> Iterator[Problem]:
    remedy = "`mass prepare` (or storage.sweep) writes the index again from the scans"
    for number in index.damaged_lines:
        what = f"line {number} is damaged; {remedy}"
        yield Problem(scan_id=None, key=INDEX_FILE, what=what, cure="sweep")
    if index.torn:
        what = f"the last line was cut off; {remedy}"
        yield Problem(scan_id=None, key=INDEX_FILE, what=what, cure="sweep")
    for path, name in folders.items():
        if path != scan_key(name):
            what = f"does not belong there: {name} lies at {scan_key(name)}"
            yield Problem(scan_id=None, key=path, what=what, cure="by hand")


def _scan_problems(root: Path, scan_id: str, entry: IndexEntry | None) -> Iterator[Problem]:
    folder = root / (entry.path if entry is not None else scan_key(scan_id))
    redo = "prepare the scan again"

    def problem(key: str, what: str, cure: Cure = "make again") -> Problem:
        return Problem(scan_id=scan_id, key=key, what=what, cure=cure)

    try:
        data = (folder / COMMIT_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        state = "the index names it" if entry is not None else "a folder is there"
        yield problem(COMMIT_FILE, f"missing, though {state}; {redo}")
        return
    try:
        addressed = entry is not None and entry.addressed
        commit = parse_commit(data, where=f"scan {scan_id}", addressed=addressed)
    except CorruptScan as error:
        yield problem(COMMIT_FILE, str(error))
        return
    if entry is None:
        what = "committed, but without a line in the index; `mass prepare` writes it"
        yield problem(COMMIT_FILE, what, "sweep")
    elif entry != commit.entry:
        what = f"not the one that the index names; `mass prepare` repairs the index, or {redo}"
        yield problem(COMMIT_FILE, what, "sweep")
    yield from _file_problems(folder, scan_id, commit.keys.items())
    try:
        keys = list_files(folder)
    except OSError as error:
        where = Path(error.filename or folder)
        key = where.relative_to(folder).as_posix() if where.is_relative_to(folder) else COMMIT_FILE
        yield problem(key, f"cannot be listed ({error.strerror}); check the disk")
        return
    for key in keys:
        if key not in commit.keys and key != COMMIT_FILE:
            yield problem(key, "not part of what was committed; remove it", "remove")


def _file_problems(
    folder: Path, scan_id: str, keys: Iterable[tuple[str, tuple[int, str]]]
) -> Iterator[Problem]:
    for key, committed in sorted(keys):
        try:
            found = checksum(folder / key)
        except FileNotFoundError:
            yield Problem(scan_id=scan_id, key=key, what="missing; prepare the scan again")
            continue
        except OSError as error:
            yield Problem(scan_id=scan_id, key=key, what=f"cannot be read ({error.strerror}); check the disk")
            continue
        if found[0] != committed[0]:
            what = f"has {found[0]} bytes, {committed[0]} were committed; prepare the scan again"
            yield Problem(scan_id=scan_id, key=key, what=what)
        elif found != committed:
            what = "its checksum is not that of what was committed; prepare the scan again"
            yield Problem(scan_id=scan_id, key=key, what=what)
