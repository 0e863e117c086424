"""Opening and creating stores. Reading takes no lock and lists no folder: it uses store.json and index."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from storage.access import (
    StorePath,
    StoreUrl,
    client_of,
    parse_store_path,
    read_file,
    require_conditional_puts,
    store_name,
    update_file,
    update_object,
)
from storage.checksums import sealed, unsealed
from storage.errors import (
    CorruptScan,
    FormatVersionError,
    InvalidRecord,
    ScanNotFound,
    StoreExists,
    StoreNotFound,
)
from storage.files import full_disk_named, replace_file, store_lock
from storage.layout import (
    COMMIT_FILE,
    FORMAT,
    FORMAT_VERSION,
    LOCK_FILE,
    READ_VERSIONS,
    STORE_FILE,
    TEMPORARY_FOLDER,
    commit_folder,
    digest_of,
    dump_document,
    is_safe_name,
    scan_key,
)
from storage.reading.index import IndexEntry, parse_commit, with_address
from storage.reading.object_index import find_entry, read_entries
from storage.reading.scans import Scan
from storage.records import plain_json


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Contents of store.json."""

    format_version: int
    """The highest format version that a scan in the store may have."""
    spacing_mm: float
    """Target spacing of its scans, in mm."""
    config: Mapping[str, Any]
    """Settings of `mass prepare`."""
    config_digest: str
    """digest_of(config)."""


class Store:
    """A store opened for reading: the scans that were committed when its index was first read.

    Holds paths only, so that it can be pickled into the workers of a data loader (start them with spawn or
    forkserver); each worker reads the index again when it needs it.
    """

    def __init__(self, path: StorePath, info: StoreInfo) -> None:
        self.path = path
        self.info = info

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "info": self.info}

    @cached_property
    def entries(self) -> Mapping[str, IndexEntry]:
        """Index lines by scan id, sorted by id."""
        entries = read_entries(self.path)
        return {scan_id: entries[scan_id] for scan_id in sorted(entries)}

    @property
    def name(self) -> str:
        """Name of the store: of its folder, or the last part of its URL."""
        return store_name(self.path)

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Ids of all committed scans, sorted."""
        return tuple(self.entries)

    def scan(self, scan_id: str) -> Scan:
        """Return a committed scan; its arrays are read when they are needed.

        Raises:
            ScanNotFound: There is no committed scan with this id.
        """
        entry = self.find(scan_id)
        if entry is None:
            raise ScanNotFound(
                f"scan {scan_id!r}: not in {self.path}, which has {len(self.entries)} scans. "
                "`mass status` lists them"
            )
        return Scan(self.path, entry)

    def find(self, scan_id: str) -> IndexEntry | None:
        """Return the index line of one scan, None if it is not committed.

        On an object store the whole index is not read for it.
        """
        if isinstance(self.path, StoreUrl) and "entries" not in self.__dict__:
            return find_entry(self.path, scan_id) if is_safe_name(scan_id) else None
        return self.entries.get(scan_id)

    def committed_now(self, scan_id: str) -> Scan | None:
        """Return a scan as it lies in its folder now, None if none is committed there.

        Does not use the index: a writer of one scan of 100,000 need not read the lines of all others.
        """
        if isinstance(self.path, StoreUrl):
            entry = find_entry(self.path, scan_id)
            return Scan(self.path, entry) if entry else None
        folder = self.path / scan_key(scan_id)
        try:
            commit = parse_commit((folder / COMMIT_FILE).read_bytes(), where=f"scan {scan_id}")
        except (FileNotFoundError, NotADirectoryError, CorruptScan):
            return None
        addressed = (folder / commit_folder(commit.entry.digest)).is_dir()
        return Scan(self.path, with_address(commit, addressed=addressed).entry)

    def set_config(self, config: Mapping[str, Any], *, spacing_mm: float | None = None) -> None:
        """Replace the config (and target spacing) in store.json, in one step."""
        spacing_mm = self.info.spacing_mm if spacing_mm is None else spacing_mm
        info = _checked_info(config, spacing_mm, self.info.format_version)
        update_file(self.path, STORE_FILE, lambda old: _dump_info(info, old), doing="set_config")
        self.info = info

    def require_current(self) -> None:
        """Raise FormatVersionError unless scans can be written into the store."""
        if self.info.format_version != FORMAT_VERSION:
            raise FormatVersionError(
                f"{self.path}: has format version {self.info.format_version}; this mass3d reads it, but "
                f"writes version {FORMAT_VERSION}. `mass lift STORE` brings it to that and makes no "
                "proposal anew"
            )

    def raise_version(self) -> None:
        """Allow scans of the current format version in the store; existing scans are unchanged."""
        info = replace(self.info, format_version=FORMAT_VERSION)
        update_file(self.path, STORE_FILE, lambda old: _dump_info(info, old), doing="raise_version")
        self.info = info


def create_store(
    path: str | StorePath, *, spacing_mm: float, config: Mapping[str, Any], exist_ok: bool = True
) -> Store:
    """Create an empty store, or open the existing one, unchanged.

    Args:
        path: A folder that does not exist, is empty, or is a store; or such a URL.
        spacing_mm: Target spacing of its scans, in mm.
        config: Settings of `mass prepare`, as JSON.
        exist_ok: Whether a store may exist already.

    Raises:
        StoreExists: The folder holds something else, or a store and `exist_ok` is false.
    """
    info = _checked_info(config, spacing_mm, FORMAT_VERSION)
    place = parse_store_path(path)
    if isinstance(place, StoreUrl):
        return _create_at_url(place, info, exist_ok=exist_ok)
    root = place.absolute()
    if root.exists() and not root.is_dir():
        raise StoreExists(f"{root}: a file, not a folder. Choose another path for the store")
    if not (root / STORE_FILE).exists():
        other_files = sorted(set(os.listdir(root)) - {LOCK_FILE, TEMPORARY_FOLDER}) if root.exists() else []
        if other_files and not (root / STORE_FILE).exists():
            raise StoreExists(
                f"{root}: not a store, and not empty ({other_files[0]!r} is in it). Choose another folder"
            )
        with full_disk_named(root, "create_store"):
            root.mkdir(parents=True, exist_ok=True)
            with store_lock(root):
                if not (root / STORE_FILE).exists():
                    replace_file(root, STORE_FILE, _dump_info(info))
                    return Store(root, info)
    if not exist_ok:
        raise StoreExists(f"{root}: there is a store already. Choose another folder, or open this one")
    return open_store(root)


def _create_at_url(url: StoreUrl, info: StoreInfo, *, exist_ok: bool) -> Store:
    """Create a store on an object store, or open the existing one."""
    try:
        existing = open_store(url)
    except StoreNotFound:
        other = next((item.key for item in client_of(url).objects(url.key)), None)
        if other is not None:
            raise StoreExists(
                f"{url}: not a store, and not empty ({other!r} is in it). Choose another place"
            ) from None
        data = _dump_info(info)
        update_object(url, STORE_FILE, lambda before: before or data)
        require_conditional_puts(url, STORE_FILE, data)
        return open_store(url)
    if not exist_ok:
        raise StoreExists(f"{url}: there is a store already. Choose another place, or open this one")
    return existing


def open_store(path: str | StorePath) -> Store:
    """Return the store at `path` for reading.

    Args:
        path: Its folder, or its URL.

    Raises:
        StoreNotFound: There is no store.
        InvalidLocation: The URL is not that of a store.
        StoreUnreachable: The object store gives no answer.
        FormatVersionError: The store has another version, or the folder holds something else.
    """
    place = parse_store_path(path)
    root = (
        place.absolute() if isinstance(place, Path) else place
    )  # for a worker that starts in another folder
    try:
        document = json.loads(read_file(root, STORE_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFound(
            f"{root}: no store here (no {STORE_FILE}). `mass prepare RAW STORE` makes one"
        ) from error
    except ValueError as error:
        raise FormatVersionError(
            f"{root / STORE_FILE}: not JSON. Restore it, or prepare the store anew"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatVersionError(
            f"{root / STORE_FILE}: not that of a mass3d store. Is this the right folder?"
        )
    version = document.get("format_version")
    if version not in READ_VERSIONS:
        raise FormatVersionError(
            f"{root}: format version {version}; this mass3d reads versions {READ_VERSIONS[0]} to "
            f"{READ_VERSIONS[-1]}. Use the mass3d that wrote it, or prepare the store anew"
        )
    try:
        document = unsealed(document)
        info = _checked_info(document["config"], float(document["spacing_mm"]), version)
        if info.config_digest != document["config_digest"]:
            raise ValueError("config_digest is not that of config")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatVersionError(
            f"{root / STORE_FILE}: damaged ({error!r}). Restore it from a copy, or take that of an empty "
            "store with the same settings: mass prepare EMPTY-FOLDER NEW-STORE --config C.toml"
        ) from error
    return Store(root, info)


def _checked_info(config: Mapping[str, Any], spacing_mm: float, format_version: int) -> StoreInfo:
    if not math.isfinite(spacing_mm) or spacing_mm <= 0:
        raise InvalidRecord(f"spacing_mm must be finite and > 0, got {spacing_mm}")
    plain = plain_json(config)
    return StoreInfo(
        format_version=format_version,
        spacing_mm=float(spacing_mm),
        config=plain,
        config_digest=digest_of(plain),
    )


def _dump_info(info: StoreInfo, before: bytes | None = None) -> bytes:
    """Return store.json; the present bytes if their contents are the same, with or without a checksum."""
    document = {
        "format": FORMAT,
        "format_version": info.format_version,
        "spacing_mm": info.spacing_mm,
        "config": info.config,
        "config_digest": info.config_digest,
    }
    same = before is not None and unsealed(json.loads(before)) == document
    return before if before is not None and same else dump_document(sealed(document))
