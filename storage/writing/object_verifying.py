"""Check that a store on an object store is as it was committed. Reads every byte of every scan.

The objects are listed first, which shows what is missing, has another size, or does not belong there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from storage.access import PART_BYTES, StoreUrl, client_of
from storage.errors import CorruptScan, InvalidSelection
from storage.layout import CHANGES_FOLDER, COMMIT_FILE, GARBAGE_FOLDER, INDEX_FILE, SCANS_FOLDER, scan_key
from storage.reading import REMOVED, IndexEntry, find_entry, list_marks, parse_commit, read_object_index
from storage.writing.problems import Cure, Problem

_REDO = "prepare the scan again"


@dataclass
class _Listed:
    """The objects of one scan."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes by key, relative to the scan's folder."""

    def below(self, folder: str) -> dict[str, int]:
        """Return the objects in a folder, with keys relative to it; "" for all."""
        start = f"{folder}/" if folder else ""
        return {key[len(start) :]: size for key, size in self.sizes.items() if key.startswith(start)}


def verify_objects(
    root: StoreUrl, *, scan_id: str | None = None, on_scan: Callable[[str], None] | None = None
) -> Iterator[Problem]:
    """Yield every difference from what was committed; see `verify`.

    Args:
        root: The store.
        scan_id: Check this scan only.
        on_scan: Called with the id of each scan before it is checked.
    """
    index = read_object_index(root)
    remedy = "`mass prepare` (or storage.sweep) writes the index again from the scans"
    if scan_id is None:
        for number in index.written.damaged_lines:
            what = f"line {number} is damaged; {remedy}"
            yield Problem(scan_id=None, key=INDEX_FILE, what=what, cure="sweep")
        if index.written.torn:
            what = f"the last line was cut off; {remedy}"
            yield Problem(scan_id=None, key=INDEX_FILE, what=what, cure="sweep")
    listed, strays = _list_scans(root, scan_id)
    for key in strays:
        yield Problem(scan_id=None, key=key, what="does not belong there; remove it", cure="by hand")
    known = {
        (mark.scan_id, mark.folder)
        for name in (CHANGES_FOLDER, GARBAGE_FOLDER)
        for mark in list_marks(root, name)
    }
    ids = {scan_id} if scan_id is not None else set(listed) | set(index.entries)
    for name in sorted(ids):
        if on_scan is not None:
            on_scan(name)
        yield from _scan_problems(root, name, index.entries.get(name), listed.get(name, _Listed()), known)


def remove_stray_object(root: StoreUrl, scan_id: str, key: str) -> None:
    """Remove objects that are no part of a scan; see `remove_stray`.

    Args:
        root: The store.
        scan_id: The scan.
        key: An object, or a folder with all objects in it, relative to the scan's folder.
    """
    entry = find_entry(root, scan_id)
    scan = root / scan_key(scan_id)
    if entry is not None:
        data, _ = client_of(root).get((root / entry.path / COMMIT_FILE).key)
        folder = entry.path.removeprefix(scan_key(scan_id)).strip("/")
        own = {f"{folder}/{name}".strip("/") for name in parse_commit(data, where=f"scan {scan_id}").keys}
        if key in (folder, COMMIT_FILE, f"{folder}/{COMMIT_FILE}") or key in own:
            raise InvalidSelection(f"scan {scan_id}: {key} is a part of it")
    below = [(scan / key / item.key).key for item in client_of(root).objects((scan / key).key)]
    client_of(root).delete([(scan / key).key, *below])


def _list_scans(root: StoreUrl, scan_id: str | None) -> tuple[dict[str, _Listed], list[str]]:
    """Return the objects of every scan, or of one, by scan id; and the keys of objects of none."""
    start = SCANS_FOLDER if scan_id is None else scan_key(scan_id)
    listed: dict[str, _Listed] = {}
    strays = []
    for item in client_of(root).objects((root / start).key):
        key = f"{start}/{item.key}"
        parts = key.split("/", 3)
        if len(parts) == 4 and "/".join(parts[:3]) == scan_key(parts[2]):
            listed.setdefault(parts[2], _Listed()).sizes[parts[3]] = item.size
        else:
            strays.append(key)
    return listed, strays


def _scan_problems(
    root: StoreUrl,
    scan_id: str,
    entry: IndexEntry | None,
    listed: _Listed,
    known: set[tuple[str, str]],
) -> Iterator[Problem]:
    def problem(key: str, what: str, cure: Cure = "make again") -> Problem:
        return Problem(scan_id=scan_id, key=key, what=what, cure=cure)

    if COMMIT_FILE not in listed.sizes:
        if entry is not None:
            yield problem(COMMIT_FILE, f"missing, though the index names it; {_REDO}")
        elif not any(name == scan_id for name, _ in known):
            yield problem(COMMIT_FILE, f"missing, though files are there; {_REDO}")
        return
    data, _ = client_of(root).get((root / scan_key(scan_id) / COMMIT_FILE).key)
    digest = hashlib.sha256(data).hexdigest()
    addressed = entry is None or entry.addressed or entry.digest != digest
    try:
        commit = parse_commit(data, where=f"scan {scan_id}", addressed=addressed)
    except CorruptScan as error:
        yield problem(COMMIT_FILE, str(error))
        return
    if entry is None:
        what = "committed, but without a line in the index; `mass prepare` writes it"
        yield problem(COMMIT_FILE, what, "sweep")
    elif entry != commit.entry:
        yield problem(
            COMMIT_FILE,
            f"not the one that the index names; `mass prepare` repairs the index, or {_REDO}",
            "sweep",
        )
    folder = commit.entry.path.removeprefix(scan_key(scan_id)).strip("/")
    files = listed.below(folder)
    committed = {**commit.keys, COMMIT_FILE: (len(data), digest)}
    for key, what in _file_problems(root / commit.entry.path, files, committed):
        yield problem(key, what)
    marks = {name for marked, name in known if marked == scan_id}
    others = _others(listed, folder, set(committed)) - marks
    if folder and marks - {REMOVED, *(key.split("/")[0] for key in listed.sizes)}:
        # Of a replaced commit that was copied from disk the files lie beside COMMIT.json, for a day.
        others = {name for name in others if "/" in name}
    for name in sorted(others):
        yield problem(name, "not part of what was committed; remove it", "remove")


def _others(listed: _Listed, folder: str, committed: set[str]) -> set[str]:
    """Return the files and folders of a scan that its present commit does not name."""
    if folder:
        unknown = set(listed.below(folder)) - committed
        names = {key.split("/")[0] for key in listed.sizes} - {folder, COMMIT_FILE}
        return names | {f"{folder}/{key}" for key in unknown}
    return set(listed.sizes) - committed


def _file_problems(
    folder: StoreUrl, files: Mapping[str, int], committed: Mapping[str, tuple[int, str]]
) -> Iterator[tuple[str, str]]:
    """Yield the key of every file that is not as it was committed, and what is wrong with it."""
    readable = []
    for key, (size, _) in sorted(committed.items()):
        if key not in files:
            yield key, f"missing; {_REDO}"
        elif files[key] != size:
            yield key, f"has {files[key]} bytes, {size} were committed; {_REDO}"
        else:
            readable.append(key)
    digests = client_of(folder).each(lambda key: _digest(folder / key, committed[key][0]), readable)
    for key, digest in zip(readable, digests, strict=True):
        if digest != committed[key][1]:
            yield key, f"its checksum is not that of what was committed; {_REDO}"


def _digest(url: StoreUrl, size: int) -> str:
    """Return the sha256 of an object, read in parts; empty if it is gone."""
    digest = hashlib.sha256()
    try:
        for start in range(0, size, PART_BYTES):
            digest.update(client_of(url).get_range(url.key, start, min(PART_BYTES, size - start))[0])
    except FileNotFoundError:
        return ""
    return digest.hexdigest()
