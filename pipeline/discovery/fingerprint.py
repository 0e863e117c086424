"""What a source is made of: a digest of its content, and a cheap look at whether its files changed.

*Reads*: files. *Writes*: text and numbers that a ledger keeps.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.discovery.sources import Source
from pipeline.formats import os_error, read_set_image

_CHUNK_BYTES = 1 << 20


def source_digest(source: Source) -> str:
    """SHA-256 over the bytes of image and labels, and over every choice made for them.

    Names of files do not count; dataset, split and classes do, for they are stored too.

    Raises:
        UnreadableFile: A file cannot be read.
        CorruptImage: A set is damaged.
    """
    digest = hashlib.sha256(json.dumps(_choices(source), sort_keys=True).encode())
    if source.item is not None:  # one of many in a file: only its own voxels count
        item = source.item
        image = read_set_image(source.files[0], item.array, item.index, shown=source.location)
        digest.update(f"{image.dtype.str} {image.shape}".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    for path in (*source.files, *(label.path for label in source.labels)):
        digest.update(_file_digest(path, source.location))
    return digest.hexdigest()


def choices_digest(source: Source) -> str:
    """SHA-256 over every choice made for the files of a source, without a look into them.

    With an equal `source_stat` and an equal `choices_digest`, `source_digest` is equal too.
    """
    return hashlib.sha256(json.dumps(_choices(source), sort_keys=True).encode()).hexdigest()


def source_stat(source: Source) -> list[tuple[str, int, int]]:
    """(what, size in bytes, mtime in ns) of the image and of each label; equal lists mean unchanged files.

    A series of many files is one entry: the sizes' sum, the latest time, and in `what` a short digest over
    all of them, so that no slice can change unseen.

    Raises:
        UnreadableFile: A file is missing.
    """
    entries = [_stat(source.files, source.location, source.location)]
    entries.extend(
        _stat((label.path,), f"{source.location} (label {label.name})", source.location)
        for label in source.labels
    )
    return entries


def _choices(source: Source) -> dict[str, Any]:
    later: dict[str, Any] = {"classes": list(source.classes)} if source.classes else {}  # else as ever
    if source.item is not None:
        later["item"] = [source.item.array, source.item.index]
    return later | {
        "format": source.format,
        "modality": source.modality,
        "dataset": source.dataset,
        "split": source.split,
        "frame": source.frame,
        "num_files": len(source.files),
        "labels": [
            {"name": label.name, "value_names": sorted((label.value_names or {}).items())}
            for label in source.labels
        ],
    }


def _stat(paths: tuple[Path, ...], what: str, shown: str) -> tuple[str, int, int]:
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise os_error(error, shown=shown) from None
        found.append((path.name, status.st_size, status.st_mtime_ns))
    size, latest = sum(f[1] for f in found), max(f[2] for f in found)
    if len(found) == 1:
        return (what, size, latest)
    together = hashlib.sha256(repr([f[1:] for f in found]).encode()).hexdigest()[:16]
    return (f"{what} ({len(found)} files, {together})", size, latest)


def _file_digest(path: Path, shown: str) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise os_error(error, shown=shown) from None
    return digest.digest()
