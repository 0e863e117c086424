"""Digests of a source's content, and a fast check whether its files changed.

*Reads*: files. *Writes*: text and numbers that the ledger keeps.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.discovery.sources import LabelSource, Source
from pipeline.formats import os_error, pair_of, read_set_image

_CHUNK_BYTES = 1 << 20


def source_digest(source: Source) -> str:
    """Return a SHA-256 of the bytes of image and labels, and of all choices made for them.

    File names do not enter; dataset, split, case and classes do, since they are stored too.

    Raises:
        UnreadableFile: A file cannot be read.
        CorruptImage: A set is damaged.
    """
    digest = hashlib.sha256(json.dumps(_choices(source), sort_keys=True).encode())
    if source.item is not None:  # one of many images in a file: only its own voxels enter
        item = source.item
        image = read_set_image(source.files[0], item.array, item.index, shown=source.location)
        digest.update(f"{image.dtype.str} {image.shape}".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    labels = (path for label in source.labels for path in _label_files(label))
    for path in (*source.files, *labels):
        digest.update(_file_digest(path, source.location))
    return digest.hexdigest()


def choices_digest(source: Source) -> str:
    """Return a SHA-256 of all choices made for the files of a source; no file is read.

    If `source_stat` and `choices_digest` are unchanged, `source_digest` is unchanged too.
    """
    return hashlib.sha256(json.dumps(_choices(source), sort_keys=True).encode()).hexdigest()


def source_stat(source: Source) -> list[tuple[str, int, int]]:
    """Return the size and time of the image and of each label; equal lists mean unchanged files.

    A series of many files is one entry: the sum of the sizes, the latest time, and in its text a short digest
    of all sizes and times, so that a change of any slice is seen.

    Returns:
        (text, size in bytes, mtime in ns) of each.

    Raises:
        UnreadableFile: A file is missing.
    """
    entries = [_stat(source.files, source.location, source.location)]
    entries.extend(
        _stat(_label_files(label), f"{source.location} (label {label.name})", source.location)
        for label in source.labels
    )
    return entries


def _choices(source: Source) -> dict[str, Any]:
    # A source without classes, case or item has the digest that it had before these were added.
    later: dict[str, Any] = {"classes": list(source.classes)} if source.classes else {}
    if source.case:
        later["case"] = source.case
    if source.item is not None:
        later["item"] = [source.item.array, source.item.index]
    if source.stack is not None:
        later["stack"] = source.stack
    if source.later_rules:
        later["later_rules"] = list(source.later_rules)
    return later | {
        "format": source.format,
        "modality": source.modality,
        "dataset": source.dataset,
        "split": source.split,
        "frame": source.frame,
        "num_files": len(source.files),
        "labels": [
            {"name": label.name, "value_names": sorted((label.value_names or {}).items())}
            | ({"format": label.format, "structures": label.structures} if label.structures else {})
            | ({"parts": [[part.value, part.name] for part in label.parts]} if label.parts else {})
            | ({"shared": True} if label.shared else {})
            for label in source.labels
        ],
    }


def _label_files(label: LabelSource) -> tuple[Path, ...]:
    """Return the files of a label map, with the second one of a pair."""
    return tuple(file for path in label.files for file in pair_of(path))


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
