"""Types of the layouts: the files that a layout is given, and the scans that it finds.

Paths are relative to the searched folder, except in `LabelSource`. Nothing that a layout finds changes the id
of a scan: it is the path of its file, in every layout; only several scans of one file have a `part` besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.sources import LabelSource
from pipeline.errors import ScanError


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files below the searched folder that no layout has taken yet; lists are sorted.

    Attributes:
        root: The searched folder.
        volumes: Image files.
        tables: Files that describe data sets: dataset.json, participants.tsv, ...
    """

    root: Path = field(repr=False)
    volumes: tuple[Path, ...]
    tables: tuple[Path, ...] = ()

    def below(self, folder: Path) -> tuple[Path, ...]:
        """Return the image files in a folder and its subfolders."""
        depth = len(folder.parts)
        return tuple(path for path in self.volumes if path.parts[:depth] == folder.parts)

    def folders_with(self, table: str) -> tuple[Path, ...]:
        """Return the folders that hold a table of this name."""
        return tuple(path.parent for path in self.tables if path.name == table)


@dataclass(frozen=True, kw_only=True)
class LayoutScan:
    """A scan that a layout found.

    Attributes:
        image: Its file.
        labels: Its label maps, each with its location in messages left empty.
        modality: "ct", "mr", "pet", or None if the layout does not give it.
        split: "train", "test", ...; None: from the folders' names.
        case: Path that identifies its case, unique below the searched folder; None: the scan alone.
        dataset: Folder of its data set.
        group: Class of the scan as a whole; empty if unknown.
        frame: Volume of a 4D file, from 0.
        part: Name of this volume, where a file holds several scans.
    """

    image: Path
    labels: tuple[LabelSource, ...] = ()
    modality: str | None = None
    split: str | None = None
    case: Path | None = None
    dataset: Path = Path()
    group: str = ""
    frame: int | None = None
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class LayoutFailure:
    """A data set or file that a layout recognised and cannot read.

    Attributes:
        where: The file or folder.
        error: What must hold, what was found, what to do.
    """

    where: Path
    error: ScanError


@dataclass(frozen=True, kw_only=True)
class LayoutFind:
    """Result of a layout.

    Attributes:
        scans: The scans.
        taken: Files that are dealt with: scans, labels, and those left out with a note.
        notes: Notes for the user; no paths, which may hold a patient's name.
        failures: What cannot be read.
    """

    scans: tuple[LayoutScan, ...] = ()
    taken: frozenset[Path] = frozenset()
    notes: tuple[str, ...] = ()
    failures: tuple[LayoutFailure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A row of the table of layouts.

    Attributes:
        name: Its name on the command line.
        title: Its name in notes.
        wants: What it is recognised by, in words.
        find: Returns its result for some files; an empty one where it recognises nothing.
    """

    name: str
    title: str
    wants: str
    find: Callable[[Files], LayoutFind]


def together(finds: Iterable[LayoutFind]) -> LayoutFind:
    """Return several results as one."""
    scans: list[LayoutScan] = []
    taken: set[Path] = set()
    notes: list[str] = []
    failures: list[LayoutFailure] = []
    for find in finds:
        scans.extend(find.scans)
        taken |= find.taken
        notes.extend(find.notes)
        failures.extend(find.failures)
    return LayoutFind(
        scans=tuple(scans), taken=frozenset(taken), notes=tuple(notes), failures=tuple(failures)
    )
