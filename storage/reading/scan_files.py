"""The files of one committed scan, listed in its COMMIT.json; every byte that is returned was checked.

*Reads* COMMIT.json (checked against the index), `zarr.json` files (sha256), arrays (crc32c and size).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from storage.access import Folder, StorePath, folder_of
from storage.errors import CorruptScan
from storage.layout import COMMIT_FILE, METADATA_FILE, chunk_name
from storage.reading.index import Commit, IndexEntry, parse_commit
from storage.reading.shards import ArrayReader, parse_layout

_TABLES = ("proposals", "scores", "segments", "orders", "level_voxels")


class ScanFiles:
    """Reads files of a scan. Holds paths only, so it can be pickled."""

    def __init__(self, path: StorePath, entry: IndexEntry) -> None:
        self.path = path
        self._entry = entry
        self._readers: dict[str, ArrayReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_entry": self._entry, "_readers": {}}

    def array(self, key: str) -> ArrayReader:
        """Return the reader of an array; it is kept for later calls."""
        if key not in self._readers:
            where = f"scan {self._entry.scan_id}, {key}"
            layout = parse_layout(self.checked(f"{key}/{METADATA_FILE}"), where=where)
            chunk = f"{key}/{chunk_name(len(layout.shape))}"
            if chunk not in self._commit.keys:
                raise self.corrupt(f"COMMIT.json lacks {chunk}")
            self._readers[key] = ArrayReader(
                self._folder, key, layout, num_bytes=self._commit.keys[chunk][0], where=where
            )
        return self._readers[key]

    def whole(self, key: str) -> NDArray[Any]:
        """Return a whole small array, read-only, so that callers may keep it."""
        reader = self.array(key)
        array = reader.read(tuple(slice(0, size) for size in reader.layout.shape))
        array.flags.writeable = False
        return array

    def metadata(self, key: str) -> Mapping[str, Any]:
        """Return the attributes of a group; "" is the scan itself."""
        document = json.loads(self.checked(f"{key}/{METADATA_FILE}" if key else METADATA_FILE))
        attributes: Mapping[str, Any] = document["attributes"]
        return attributes

    def checked(self, key: str) -> bytes:
        """Return the bytes of a small file, after a check that they are those that were committed."""
        if key not in self._commit.keys:
            raise self.corrupt(f"COMMIT.json lacks {key}")
        data = self._read(key)
        if hashlib.sha256(data).hexdigest() != self._commit.keys[key][1]:
            self._folder.forget(key)
            raise self.corrupt(f"{key} is not what was committed")
        return data

    def corrupt(self, what: str) -> CorruptScan:
        """Return the error for a damaged scan, for the caller to raise.

        Args:
            what: What is wrong.
        """
        return CorruptScan(
            f"scan {self._entry.scan_id}: {what}. Run `mass verify`, then prepare the scan again"
        )

    @cached_property
    def _folder(self) -> Folder:
        try:
            return folder_of(self.path, self._entry.digest)
        except FileNotFoundError as error:
            raise self.corrupt("its folder is missing") from error

    @cached_property
    def _commit(self) -> Commit:
        _ = self._folder  # read first, so that a replacement of the scan from here on is noticed
        data = self._read(COMMIT_FILE)
        if hashlib.sha256(data).hexdigest() != self._entry.digest:
            self._folder.forget(COMMIT_FILE)
            raise self.corrupt(
                "COMMIT.json is not the one in the index: replaced or damaged. Open the store again"
            )
        commit = parse_commit(data, where=f"scan {self._entry.scan_id}")
        # Not the volumes: of those, a reader needs regions.
        self._folder.read_ahead({key: size for key, (size, _) in commit.keys.items() if _is_about_all(key)})
        return commit

    def _read(self, key: str) -> bytes:
        try:
            return self._folder.read(key)
        except FileNotFoundError as error:
            raise self.corrupt(f"{key} is missing") from error


def _is_about_all(key: str) -> bool:
    """Return whether a file is metadata or a table, which every reader needs, rather than a volume."""
    return key.endswith(METADATA_FILE) or key.split("/")[0] in _TABLES
