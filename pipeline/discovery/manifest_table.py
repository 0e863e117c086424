"""Manifests: tables of scans, as CSV or JSONL.

*Reads*: one text file. *Writes*: rows. Columns (a CSV's first line, or the keys of each JSONL object):

    id           required; letters, digits, '.', '_', '-'
    image        required; a file, or a folder with one DICOM series; relative to the manifest
    label        a label map on the image's grid
    label_names  a JSON file with the name of each value, or FILE#KEY for one table of several
    modality     ct, mr (mri), pet (pt); empty: from DICOM, else guessed
    dataset      name of the data set; empty: the manifest's file name
    split        train, test, ...
    frame        index of the frame of a 4D image, from 0
    series       SeriesInstanceUID, if a DICOM folder holds several series
    class        class of the scan as a whole, for classification
    case         patient or study; all scans of one case are in the same part of a split

Other columns are noted and not used.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ManifestError, UnreadableFile
from pipeline.formats import parse_modality, refuse_special

COLUMNS = (
    "id",
    "image",
    "label",
    "label_names",
    "modality",
    "dataset",
    "split",
    "frame",
    "series",
    "class",
    "case",
)
"""Columns that a manifest may have; other columns are noted."""

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest; empty cells are empty strings.

    Attributes:
        number: Line of the file, from 1.
        cells: Text by column.
    """

    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    @property
    def modality(self) -> str | None:
        """Modality "ct", "mr" or "pet", or None if the cell is empty.

        Raises:
            ManifestError: The cell holds another word.
        """
        word = self["modality"]
        modality = parse_modality(word) if word else None
        if word and modality is None:
            raise ManifestError(
                f"the modality must be ct, mr or pet, got {word!r}",
                path=None,
                remedy="Correct the manifest's `modality` column, or leave the cell empty to have it guessed",
            )
        return modality

    @property
    def frame(self) -> int | None:
        """Index of the chosen frame, or None if the cell is empty.

        Raises:
            ManifestError: The cell does not hold a whole number from 0.
        """
        word = self["frame"]
        if word and not (word.isascii() and word.isdigit()):
            raise ManifestError(
                f"the frame must be a whole number from 0, got {word!r}",
                path=None,
                remedy="Correct the manifest's `frame` column",
            )
        return int(word) if word else None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a manifest.

    Attributes:
        rows: Rows that can be used.
        broken: (line, reason) of lines that cannot be used.
        unknown_columns: Columns that are not used.
    """

    rows: tuple[Row, ...]
    broken: tuple[tuple[int, str], ...]
    unknown_columns: tuple[str, ...]


def read_manifest(path: Path) -> Manifest:
    """Return the rows of a manifest.

    Raises:
        ManifestError: The file as a whole is not a manifest (no id or image column, no text).
        UnreadableFile: It cannot be opened.
    """
    refuse_special(path, shown=path.name, what="manifest")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableFile(
            f"the manifest cannot be opened ({error.strerror})", path=path.name, remedy="Check its path"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            "the manifest is no UTF-8 text", path=path.name, remedy="Save it as CSV or JSONL in UTF-8"
        ) from error
    lines = _json_lines if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_lines
    rows, broken, columns = [], [], set[str]()
    for number, cells in lines(text, path):
        if isinstance(cells, str):
            broken.append((number, cells))
        elif any(cells.values()):
            rows.append(Row(number=number, cells=cells))
            columns.update(cells)
    if not rows and not broken:
        raise ManifestError(
            "the manifest has no rows", path=path.name, remedy="Add one line per scan: id,image"
        )
    missing = [column for column in ("id", "image") if column not in columns]
    if missing and rows:
        raise ManifestError(
            f"the manifest must have the columns id and image, it lacks {' and '.join(missing)}",
            path=path.name,
            remedy=f"Known columns: {', '.join(COLUMNS)}",
        )
    return Manifest(
        rows=tuple(rows), broken=tuple(broken), unknown_columns=tuple(sorted(columns - set(COLUMNS)))
    )


def _csv_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line number and the cells of each CSV line, or the reason why it cannot be used."""
    first = text.split("\n", 1)[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if len(set(header)) != len(header):
                    raise ManifestError(
                        "two columns of the manifest have one name",
                        path=path.name,
                        remedy="Rename one of them",
                    )
                continue
            if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                yield reader.line_num, f"it has {len(cells)} cells under {len(header)} columns"
                continue
            yield (
                reader.line_num,
                {c: v.strip() for c, v in zip(header, cells, strict=False)}
                | dict.fromkeys(header[len(cells) :], ""),
            )
    except csv.Error as error:
        raise ManifestError(
            f"the manifest is no CSV ({error})", path=path.name, remedy="Save it again"
        ) from error


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line number and the cells of each JSONL line, or the reason why it cannot be used."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except ValueError:
            yield number, "it is no JSON"
            continue
        if not isinstance(value, dict):
            yield number, "it is no JSON object"
            continue
        yield number, {str(k).lower(): "" if v is None else str(v).strip() for k, v in value.items()}
