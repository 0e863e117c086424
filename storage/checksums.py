"""Checksums inside small JSON files: a flipped bit is an error, not another value. No I/O.

    a document   "checksum": sha256 of the document without it, as `digest_of` counts
    a line       {"checksum":"9c1f03aa",...}: CRC-32 of the line without it

Documents and lines of older versions have none and are accepted. Other readers of JSON see one more key.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final

from storage.layout import digest_of

CHECKSUM: Final = "checksum"
"""Name of the checksum; in a line it comes first."""

_START: Final = b'{"checksum":"'
_LENGTH: Final = len(_START) + 10
"""Bytes of a line up to the end of its checksum, with the quote and comma after its 8 hex digits."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with its checksum."""
    return {**document, CHECKSUM: digest_of(dict(document))}


def unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without its checksum; raises ValueError if the checksum does not fit."""
    rest = {name: value for name, value in document.items() if name != CHECKSUM}
    if document.get(CHECKSUM, "") not in ("", digest_of(rest)):
        raise ValueError("its checksum is not that of what was written")
    return rest


def is_sealed(line: bytes) -> bool:
    """Whether a line has a checksum."""
    return line.startswith(_START)


def sealed_line(line: bytes) -> bytes:
    """Return a JSON object that is one line, with its checksum; a newline at the end does not count."""
    return _start_of(line.rstrip(b"\n")) + line[1:]


def unsealed_line(line: bytes) -> bytes:
    """Return a line (no newline at its end) without its checksum; raises ValueError if it does not fit."""
    if not is_sealed(line):
        return line
    rest = b"{" + line[_LENGTH:]
    if line[:_LENGTH] != _start_of(rest):
        raise ValueError("its checksum is not that of what was written")
    return rest


def _start_of(line: bytes) -> bytes:
    return b'%s%08x",' % (_START, zlib.crc32(line))
