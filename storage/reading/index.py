"""The index: one line per committed scan, so that a store of 100,000 scans opens without reading any of them.

A line is appended when a scan's folder has its final path; a later line with the same id replaces an earlier
one. A line without newline at the end of the file was cut off by a crash: readers skip it, the next writer
removes it, `sweep` writes it again from the scan's COMMIT.json. Each line has a checksum
(`storage.checksums`), except those that older versions wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.access import StorePath
from storage.checksums import is_sealed, sealed_line, unsealed_line
from storage.errors import CorruptScan, CorruptStore
from storage.files import collector_paused, replace_file
from storage.layout import FORMAT_VERSION, INDEX_FILE, READ_VERSIONS, commit_folder, dump_line, scan_key


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """The index line of a committed scan."""

    scan_id: str
    shape_zyx: tuple[int, int, int]
    """Voxels along each axis."""
    spacing_zyx_mm: tuple[float, float, float]
    """Voxel size along each axis, in mm."""
    modality: str
    """Modality: "ct", "mr", "pet", ..."""
    dataset: str
    """Data set of the scan."""
    split: str
    """Its part of the data set, such as "train"."""
    num_proposals: int
    """Rows of the proposals table."""
    labels: tuple[str, ...]
    """Names of its expert labels."""
    digests: Mapping[str, str]
    """Digest of the inputs of each stage."""
    digest: str
    """sha256 of its COMMIT.json, and so of every byte of the scan."""
    format_version: int = FORMAT_VERSION
    """Format version of its folder."""
    case: str = ""
    """Patient or study that it is of; empty if it is a case of its own."""
    num_bytes: int = field(default=0, compare=False)
    """Bytes of all its files; 0 if not known, in lines that older versions wrote."""
    addressed: bool = False
    """Whether its files lie in a folder named after its digest, as on object stores."""
    sealed: bool = field(default=True, compare=False)
    """Whether its line has a checksum; lines that older versions wrote have none, and stay as they are."""

    @property
    def case_key(self) -> str:
        """The case, or the scan's id where none is known: scans with one key stay together in every split."""
        return self.case or self.scan_id

    @property
    def path(self) -> str:
        """Folder of the scan, relative to the store."""
        own = scan_key(self.scan_id)
        return f"{own}/{commit_folder(self.digest)}" if self.addressed else own

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, sealed: bool = True) -> IndexEntry:
        """Return the entry in a parsed line; raises KeyError, TypeError or ValueError if it is not one."""
        depth, height, width = (int(size) for size in value["shape"])
        dz, dy, dx = (float(size) for size in value["spacing_zyx_mm"])
        entry = cls(
            scan_id=str(value["id"]),
            shape_zyx=(depth, height, width),
            spacing_zyx_mm=(dz, dy, dx),
            modality=str(value["modality"]),
            dataset=str(value["dataset"]),
            split=str(value["split"]),
            num_proposals=int(value["num_proposals"]),
            labels=tuple(str(name) for name in value["labels"]),
            digests={str(stage): str(digest) for stage, digest in value["digests"].items()},
            digest=str(value["digest"]),
            format_version=int(value.get("format_version", 1)),
            case=str(value.get("case", "")),
            num_bytes=int(value.get("num_bytes", 0)),
            sealed=sealed,
        )
        if entry.format_version not in READ_VERSIONS:
            raise ValueError(f"format version of {entry.scan_id} is {entry.format_version}")
        if value["path"] != entry.path:
            entry = replace(entry, addressed=True)
        if value["path"] != entry.path:
            raise ValueError(
                f"path of {entry.scan_id} is {value['path']!r}, must be {scan_key(entry.scan_id)!r}"
            )
        return entry

    def to_json(self) -> dict[str, object]:
        """Return the entry as one JSON object."""
        line = self.summary() | {"path": self.path, "digest": self.digest}
        if self.format_version == 1:  # lines of version 1 have neither
            return line
        known = {"num_bytes": self.num_bytes} if self.num_bytes else {}
        return line | known | {"format_version": self.format_version}

    @classmethod
    def from_line(cls, line: bytes) -> IndexEntry:
        """Return the entry in a line (no newline); raises KeyError, TypeError or ValueError if damaged."""
        return cls.from_json(json.loads(unsealed_line(line)), sealed=is_sealed(line))

    def to_line(self) -> bytes:
        """Return the line, with its newline."""
        line = dump_line(self.to_json())
        return sealed_line(line) if self.sealed and self.format_version > 1 else line

    def summary(self) -> dict[str, object]:
        """Return the part of the entry that COMMIT.json repeats, so that a lost line can be written again."""
        # Scans without a case have the line that they had before there were cases.
        later = {"case": self.case} if self.case else {}
        return later | {
            "id": self.scan_id,
            "shape": list(self.shape_zyx),
            "spacing_zyx_mm": list(self.spacing_zyx_mm),
            "modality": self.modality,
            "dataset": self.dataset,
            "split": self.split,
            "num_proposals": self.num_proposals,
            "labels": list(self.labels),
            "digests": dict(self.digests),
        }


@dataclass(frozen=True)
class Commit:
    """Contents of a scan's COMMIT.json; a folder without it is not a scan."""

    entry: IndexEntry
    """The scan's index line."""
    keys: Mapping[str, tuple[int, str]]
    """Size in bytes and sha256 of every other file of the scan."""


def parse_commit(data: bytes, *, where: str, addressed: bool = False) -> Commit:
    """Return the contents of a COMMIT.json.

    Args:
        data: Bytes of the file.
        where: Name of the scan in error messages.
        addressed: Whether the scan's files lie in a folder named after the commit's digest.

    Raises:
        CorruptScan: The file is damaged.
    """
    try:
        document = json.loads(data)
        digest = hashlib.sha256(data).hexdigest()
        scan_id = document["scan"]["id"]
        rest = {"path": scan_key(scan_id), "digest": digest, "format_version": document["format_version"]}
        keys = {key: (int(value["size"]), str(value["sha256"])) for key, value in document["keys"].items()}
        rest["num_bytes"] = len(data) + sum(size for size, _ in keys.values())
        entry = replace(IndexEntry.from_json(document["scan"] | rest), addressed=addressed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptScan(f"{where}: COMMIT.json is damaged ({error!r}). Prepare the scan again") from error
    return Commit(entry, keys)


def with_address(commit: Commit, *, addressed: bool) -> Commit:
    """Return a commit whose files lie in a folder named after its digest, or do not."""
    return replace(commit, entry=replace(commit.entry, addressed=addressed)) if addressed else commit


@dataclass(frozen=True)
class Index:
    """The parsed index."""

    entries: Mapping[str, IndexEntry]
    """Entries by scan id."""
    damaged_lines: tuple[int, ...]
    """Numbers, from 1, of lines that are not entries; the last may be one that a crash cut off."""
    torn: bool
    """Whether the last line has no newline."""


def read_index_file(store: Path) -> Index:
    """Return the index of a store on disk as it is; empty if there is none."""
    try:
        data = (store / INDEX_FILE).read_bytes()
    except FileNotFoundError:
        return Index({}, (), torn=False)
    return parse_index(data)


def parse_index(data: bytes) -> Index:
    """Return the contents of an index."""
    lines = data.split(b"\n")
    torn = lines.pop() != b""
    entries: dict[str, IndexEntry] = {}
    damaged = []
    with collector_paused():
        for number, line in enumerate(lines, start=1):
            try:
                entry = IndexEntry.from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged.append(number)
            else:
                entries[entry.scan_id] = entry
    return Index(entries, tuple(damaged), torn)


def read_sound_index(store: Path) -> Index:
    """Return the store's index, or raise CorruptStore if a line in it is damaged."""
    index = read_index_file(store)
    require_sound(index, store)
    return index


def require_sound(index: Index, store: StorePath) -> None:
    """Raise CorruptStore if a line of a store's index is damaged."""
    if index.damaged_lines:
        raise CorruptStore(
            f"{store / INDEX_FILE}: line {index.damaged_lines[0]} is damaged. Run `mass prepare` again, "
            "or storage.sweep(): both rebuild the index from the scans"
        )


class IndexTail:
    """Ids of the scans that any process commits from now on, to show the progress of writers."""

    def __init__(self, store: StorePath) -> None:
        # On an object store nothing is appended to the index.
        self._path = store / INDEX_FILE if isinstance(store, Path) else None
        self._offset = self._size()

    def _size(self) -> int:
        if self._path is None:
            return 0
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def new_ids(self) -> list[str]:
        """Return the ids in the lines appended since the last call, in order.

        Damaged lines are skipped. After the index was replaced, only lines beyond its present end are
        returned.
        """
        size = self._size()
        if self._path is None or size <= self._offset:
            self._offset = min(self._offset, size)
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read(size - self._offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        ids = []
        for line in whole.splitlines():
            try:
                ids.append(IndexEntry.from_line(line).scan_id)
            except (ValueError, KeyError, TypeError):
                continue
        return ids


def append_entry(store: Path, entry: IndexEntry) -> None:
    """Add a line to the index, completely or not at all. The caller holds the store's lock."""
    line = entry.to_line()
    handle = os.open(store / INDEX_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = _cut_torn_line(handle)
        try:
            written = os.write(handle, line)
            if written < len(line):
                os.write(handle, line[written:])  # raises the error that shortened the first write
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, end)
            raise
    finally:
        os.close(handle)


def _cut_torn_line(handle: int) -> int:
    """Remove a last line without newline; return the size of the file in bytes."""
    size = os.fstat(handle).st_size
    end, step = size, 4096
    while end and os.pread(handle, 1, end - 1) != b"\n":
        block = os.pread(handle, min(step, end), max(0, end - step))
        end = max(0, end - step) + block.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(handle, end)
    return end


def write_index(store: Path, entries: Iterable[IndexEntry]) -> None:
    """Replace the index by these entries, sorted by id. The caller holds the store's lock."""
    data = dump_index(entries)
    path = store / INDEX_FILE
    if not path.exists() or path.read_bytes() != data:
        replace_file(store, INDEX_FILE, data)


def dump_index(entries: Iterable[IndexEntry]) -> bytes:
    """Return the index of these entries, sorted by id."""
    ordered = sorted(entries, key=lambda entry: entry.scan_id)
    return b"".join(entry.to_line() for entry in ordered)
