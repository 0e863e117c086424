"""Copies among DICOM files: the same slice with the same pixels, exported or copied twice.

*Reads*: headers, and the pixels of slices that lie at one position. *Writes*: the headers without copies.
Slices at one position with different pixels are kept: they are volumes of a 4D series, or an error of the
export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom

from pipeline.formats.dicom.headers import Header
from pipeline.formats.dicom.parsing import DAMAGED, quiet_pydicom
from pipeline.formats.dicom.values import find_text

_PIXEL_TAGS = [
    "PixelData",
    "BitsAllocated",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
]


def drop_copies(headers: Sequence[Header]) -> list[Header]:
    """Return the headers without copies of slices; of equal slices the first in the order of paths is kept.

    Two files are copies if their series, object class, position, direction, time and echo are equal, and all
    bytes of their pixels with slope and intercept. Only files that could be copies are read.

    Raises:
        OSError: A file cannot be read.
    """
    groups: dict[tuple[Any, ...], list[Header]] = {}
    for header in headers:
        groups.setdefault(_place(header), []).append(header)
    dropped: set[Path] = set()
    for group in groups.values():
        seen: set[str] = set()
        for header in sorted(group, key=lambda h: h.path) if len(group) > 1 else ():
            digest = _pixel_digest(header.path)
            if digest in seen:
                dropped.add(header.path)
            seen.add(digest)
    return [header for header in headers if header.path not in dropped]


def _place(header: Header) -> tuple[Any, ...]:
    """Return what copies have in common in their headers."""
    temporal, _, echo, trigger, _ = header.order
    frames = tuple(replace(frame, number=0) for frame in header.frames or ())
    position = None if header.position_xyz_mm is None else tuple(round(v, 3) for v in header.position_xyz_mm)
    unplaced = header.sop_uid if position is None and not frames else ""
    kind = (header.series_uid, header.sop_class, header.rows, header.columns, header.num_frames)
    place = (position, header.orientation, header.pixel_spacing_mm, frames, unplaced)
    return (*kind, *place, temporal, echo, trigger)


def _pixel_digest(path: Path) -> str:
    """Return a digest of a file's pixels and their scale; of the whole file if it cannot be parsed."""
    try:
        with quiet_pydicom():
            data: Any = pydicom.dcmread(path, specific_tags=list(_PIXEL_TAGS), force=False)
            texts = [find_text(data, tag) for tag in _PIXEL_TAGS[1:]]
            pixels = data.get("PixelData") or b""
    except DAMAGED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(texts).encode() + bytes(pixels)).hexdigest()
