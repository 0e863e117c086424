"""COMMIT.json of a scan: what it is, and every other file of it with size and checksum.

*Reads* a folder with all files of a scan. The same record gives the same bytes, wherever the store is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from storage.files import checksum, list_files
from storage.layout import COMMIT_FILE, FORMAT_VERSION, dump_document
from storage.reading import IndexEntry
from storage.records import ScanRecord


def commit_document(folder: Path, record: ScanRecord) -> bytes:
    """Return the bytes of COMMIT.json for the files of a scan in `folder`."""
    depth, height, width = record.image.shape
    dz, dy, dx = (float(size) for size in record.spacing_zyx_mm)
    entry = IndexEntry(
        scan_id=record.scan_id,
        shape_zyx=(depth, height, width),
        spacing_zyx_mm=(dz, dy, dx),
        modality=record.modality,
        dataset=record.dataset,
        split=record.split,
        case=record.case,
        num_proposals=len(record.table),
        labels=tuple(label.name for label in record.labels),
        digests=record.digests,
        digest="",
    )
    return _document(folder, entry, FORMAT_VERSION)


def rebuilt_commit(folder: Path, entry: IndexEntry) -> bytes | None:
    """Return the COMMIT.json that the index names, made anew from a scan's other files.

    Args:
        folder: The scan's files; COMMIT.json itself may be damaged or missing.
        entry: The scan's line in the index.

    Returns:
        None unless every other file is as it was committed, since the index has the digest.
    """
    data = _document(folder, entry, entry.format_version)
    return data if hashlib.sha256(data).hexdigest() == entry.digest else None


def _document(folder: Path, entry: IndexEntry, format_version: int) -> bytes:
    keys = {}
    for key in list_files(folder):
        if key == COMMIT_FILE:
            continue
        size, sha256 = checksum(folder / key)
        keys[key] = {"size": size, "sha256": sha256}
    return dump_document({"format_version": format_version, "scan": entry.summary(), "keys": keys})
