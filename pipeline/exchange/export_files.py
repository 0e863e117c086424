"""Files of an export: each is complete or absent; a folder that is no export is never written into.

*Reads*: arrays (z, y, x) with their grid, text. *Writes*: NIfTI files, text files, `export.json`. The same
input gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportRefused
from pipeline.volumes import Grid

MARK = "export.json"
"""File that marks a folder as an export, with its kind."""

_PART = ".part-"
"""Beginning of the names of files that are being written."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's world runs to the right and the front, ours to the left and the back."""

_GZIP_LEVEL = 4

nib: Any = nibabel
"""nibabel without types."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@contextmanager
def being_written(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file is renamed to `path` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(_PART + path.name)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Make a folder for an export, or continue in the one that an export of the same kind has begun.

    Raises:
        ExportRefused: The folder holds something else.
    """
    kind = about["format"]
    if folder.exists() and not folder.is_dir():
        raise ExportRefused(f"{folder}: a file is in its place. Choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            before = json.loads((folder / MARK).read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        if before != kind:
            what = f"an export of format {before}" if before else "not an export of `mass export`"
            raise ExportRefused(f"{folder}: {what}, and not empty. Choose another folder")
    write_json(folder / MARK, about)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with being_written(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: Iterable[Sequence[object]], *, delimiter: str = ",") -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_volume(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write one volume as .nii.gz; bool becomes uint8.

    Args:
        path: The file.
        array: (z, y, x) uint8, uint16, int16 or float32.
        grid: Its grid.
    """
    _write_nifti(path, [array], 1, array.dtype, grid, four_axes=False)


def write_stack(path: Path, volumes: Iterable[NDArray[np.bool_]], number: int, grid: Grid) -> None:
    """Write masks as one 4D .nii.gz of uint8, one after the other.

    Args:
        path: The file.
        volumes: bool (z, y, x) each.
        number: How many there are.
        grid: Grid of all of them.
    """
    _write_nifti(path, volumes, number, np.dtype(np.bool_), grid, four_axes=True)


def _write_nifti(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    number: int,
    dtype: np.dtype[Any],
    grid: Grid,
    *,
    four_axes: bool,
) -> None:
    """Write a header and volumes; in the file, as in memory, x runs fastest."""
    kind = np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("<")
    affine = _TO_RAS @ grid.affine
    header: Any = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(kind)
    header.set_data_shape((*grid.shape_zyx[::-1], *([number] if four_axes else [])))
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = 1, 0, 352, b"n+1"
    with (
        being_written(path) as part,
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as file,
    ):
        file.write(header.binaryblock)
        file.write(b"\0" * 4)  # no extension
        for volume in volumes:
            file.write(np.ascontiguousarray(volume, dtype=kind).data)


def safe_names(names: Sequence[str]) -> list[str]:
    """Return different names that are safe as file names: other characters become "_"."""
    taken: set[str] = set()
    safe = []
    for name in names:
        base = _UNSAFE.sub("_", name).strip("._") or "mask"
        chosen, number = base, 1
        while chosen.lower() in taken:
            number += 1
            chosen = f"{base}-{number}"
        taken.add(chosen.lower())
        safe.append(chosen)
    return safe


def remove_parts(folder: Path) -> None:
    """Remove incomplete files of an export that was killed."""
    for path in folder.rglob(_PART + "*"):
        path.unlink()
