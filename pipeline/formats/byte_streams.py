"""The bytes of a file in chunks, unzipped where they are zipped.

*Reads*: files. *Writes*: bytes, or a `CorruptImage` error where a gzip stream is damaged.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.errors import CorruptImage

CHUNK_BYTES = 1 << 20


def is_zipped(start: bytes) -> bool:
    """Whether a file's first bytes are those of a gzip stream."""
    return start[:2] == b"\x1f\x8b"


def chunks(path: Path, zipped: bool, shown: str) -> Iterator[bytes]:
    """Yield the file's bytes in chunks, uncompressed; verifies the end and checksum of a gzip stream.

    Raises:
        CorruptImage: The stream is damaged or ends early.
    """
    try:
        with path.open("rb") as raw:
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if zipped else raw
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        short = isinstance(error, EOFError)
        raise CorruptImage(
            "the gzip stream ends early, the file is cut short" if short else "the gzip stream is damaged",
            path=shown,
            remedy="Copy or download the file again",
        ) from None
