"""Search for DICOM series among files.

*Reads*: DICOM headers. *Writes*: series with their slices in order, or the reason why a series cannot be
read, and notes. The folder of a series is the one that contains all its files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import NotAnImage, ScanError
from pipeline.formats import (
    Header,
    Identity,
    SeriesRules,
    Stack,
    check_readable,
    order_slices,
    os_error,
    read_header,
    short_hash,
    split_series,
)

_NO_SCAN = frozenset(
    [
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTIMAGE",
        "RTRECORD",
        "SEG",
        "SR",
        "PR",
        "KO",
        "REG",
        "DOC",
        "AU",
        "SM",
        "ECG",
        "PLAN",
    ]
)
"""Modalities that are not scans: structure sets, doses, segmentations, reports."""


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """One series to read, or the error of one that cannot be read.

    Attributes:
        folder: Folder that contains all its files, relative to the root.
        suffix: Distinguishes series in the same folder ("s3"); "" if there is only one.
        files: Slices from first to last.
        frame: Index of the frame of a 4D multi-frame file.
        identity: What identifies its patient.
        series_uid: Series instance UID.
        error: Why it cannot be read.
    """

    folder: Path = field(repr=False)
    suffix: str
    files: tuple[Path, ...] = field(repr=False, default=())
    frame: int | None = None
    identity: Identity | None = None
    series_uid: str = ""
    error: ScanError | None = None


@dataclass(frozen=True, kw_only=True)
class DicomFind:
    """Result of a search for DICOM series.

    Attributes:
        series: All series.
        patients: Patients, each with the relative folder of a file; used to remove names from paths.
        notes: Notes for the user.
    """

    series: tuple[DicomSeries, ...]
    patients: frozenset[tuple[Path, Identity]]
    notes: tuple[str, ...]


def find_dicom(root: Path, relative: Sequence[Path], rules: SeriesRules) -> DicomFind:
    """Return the series among DICOM files.

    Args:
        root: Folder that was searched.
        relative: The files, relative to `root`.
        rules: How regular series must be.
    """
    groups: dict[str, list[Header]] = {}
    broken: dict[Path, list[tuple[Path, ScanError]]] = {}
    patients: set[tuple[Path, Identity]] = set()
    left_out: Counter[str] = Counter()
    for path in relative:
        try:
            check_readable(root / path, shown="")
            header = read_header(root / path)
        except ScanError as error:
            broken.setdefault(path.parent, []).append((path, error))
            continue
        except OSError as error:
            broken.setdefault(path.parent, []).append((path, os_error(error, shown="")))
            continue
        patients.add((path.parent, header.identity))
        if header.modality in _NO_SCAN or not header.has_pixels:
            left_out[header.modality or "no pixels"] += 1
        elif header.is_localizer:
            left_out["localizer"] += 1
        else:
            groups.setdefault(header.series_uid or f"folder {path.parent}", []).append(header)
    found = [
        _series(root, uid, stack, rules)
        for uid, headers in sorted(groups.items())
        for stack in split_series(headers)
    ]
    found.extend(_broken(folder, files) for folder, files in sorted(broken.items()))
    notes = []
    if left_out:
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        notes.append(f"{sum(left_out.values())} DICOM files that are no scans left out: {listed}")
    copies = sum(len(g) for g in groups.values()) - sum(
        len({h.sop_uid or str(h.path) for h in g}) for g in groups.values()
    )
    if copies:
        notes.append(f"{copies} DICOM files are copies of others (same SOP instance UID), each counted once")
    return DicomFind(series=_with_suffixes(found), patients=frozenset(patients), notes=tuple(notes))


def _series(root: Path, uid: str, stack: Stack, rules: SeriesRules) -> DicomSeries:
    """Return the series of a stack with its slices in order, or with the reason why that is impossible."""
    folder = Path(os.path.commonpath([h.path.parent for h in stack.headers])).relative_to(root)
    first = stack.headers[0]
    number = "" if first.series_number is None else str(first.series_number)
    suffix = (f"s{number}" if number else f"s-{short_hash(uid, 6)}") + (
        "" if stack.part is None else f"-{stack.part + 1}"
    )
    files: tuple[Path, ...] = ()
    error = stack.problem
    if error is None:
        try:
            files = tuple(h.path for h in order_slices(stack.headers, rules).headers)
        except ScanError as problem:
            error = problem
    return DicomSeries(
        folder=folder,
        suffix=suffix,
        files=files,
        frame=rules.frame if first.num_frames > 1 else None,
        identity=first.identity,
        series_uid=uid,
        error=error,
    )


def _broken(folder: Path, files: Sequence[tuple[Path, ScanError]]) -> DicomSeries:
    """Return one failure for all files of a folder that are not readable DICOM."""
    reasons = Counter(error.reason for _, error in files)
    reason, _ = reasons.most_common(1)[0]
    error = NotAnImage(
        f"{len(files)} file{'s' if len(files) > 1 else ''} named like DICOM cannot be read: {reason}",
        path=None,
        remedy=files[0][1].remedy,
    )
    return DicomSeries(folder=folder, suffix="unreadable", error=error)


def _with_suffixes(found: Sequence[DicomSeries]) -> tuple[DicomSeries, ...]:
    """Remove the suffix of series alone in their folder; add a short hash where suffixes are equal."""
    in_folder = Counter(s.folder for s in found if s.suffix != "unreadable")
    same = Counter((s.folder, s.suffix) for s in found)
    named = []
    for series in found:
        suffix = series.suffix
        if suffix != "unreadable" and in_folder[series.folder] == 1:
            suffix = ""
        elif same[(series.folder, suffix)] > 1:
            suffix = f"{suffix}-{short_hash(series.series_uid, 6)}"
        named.append(
            DicomSeries(
                folder=series.folder,
                suffix=suffix,
                files=series.files,
                frame=series.frame,
                identity=series.identity,
                series_uid=series.series_uid,
                error=series.error,
            )
        )
    return tuple(named)
