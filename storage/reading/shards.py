"""Reads the one file of an array: all of it, or the chunks that a region touches. Every byte is checked.

zarr-python is not used for reading: it silently replaces a missing or empty shard by the fill value, its
event loop costs more than decoding small crops, and a data loader's worker need not import it. The files are
plain Zarr v3: zarr-python writes them, and the tests read them with it.

*Reads* ARRAY/zarr.json and ARRAY/c.0.0.0: either one shard (`sharding_indexed`: blosc chunks each with a
crc32c, then the index with its own) or one chunk (blosc, crc32c).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.access import Folder, OpenFile, ReplacedError, WrongSizeError
from storage.errors import CorruptScan
from storage.layout import chunk_name
from storage.records import Region, region_shape, touched_chunks

_DTYPES = {"uint8": "|u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "float32": "<f4"}
_CRC_BYTES = 4


def single_threaded_blosc() -> ModuleType:
    """Return numcodecs.blosc with its threads switched off for the whole process, as in zarr-python.

    With threads it writes blocks in the order in which they finish, so the bytes differ each time, and every
    worker of a data loader would start as many threads as there are cores.
    """
    from numcodecs import blosc

    blosc.use_threads = False
    module: ModuleType = blosc
    return module


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Contents of an array's `zarr.json`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...]
    """Shape of the inner chunks, if sharded."""
    sharded: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunk_shape, strict=True))


def parse_layout(metadata: bytes, *, where: str) -> ArrayLayout:
    """Return the layout in an array's `zarr.json`.

    Args:
        metadata: Bytes of the file.
        where: Name of the array in error messages.

    Raises:
        CorruptScan: It is not the layout of an array of a store.
    """
    try:
        document = json.loads(metadata)
        shape = tuple(int(size) for size in document["shape"])
        outer = tuple(int(size) for size in document["chunk_grid"]["configuration"]["chunk_shape"])
        names = [codec["name"] for codec in document["codecs"]]
        sharded = names == ["sharding_indexed"]
        settings = document["codecs"][0]["configuration"] if sharded else {}
        inner = [codec["name"] for codec in settings["codecs"]] if sharded else names
        layout = ArrayLayout(
            shape=shape,
            dtype=np.dtype(_DTYPES[document["data_type"]]),
            chunk_shape=tuple(int(size) for size in settings["chunk_shape"]) if sharded else outer,
            sharded=sharded,
        )
        one_file = all(size <= chunk for size, chunk in zip(shape, outer, strict=True))
        index_at_end = settings.get("index_location", "end") == "end"
        plain_keys = document["chunk_key_encoding"] == {
            "name": "default",
            "configuration": {"separator": "."},
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptScan(f"{where}: zarr.json is not that of an array of the store ({error!r})") from error
    if inner != ["bytes", "blosc", "crc32c"] or not (one_file and index_at_end and plain_keys):
        raise CorruptScan(
            f"{where}: zarr.json describes another layout than the store's; write it with mass3d"
        )
    return layout


_Part = tuple[tuple[int, ...], Region, Region]
"""A chunk's index along each axis; its part inside a region; the same, relative to the region's corner."""


def _groups(parts: Iterator[_Part], most: int) -> Iterator[Iterable[_Part]]:
    """Yield parts in groups of at most `most`; all of them in one, unlisted, where it is 0."""
    if not most:
        yield parts
        return
    while some := list(islice(parts, most)):
        yield some


@dataclass(frozen=True)
class _ChunkTable:
    """Position and size of each chunk in a shard's file, in bytes."""

    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    identity: int | str
    """Of the file that it was read from."""

    def span(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return the position and size of a chunk."""
        return int(self.offsets[index]), int(self.sizes[index])


class ArrayReader:
    """One stored array. Holds no open file, so it can be kept, pickled and used from any thread."""

    def __init__(self, folder: Folder, key: str, layout: ArrayLayout, *, num_bytes: int, where: str) -> None:
        self.layout = layout
        self._folder = folder
        self._name = chunk_name(len(layout.shape))
        self._key = f"{key}/{self._name}"
        self._num_bytes = num_bytes
        self._where = where
        self._table: _ChunkTable | None = None

    def read(self, region: Region) -> NDArray[Any]:
        """Return the values of a parsed region."""
        result = np.empty(region_shape(region), dtype=self.layout.dtype)
        for target, part in self.chunks(region):
            result[target] = part
        return result

    def chunks(
        self, region: Region, *, wanted: Callable[[Region], bool] | None = None
    ) -> Iterator[tuple[Region, NDArray[Any]]]:
        """Yield each touched chunk's part of a parsed region, decoded.

        Args:
            region: Box to read.
            wanted: Given the position of a part, whether it is needed; other parts are not read.

        Yields:
            The position of the part, relative to the region's corner; and the part, valid until the next one.
        """
        chunk = np.empty(self.layout.chunk_shape, dtype=self.layout.dtype)
        file = self._open()
        try:
            table = self._chunk_table(file)
            touched = touched_chunks(region, self.layout.chunk_shape)
            parts = (part for part in touched if wanted is None or wanted(part[2]))
            for some in _groups(parts, file.ahead):
                if file.ahead:
                    with self._errors_named():
                        file.prefetch([table.span(index) for index, _, _ in some])
                for index, inside, target in some:
                    self._decode(file, *table.span(index), chunk)
                    yield target, chunk[inside]
        finally:
            file.close()

    def _open(self) -> OpenFile:
        with self._errors_named():
            return self._folder.open(self._key, self._num_bytes)

    def _chunk_table(self, file: OpenFile) -> _ChunkTable:
        if self._table is None:
            # Checked after the file was opened, so the open file belongs to the folder that was checked.
            if not self._folder.is_in_place():
                raise self._replaced()
            self._table = self._read_table(file)
        elif self._table.identity != file.identity:
            raise self._replaced()
        return self._table

    def _read_table(self, file: OpenFile) -> _ChunkTable:
        grid = self.layout.grid
        if not self.layout.sharded:
            one = np.ones(grid, dtype=np.uint64)
            return _ChunkTable(0 * one, np.uint64(self._num_bytes) * one, file.identity)
        index_bytes = 16 * math.prod(grid) + _CRC_BYTES
        start = self._num_bytes - index_bytes
        if start < 0:
            raise self._corrupt("is too short for its index")
        raw = np.frombuffer(self._read_checked(file, start, index_bytes), dtype="<u8").reshape(*grid, 2)
        offsets, sizes = raw[..., 0], raw[..., 1]
        # A chunk that was never written has offset and size 2^64 - 1: it fails here too.
        if (sizes > start).any() or (offsets > start - np.minimum(sizes, start)).any():
            raise self._corrupt("lacks chunks")
        return _ChunkTable(offsets, sizes, file.identity)

    def _read_checked(self, file: OpenFile, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, without the crc32c at their end, after a check against it."""
        import google_crc32c

        if file.ahead:
            with self._errors_named():
                data = file.read(start, size)
        else:
            data = file.read(start, size)
        if len(data) != size or size <= _CRC_BYTES:
            raise self._corrupt("ends early")
        payload = data[:-_CRC_BYTES]
        if google_crc32c.value(payload) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            file.forget(start, size)
            raise self._corrupt(f"fails its checksum at bytes {start}..{start + size}")
        return payload

    def _decode(self, file: OpenFile, start: int, size: int, chunk: NDArray[Any]) -> None:
        blosc = single_threaded_blosc()
        payload = self._read_checked(file, start, size)
        # Bytes 4..8 of a blosc buffer are its decoded size.
        if int.from_bytes(payload[4:8], "little") != chunk.nbytes:
            raise self._corrupt("holds a chunk of another size")
        try:
            blosc.decompress(payload, chunk)
        except (RuntimeError, ValueError) as error:
            raise self._corrupt("holds a chunk that does not decode") from error

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turn what access to the file found into the error of a damaged scan."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._corrupt("is missing") from error
        except WrongSizeError as error:
            raise self._corrupt(f"has {error.args[0]} bytes, COMMIT.json says {self._num_bytes}") from error
        except ReplacedError as error:
            raise self._replaced() from error

    def _replaced(self) -> CorruptScan:
        return self._corrupt("was replaced after the scan was opened; open the store again")

    def _corrupt(self, what: str) -> CorruptScan:
        return CorruptScan(
            f"{self._where}: {self._name} {what}. Run `mass verify`, then prepare the scan again"
        )
