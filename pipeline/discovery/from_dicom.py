"""Search for DICOM series among files.

*Reads*: DICOM headers, and pixels of slices that could be copies. *Writes*: series with their slices in
order, or the reason why a series cannot be read; label files; and notes. The folder of a series is the one
that contains all its files.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import NotAnImage, ScanError
from pipeline.formats import (
    Header,
    Identity,
    LabelHeader,
    SeriesRules,
    Stack,
    check_readable,
    drop_copies,
    label_kind,
    order_slices,
    os_error,
    read_header,
    read_label_header,
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
        study_uid: Study instance UID.
        frame_of_reference: Frame of reference UID.
        instances: SOP instances of its images.
        stack: Index of the stack in a multi-frame file that holds several.
        later_rules: Rules for reading its voxels that were added after the first version of the ingest.
        error: Why it cannot be read.
    """

    folder: Path = field(repr=False)
    suffix: str
    files: tuple[Path, ...] = field(repr=False, default=())
    frame: int | None = None
    identity: Identity | None = None
    series_uid: str = ""
    study_uid: str = ""
    frame_of_reference: str = ""
    instances: frozenset[str] = field(repr=False, default=frozenset())
    stack: int | None = None
    later_rules: tuple[str, ...] = ()
    error: ScanError | None = None


@dataclass(frozen=True, kw_only=True)
class DicomFind:
    """Result of a search for DICOM series.

    Attributes:
        series: All series.
        labels: Segmentations and structure sets; copies of a file count once.
        patients: Patients, each with the relative folder of a file; used to remove names from paths.
        notes: Notes for the user.
    """

    series: tuple[DicomSeries, ...]
    labels: tuple[LabelHeader, ...]
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
    labels: list[LabelHeader] = []
    broken: dict[Path, list[tuple[Path, ScanError]]] = {}
    patients: set[tuple[Path, Identity]] = set()
    left_out: Counter[str] = Counter()
    for path in relative:
        try:
            header, label = _read(root / path)
        except ScanError as error:
            broken.setdefault(path.parent, []).append((path, error))
            continue
        patients.add((path.parent, header.identity))
        if label is not None:
            _add_label(labels, label)
        elif header.modality in _NO_SCAN or not header.has_pixels:
            left_out[header.modality or "no pixels"] += 1
        elif header.is_localizer:
            left_out["localizer"] += 1
        else:
            groups.setdefault(header.series_uid or f"folder {path.parent}", []).append(header)
    found: list[DicomSeries] = []
    copies = 0
    for uid, headers in sorted(groups.items()):
        kept = _without_copies(headers)
        copies += len(headers) - len(kept)
        found.extend(_of_one_series(root, uid, kept, rules))
    found.extend(_broken(folder, files) for folder, files in sorted(broken.items()))
    notes = []
    if left_out:
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        notes.append(f"{sum(left_out.values())} DICOM files that are no scans left out: {listed}")
    if copies:
        notes.append(
            f"{copies} DICOM files are copies of others (same series, position and pixels), each counted once"
        )
    return DicomFind(
        series=_with_suffixes(found),
        labels=tuple(labels),
        patients=frozenset(patients),
        notes=tuple(notes),
    )


def _read(path: Path) -> tuple[Header, LabelHeader | None]:
    """Return the header of a file, and what it says of its structures if it holds labels.

    Raises:
        ScanError: It cannot be read.
    """
    try:
        check_readable(path, shown="")
        header = read_header(path)
        return header, read_label_header(path) if label_kind(header.sop_class) else None
    except ScanError:
        raise
    except OSError as error:
        raise os_error(error, shown="") from None


def _add_label(labels: list[LabelHeader], label: LabelHeader) -> None:
    """Append a label file unless one with its UID and bytes is there."""
    for known in labels:
        if known.sop_uid == label.sop_uid and filecmp.cmp(known.path, label.path, shallow=False):
            return
    labels.append(label)


def _without_copies(headers: Sequence[Header]) -> list[Header]:
    """Return the headers without copies; all of them if a file cannot be read, which is reported later."""
    try:
        return drop_copies(headers)
    except OSError:
        return list(headers)


def _of_one_series(
    root: Path, uid: str, headers: Sequence[Header], rules: SeriesRules
) -> Iterable[DicomSeries]:
    """Yield a scan for each stack of a series."""
    stacks = split_series(headers)
    in_file = Counter(stack.headers[0].path for stack in stacks if stack.headers[0].frames is not None)
    seen = Counter[Path]()
    for stack in stacks:
        path = stack.headers[0].path
        yield _series(root, uid, stack, rules, number=seen[path] if in_file[path] > 1 else None)
        seen[path] += 1


def _series(root: Path, uid: str, stack: Stack, rules: SeriesRules, *, number: int | None) -> DicomSeries:
    """Return the series of a stack with its slices in order, or with the reason why that is impossible.

    Args:
        root: Folder that was searched.
        uid: Series instance UID.
        stack: The slices.
        rules: How regular they must be.
        number: Index of the stack in its multi-frame file, if that holds several.
    """
    folder = Path(os.path.commonpath([h.path.parent for h in stack.headers])).relative_to(root)
    first = stack.headers[0]
    name = f"s-{short_hash(uid, 6)}" if first.series_number is None else f"s{first.series_number}"
    suffix = name + ("" if stack.part is None else f"-{stack.part + 1}")
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
        study_uid=first.study_uid,
        frame_of_reference=first.frame_of_reference,
        instances=frozenset(h.sop_uid for h in stack.headers if h.sop_uid),
        stack=number,
        later_rules=_later_rules(first),
        error=error,
    )


def _later_rules(header: Header) -> tuple[str, ...]:
    """Return the rules that change how a series is read since the first version of the ingest."""
    rules = []
    if header.modality == "PT" and dict(header.facts).get("Units") in ("BQML", "CNTS", "GML"):
        rules.append("suv")
    if len({frame.rescale for frame in header.frames or ()}) > 1:
        rules.append("rescale of frames")
    if len({frame.order for frame in header.frames or ()}) > 1:
        rules.append("order of frames")
    return tuple(rules)


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
        named.append(replace(series, suffix=suffix))
    return tuple(named)
