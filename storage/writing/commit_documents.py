"""COMMIT.json of a scan: what it is, and every other file of it with size and checksum.

*Reads* a folder with all files of a scan. The same record gives the same bytes, wherever the store is.
"""

from __future__ import annotations

from pathlib import Path

from storage.files import checksum, list_files
from storage.layout import FORMAT_VERSION, dump_document
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
    keys = {}
    for key in list_files(folder):
        size, sha256 = checksum(folder / key)
        keys[key] = {"size": size, "sha256": sha256}
    return dump_document({"format_version": FORMAT_VERSION, "scan": entry.summary(), "keys": keys})
