"""The ledger: one line per known source, committed or failed with the reason.

So every source is reported. Sorted by id, replaced in one step. Under the store's lock it is merged with what
other processes have written. It holds no time of writing, so the same work gives the same bytes. Each line
has a checksum (`storage.checksums`), except those that older versions wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from storage.access import StorePath, StoreUrl, read_if_there, update_file
from storage.checksums import sealed_line, unsealed_line
from storage.errors import CorruptStore, InvalidRecord
from storage.files import collector_paused
from storage.layout import LEDGER_FILE, dump_line
from storage.reading import open_store
from storage.writing.object_commits import write_object_index
from storage.writing.problems import Problem

State = Literal["committed", "failed"]


@dataclass(frozen=True, kw_only=True)
class LedgerFile:
    """Size and time of a source's file when it was read; they show quickly whether it has changed."""

    location: str
    """Path relative to the raw folder, without patients' names."""
    size: int
    """Size in bytes."""
    mtime_ns: int
    """Time of its last change, in nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """Result of one source."""

    scan_id: str
    location: str
    """Path relative to the raw folder, without patients' names."""
    state: State
    """"committed" if its scan is in the store, else "failed"."""
    kind: str = ""
    """Class name of the error, if it failed."""
    reason: str = ""
    """Reason of the failure."""
    remedy: str = ""
    """Remedy for the failure."""
    source_digest: str = ""
    """Digest of its bytes, if they were read."""
    files: tuple[LedgerFile, ...] = ()
    """Its files, if they were read."""
    choices_digest: str = ""
    """Digest of the choices made for its files (modality, names of label values, ...), apart from their
    bytes."""
    config_digest: str = ""
    """If it failed: digest of the settings and the code version of the attempt."""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise InvalidRecord(
                f"ledger: state of {self.scan_id} must be one of {get_args(State)}, got {self.state!r}"
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LedgerEntry:
        """Return the entry in a parsed line; raises KeyError or TypeError if it is not one."""
        fields = dict(value)
        files = tuple(LedgerFile(**file) for file in fields.pop("files"))
        return cls(scan_id=fields.pop("id"), files=files, **fields)

    def to_json(self) -> dict[str, object]:
        """Return the entry as one JSON object."""
        fields = asdict(self)
        return {"id": fields.pop("scan_id"), **fields}


def read_ledger(store: str | StorePath) -> dict[str, LedgerEntry]:
    """Return the ledger by scan id, sorted by id; empty if there is none."""
    root = open_store(store).path
    data = read_if_there(root, LEDGER_FILE) or b""
    with collector_paused():
        return {entry.scan_id: entry for _, entry in _lines(data, root)}


def write_ledger(
    store: str | StorePath, entries: Iterable[LedgerEntry], *, remove: Iterable[str] = ()
) -> None:
    """Merge entries into the ledger: entries with other ids are kept, except those to remove."""
    root = open_store(store).path
    added = {entry.scan_id: entry for entry in entries}
    forgotten = set(remove)

    def merge(before: bytes | None) -> bytes:
        with collector_paused():
            merged = {entry.scan_id: line for line, entry in _lines(before or b"", root)}
        for scan_id in forgotten:
            merged.pop(scan_id, None)
        merged |= {scan_id: sealed_line(dump_line(entry.to_json())) for scan_id, entry in added.items()}
        return b"".join(merged[scan_id] for scan_id in sorted(merged))

    if added or read_if_there(root, LEDGER_FILE) is not None:
        update_file(root, LEDGER_FILE, merge, doing="ledger")
    if isinstance(root, StoreUrl):
        write_object_index(root, if_long=True)


def read_failed(store: str | StorePath) -> dict[str, LedgerEntry]:
    """Return the entries of sources that failed, by scan id, sorted; the lines of others are not parsed."""
    root = open_store(store).path
    data = read_if_there(root, LEDGER_FILE) or b""
    failed = (entry for _, entry in _lines(data, root, holding=b'"state":"failed"'))
    return {entry.scan_id: entry for entry in failed if entry.state == "failed"}


def _lines(data: bytes, root: StorePath, *, holding: bytes = b"") -> Iterator[tuple[bytes, LedgerEntry]]:
    """Yield every line of a ledger that contains the bytes `holding`, with its newline; and its entry."""
    for number, line in enumerate(data.splitlines(), start=1):
        entry = _parsed(line, holding)
        if isinstance(entry, Exception):
            raise CorruptStore(
                f"{root / LEDGER_FILE}: line {number} is damaged ({entry!r}). `mass repair` removes it: the "
                "next `mass prepare` looks at that source anew and keeps the finished scans"
            ) from entry
        if entry is not None:
            yield line + b"\n", entry


def _parsed(line: bytes, holding: bytes = b"") -> LedgerEntry | Exception | None:
    """Return the entry of a line, or the error of a damaged one; None if it does not contain `holding`."""
    try:
        text = unsealed_line(line)
        return LedgerEntry.from_json(json.loads(text)) if holding in text else None
    except (ValueError, KeyError, TypeError) as error:
        return error


def ledger_problems(root: StorePath) -> Iterator[Problem]:
    """Yield every damaged line of a store's ledger."""
    for number, line in enumerate((read_if_there(root, LEDGER_FILE) or b"").splitlines(), start=1):
        if isinstance(_parsed(line), Exception):
            what = f"line {number} is damaged; `mass repair` removes it, `mass prepare` writes it again"
            yield Problem(scan_id=None, key=LEDGER_FILE, what=what, cure="sweep")


def mend_ledger(store: str | StorePath) -> int:
    """Remove damaged lines from a store's ledger; return how many there were.

    Nothing is lost with one: the next `mass prepare` looks at that source anew, or tries it again.
    """
    root = open_store(store).path
    removed = 0

    def without_damaged(before: bytes | None) -> bytes:
        nonlocal removed
        lines = (before or b"").splitlines(keepends=True)
        kept = [line for line in lines if not isinstance(_parsed(line.rstrip(b"\n")), Exception)]
        removed = len(lines) - len(kept)
        return b"".join(kept)

    if any(ledger_problems(root)):
        update_file(root, LEDGER_FILE, without_damaged, doing="ledger")
    return removed
