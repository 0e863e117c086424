"""Files that are whole by their checksum and size, and yet not what a reader of a store may decode."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from storage import CorruptScan, Scan, open_store
from storage.access import folder_of
from storage.reading.shards import ArrayLayout, ArrayReader, parse_layout

SHAPE = (4, 4, 4)
WHOLE = tuple(slice(0, size) for size in SHAPE)


def with_checksum(payload: bytes) -> bytes:
    return payload + google_crc32c.value(payload).to_bytes(4, "little")


def reader_of(folder: Path, data: bytes, *, chunk: int = 4, sharded: bool = False) -> ArrayReader:
    """A reader of an array of bytes whose only file holds `data`, as its COMMIT.json says."""
    (folder / "0").mkdir(exist_ok=True)
    (folder / "0" / "c.0.0.0").write_bytes(data)
    layout = ArrayLayout(shape=SHAPE, dtype=np.dtype("u1"), chunk_shape=(chunk,) * 3, sharded=sharded)
    scan = folder_of(folder, "")
    return ArrayReader(scan, "0", layout, num_bytes=len(data), where="scan x, 0")


def test_a_chunk_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    header = b"\x02\x01\x01\x01" + (63).to_bytes(4, "little") + bytes(8)
    with pytest.raises(CorruptScan, match=r"scan x, 0: c\.0\.0\.0 holds a chunk of another size"):
        reader_of(tmp_path, with_checksum(header)).read(WHOLE)


def test_a_chunk_that_does_not_decode_is_corrupt(tmp_path: Path) -> None:
    header = b"\xff\xff\xff\xff" + (64).to_bytes(4, "little") + b"\xff" * 8
    with pytest.raises(CorruptScan, match="does not decode"):
        reader_of(tmp_path, with_checksum(header)).read(WHOLE)


@pytest.mark.parametrize("length", [0, 4])
def test_a_file_without_room_for_its_checksum_ends_early(tmp_path: Path, length: int) -> None:
    with pytest.raises(CorruptScan, match="ends early"):
        reader_of(tmp_path, bytes(length)).read(WHOLE)


def test_a_shard_without_room_for_its_index_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(CorruptScan, match="too short for its index"):
        reader_of(tmp_path, bytes(131), chunk=2, sharded=True).read(WHOLE)  # 8 chunks: 8 * 16 + 4 bytes


@pytest.mark.parametrize(("offset", "size"), [(2**64 - 1, 2**64 - 1), (0, 11), (1, 10)])
def test_a_shard_whose_index_leads_beyond_its_chunks_lacks_some(
    tmp_path: Path, offset: int, size: int
) -> None:
    index = np.zeros((8, 2), "<u8")
    index[3] = offset, size
    data = bytes(10) + with_checksum(index.tobytes())
    with pytest.raises(CorruptScan, match="lacks chunks"):
        reader_of(tmp_path, data, chunk=2, sharded=True).read(WHOLE)


def image_metadata(scan: Scan) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((scan.path / "0" / "zarr.json").read_bytes())
    return document


def lose_shape(document: dict[str, Any]) -> None:
    del document["shape"]


def use_complex_numbers(document: dict[str, Any]) -> None:
    document["data_type"] = "complex64"


def use_another_codec(document: dict[str, Any]) -> None:
    document["codecs"][0]["configuration"]["codecs"][1]["name"] = "zstd"


def put_the_index_first(document: dict[str, Any]) -> None:
    document["codecs"][0]["configuration"]["index_location"] = "start"


def use_folders(document: dict[str, Any]) -> None:
    document["chunk_key_encoding"]["configuration"]["separator"] = "/"


def use_more_files(document: dict[str, Any]) -> None:
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = 64


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose_shape, "is not that of an array of the store"),
        (use_complex_numbers, "is not that of an array of the store"),
        (use_another_codec, "describes another layout"),
        (put_the_index_first, "describes another layout"),
        (use_folders, "describes another layout"),
        (use_more_files, "describes another layout"),
    ],
)
def test_an_array_of_another_layout_is_refused_by_its_metadata(
    store: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    document = image_metadata(open_store(store).scan("scan-1"))
    assert parse_layout(json.dumps(document).encode(), where="x").sharded
    change(document)
    with pytest.raises(CorruptScan, match=f"scan-1, 0: zarr.json {reason}"):
        parse_layout(json.dumps(document).encode(), where="scan-1, 0")


def test_a_file_replaced_between_two_reads_is_an_error(store: Path) -> None:
    scan = open_store(store).scan("scan-1")
    scan.image_codes()
    path = scan.path / "0" / "c.0.0.0"
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)  # the same bytes, but another file
    with pytest.raises(CorruptScan, match="was replaced after the scan was opened"):
        scan.image_codes()


def test_a_folder_that_is_gone_is_not_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    place = folder_of(folder, "")
    assert place.is_in_place()
    folder.rename(tmp_path / "elsewhere")
    assert not place.is_in_place()
