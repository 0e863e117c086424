"""Results of a search for scans: sources that can be read, failures of those that cannot, and notes.

Reads: nothing. Writes: nothing. Paths stay out of `repr`, so that no log shows a patient's name by accident.
`location` is the text that may be shown and recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import Failure, UnsafeId
from pipeline.formats import short_hash

MAX_ID_LENGTH = 128
"""Longest id, in characters; ids are folder names, and every file system accepts this length."""

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class LabelPart:
    """The binary mask of one structure.

    Attributes:
        value: Value of the structure in the label map, the same for all scans of a data set.
        name: Name of the structure.
        path: File of the mask: 0 outside, one other value inside.
    """

    value: int
    name: str
    path: Path = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """A label map that belongs to a scan, in one file or as a binary mask for each structure.

    Attributes:
        name: Name of the map in the store ("label", "seg", ...).
        path: Its file; with `parts`, the first of them.
        value_names: {value: name} of every value that may occur, if declared by a file or the manifest.
        location: Its name in messages; empty: the location of its scan, with `name`.
        format: "map" for an image file of label values; "dicom-seg" or "rtstruct" for a file of structures.
        structures: (number in the file, name) of each structure that belongs to the scan; empty for a map.
        parts: The masks that it is made of, by rising value; those that overlap go to further maps.
        shared: Whether it belongs to all scans of a case: it is left out, with a note, where it lies on
            another grid.
    """

    name: str
    path: Path = field(repr=False)
    value_names: Mapping[int, str] | None
    location: str = ""
    format: Literal["map", "dicom-seg", "rtstruct"] = "map"
    structures: tuple[tuple[int, str], ...] = ()
    parts: tuple[LabelPart, ...] = ()
    shared: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Its file, or those of all its parts."""
        return tuple(part.path for part in self.parts) or (self.path,)


@dataclass(frozen=True, kw_only=True)
class SetItem:
    """Position of a scan in an .npz set (`npz_sets`).

    Attributes:
        array: Name of the array in the .npz file.
        index: Index in the array, from 0.
        shape_zyx: Voxels of the scan.
    """

    array: str
    index: int
    shape_zyx: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One scan to read.

    Attributes:
        scan_id: Letters, digits, dot, underscore, hyphen; at most 128; starts with a letter or digit.
        format: "file", "dicom" for a series of slices or a multi-frame file, "set" for one of many in a file.
        files: The file (a header with its data file; a set), or the DICOM slices from first to last.
        labels: Label maps on the scan's grid.
        modality: "ct", "mr" or "pet" from the manifest, else None.
        dataset: Name of its data set.
        split: "train", "test", ... or "".
        location: Its name in messages and records: relative to the searched folder, without a patient's name.
        frame: Index of the frame of a 4D file, from 0.
        stack: Index of the stack in a multi-frame DICOM file that holds several, from 0.
        later_rules: Rules for reading its voxels that were added after the first version of the ingest
            ("suv"). They enter its digest, so that scans stored before are read again, and no others.
        item: Position in a set.
        classes: Class of the scan as a whole: one class, or "0" or "1" for each of several; empty if unknown.
        case: Patient or study that it is of; scans of one case stay together in splits. Empty: the scan
            alone.
    """

    scan_id: str
    format: Literal["file", "dicom", "set"]
    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[LabelSource, ...] = ()
    modality: str | None = None
    dataset: str = ""
    split: str = ""
    location: str
    frame: int | None = None
    stack: int | None = None
    later_rules: tuple[str, ...] = ()
    item: SetItem | None = None
    classes: tuple[str, ...] = ()
    case: str = ""

    def __post_init__(self) -> None:
        check_scan_id(self.scan_id)
        if not self.files:
            raise ValueError(f"source {self.scan_id} has no files")
        if (self.format == "set") != (self.item is not None):
            raise ValueError(f"source {self.scan_id}: a scan of a set, and no other, has an item")


SourceFailure = Failure
"""Its name in older versions."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Result of a search. Every scan_id occurs once, among sources and failures together.

    Attributes:
        sources: Scans to read, sorted by id.
        failures: Scans that cannot be read, sorted by id.
        notes: Rules applied and files left out, for the user.
    """

    sources: tuple[Source, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def check_scan_id(scan_id: str) -> str:
    """Return the id if it is safe.

    Raises:
        UnsafeId: It is empty, too long, or holds anything but letters, digits, dot, underscore and hyphen.
    """
    if not scan_id:
        what = "the id is empty"
    elif len(scan_id) > MAX_ID_LENGTH:
        what = f"the id has {len(scan_id)} characters, at most {MAX_ID_LENGTH} are allowed"
    elif not _SAFE_ID.fullmatch(scan_id):
        what = f"the id {scan_id!r} is no plain name"
    else:
        return scan_id
    raise UnsafeId(
        what,
        path=None,
        remedy="Use letters, digits, '.', '_' and '-', beginning with a letter or digit (no '/', no '..')",
    )


def id_from_parts(parts: Iterable[str]) -> str:
    """Return a safe id from the parts of a relative path: joined by '_', other characters replaced by '-'."""
    joined = "_".join(parts)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", joined).lstrip("._-").rstrip("-")
    if not plain:
        return f"scan-{short_hash(joined)}"
    if len(plain) > MAX_ID_LENGTH:
        return f"{plain[: MAX_ID_LENGTH - 9]}-{short_hash(joined)}"
    return plain


def distinct_ids(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return an id for each key (a location): the wanted one, with a short hash if several keys want it.

    All colliding keys get a hash of the key, so that no id depends on the order of the keys.

    Args:
        wanted: Wanted id of each key.
    """
    times: dict[str, int] = {}
    for scan_id in wanted.values():
        times[scan_id] = times.get(scan_id, 0) + 1
    return {
        key: scan_id if times[scan_id] == 1 else f"{scan_id[: MAX_ID_LENGTH - 9]}-{short_hash(key)}"
        for key, scan_id in wanted.items()
    }
