"""The ledger: one known source a line, committed or failed and why; nothing vanishes from the report.

Sorted by id, replaced in one step, merged under the store's lock with what others wrote meanwhile. It holds
no time of writing: the same work gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from storage.errors import CorruptStore, InvalidRecord
from storage.files import full_disk_named, replace_file, store_lock
from storage.layout import LEDGER_FILE, dump_line
from storage.stores import open_store

State = Literal["committed", "failed"]


@dataclass(frozen=True, kw_only=True)
class LedgerFile:
    """A source's file as it was when it was read; size and time tell cheaply whether it changed."""

    location: str
    """Where it is, relative to the raw folder, without patients' names."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of its last change, nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """What became of one source."""

    scan_id: str
    location: str
    """Where the source is, relative to the raw folder, without patients' names."""
    state: State
    """Whether its scan is in the store."""
    kind: str = ""
    """Of the failure: the name of its exception."""
    reason: str = ""
    """Of the failure."""
    remedy: str = ""
    """Of the failure."""
    source_digest: str = ""
    """Digest of its bytes, where they were read."""
    files: tuple[LedgerFile, ...] = ()
    """Its files, where they were read."""
    choices_digest: str = ""
    """Digest of what was said of its files (modality, names of label values, ...), beside their bytes."""
    config_digest: str = ""
    """Of the failure: digest of the settings and code under which it was tried."""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise InvalidRecord(
                f"ledger: state of {self.scan_id} must be one of {get_args(State)}, got {self.state!r}"
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LedgerEntry:
        """Return the entry in a parsed line; KeyError or TypeError where it is none."""
        fields = dict(value)
        files = tuple(LedgerFile(**file) for file in fields.pop("files"))
        return cls(scan_id=fields.pop("id"), files=files, **fields)

    def to_json(self) -> dict[str, object]:
        """Return the entry as one JSON object."""
        fields = asdict(self)
        return {"id": fields.pop("scan_id"), **fields}


def read_ledger(store: str | Path) -> dict[str, LedgerEntry]:
    """Return the ledger by scan id, in the order of the ids; empty where there is none."""
    return _read(open_store(store).path)


def write_ledger(store: str | Path, entries: Iterable[LedgerEntry], *, remove: Iterable[str] = ()) -> None:
    """Merge entries into the ledger: those of other ids stay, except the ids to remove."""
    root = open_store(store).path
    added = {entry.scan_id: entry for entry in entries}
    with full_disk_named(root, "ledger"), store_lock(root):
        kept = _read(root)
        for scan_id in remove:
            kept.pop(scan_id, None)
        merged = kept | added
        data = b"".join(dump_line(merged[scan_id].to_json()) for scan_id in sorted(merged))
        path = root / LEDGER_FILE
        if (path.read_bytes() if path.exists() else b"") != data:
            replace_file(root, LEDGER_FILE, data)


def _read(root: Path) -> dict[str, LedgerEntry]:
    path = root / LEDGER_FILE
    if not path.exists():
        return {}
    entries = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = LedgerEntry.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStore(
                f"{path}: line {number} is damaged ({error!r}). Remove the file and run `mass prepare` "
                "again: it looks at every source anew and keeps the finished scans"
            ) from error
        entries[entry.scan_id] = entry
    return entries
