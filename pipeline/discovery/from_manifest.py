"""Search for the scans that a manifest lists.

*Reads*: the manifest, file status, JSON files of label names, DICOM headers. *Writes*: `Discovery`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.discovery.dicom_studies import cases, declared_label, pair_dicom_labels
from pipeline.discovery.folder_listing import walk
from pipeline.discovery.from_dicom import DicomSeries, find_dicom
from pipeline.discovery.label_names import find_value_names, read_value_names
from pipeline.discovery.manifest_table import Row, read_manifest
from pipeline.discovery.sources import Discovery, LabelSource, Source, check_scan_id
from pipeline.errors import DicomSeriesError, DuplicateId, Failure, ManifestError, ScanError
from pipeline.formats import (
    DICOM_SUFFIXES,
    SET_SUFFIX,
    Identity,
    Scrubber,
    SeriesRules,
    check_readable,
    companions,
    has_dicom_preamble,
    os_error,
    read_header,
    volume_suffix,
)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A row of the manifest, with its source or its error.

    Attributes:
        row: The row.
        relative: Path of the image, relative to the manifest.
        source: The scan.
        error: Why it cannot be used.
        patients: Patients in the DICOM files of the row, with their folders.
        own: Identity of the scan's patient.
        series: The DICOM series of the scan.
        notes: Notes about files left out, and about label names.
    """

    row: Row
    relative: Path = field(repr=False)
    source: Source | None = None
    error: ScanError | None = None
    patients: frozenset[tuple[Path, Identity]] = frozenset()
    own: Identity | None = None
    series: DicomSeries | None = None
    notes: tuple[str, ...] = ()


def discover_manifest(path: Path, rules: SeriesRules) -> Discovery:
    """Return the scans of a manifest; rows that cannot be used become failures.

    Args:
        path: The manifest.
        rules: How regular DICOM series must be.

    Raises:
        ManifestError: The manifest as a whole cannot be understood.
        UnreadableFile: It cannot be opened.
    """
    manifest = read_manifest(path)
    root = path.parent
    entries = [_entry(row, root, rules, default_dataset=path.stem) for row in manifest.rows]
    scrubber = Scrubber({patient for entry in entries for patient in entry.patients})
    entries = _refuse_duplicates(entries)
    sources, failures = [], []
    for entry, case in zip(entries, cases([entry.series for entry in entries]), strict=True):
        shown = scrubber.path(entry.relative, entry.own)
        if entry.error is not None:
            failures.append(
                Failure.of(
                    entry.error, scan_id=_failure_id(entry.row), location=f"{shown} (line {entry.row.number})"
                )
            )
        elif entry.source is not None:
            source = entry.source
            labels = tuple(_without_names(label, scrubber) for label in source.labels)
            sources.append(replace(source, location=shown, labels=labels, case=source.case or case))
    for number, reason in manifest.broken:
        error = ManifestError(
            f"line {number} of the manifest cannot be used: {reason}", path=None, remedy="Correct it"
        )
        failures.append(Failure.of(error, scan_id=f"manifest-line-{number}", location=path.name))
    return Discovery(
        sources=tuple(sorted(sources, key=lambda s: s.scan_id)),
        failures=tuple(sorted(_merge(failures), key=lambda f: f.scan_id)),
        notes=tuple(_notes(entries, manifest.unknown_columns, scrubber)),
    )


def _entry(row: Row, root: Path, rules: SeriesRules, *, default_dataset: str) -> _Entry:
    """Return the entry of one row."""
    relative = Path(os.path.relpath(root / row["image"], root)) if row["image"] else Path("-")
    entry = _Entry(row=row, relative=relative)
    try:
        check_scan_id(row["id"])
        if not row["image"]:
            raise ManifestError(
                "the image is empty", path=None, remedy="Name the scan's file or DICOM folder"
            )
        image = root / row["image"]
        if image.suffix.lower() == SET_SUFFIX:
            raise ManifestError(
                "a row is one scan, this .npz file can only be a set of many",
                path=None,
                remedy="Give the .npz file itself to `mass prepare`, in place of a manifest",
            )
        frame = rules.frame if row.frame is None else row.frame
        base = Source(
            scan_id=row["id"],
            format="file",
            files=(image,),
            modality=row.modality,
            dataset=row["dataset"] or default_dataset,
            split=row["split"],
            location="",
            frame=frame,
            classes=(row["class"],) if row["class"] else (),
            case=row["case"],
        )
        labels: tuple[LabelSource, ...] = ()
        if image.is_dir() and not volume_suffix(image.name):
            find = find_dicom(image, walk(image, recursive=True).dicom, replace(rules, frame=frame))
            entry = replace(entry, patients=_below(relative, find.patients), own=_own(find.series))
            series = _one_series(find.series, row["series"])
            entry, base = replace(entry, series=series), replace(_of_series(base, series), frame=series.frame)
            found, label_notes = pair_dicom_labels(find, image, Scrubber(find.patients))
            labels = found.get(find.series.index(series), ())
            entry = replace(entry, notes=(*find.notes, *(() if row["label"] else label_notes)))
        elif _is_dicom_file(image):
            check_readable(image, shown="")
            header = read_header(image)
            find = find_dicom(image.parent, [Path(image.name)], replace(rules, frame=frame))
            entry = replace(entry, patients=_below(relative.parent, find.patients), own=header.identity)
            series = _one_series(find.series, "")
            entry, base = replace(entry, series=series), _of_series(base, series)
        else:
            check_readable(image, shown="")
            base = replace(base, files=companions(image))
        if row["label"]:
            declared, note = _label(row, root, entry.series)
            entry, labels = replace(entry, notes=(*entry.notes, *note)), (declared,)
        return replace(entry, source=replace(base, labels=labels))
    except ScanError as error:
        return replace(entry, error=error)
    except OSError as error:  # such as of a folder that may not be entered
        return replace(entry, error=os_error(error, shown=""))


def _is_dicom_file(path: Path) -> bool:
    if volume_suffix(path.name):
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        return has_dicom_preamble(path)
    except OSError:
        return False


def _of_series(base: Source, series: DicomSeries) -> Source:
    """Return the source with the files of a series and the rules for reading them."""
    return replace(
        base,
        format="dicom",
        files=series.files,
        stack=series.stack,
        later_rules=series.later_rules,
    )


def _without_names(label: LabelSource, scrubber: Scrubber) -> LabelSource:
    """Return the label without patients' names of the whole manifest in its structures, nor a location."""
    if not label.structures:
        return label
    structures = tuple((number, scrubber.text(name)) for number, name in label.structures)
    return replace(label, structures=structures, location="")


def _label(row: Row, root: Path, series: DicomSeries | None) -> tuple[LabelSource, tuple[str, ...]]:
    """Return the row's label, and notes about its value names."""
    path = root / row["label"]
    check_readable(path, shown="", what="label file")
    if _is_dicom_file(path):
        return declared_label(path, series, Scrubber()), ()
    if row["label_names"]:
        file, _, key = row["label_names"].partition("#")
        names: dict[int, str] | None = read_value_names(root / file, key or None, shown=file)
        note = None
    else:
        names, note = find_value_names(path, root)
    return LabelSource(name="label", path=path, value_names=names), (note,) if note else ()


def _below(folder: Path, patients: frozenset[tuple[Path, Identity]]) -> frozenset[tuple[Path, Identity]]:
    """Return the patients with their folders relative to the manifest."""
    return frozenset((folder / subfolder, identity) for subfolder, identity in patients)


def _own(series: Sequence[DicomSeries]) -> Identity | None:
    return next((s.identity for s in series if s.identity is not None), None)


def _one_series(series: Sequence[DicomSeries], uid: str) -> DicomSeries:
    """Return the one series of a folder, or the one with the given UID.

    Raises:
        ScanError: There is no such series or more than one, or it cannot be read.
    """
    chosen = [s for s in series if not uid or s.series_uid == uid]
    if not chosen:
        raise DicomSeriesError(
            "the folder holds no DICOM series" + (" with this SeriesInstanceUID" if uid else ""),
            path=None,
            remedy="Name a folder with the slices of one series, or correct the `series` column",
        )
    broken = next((s for s in chosen if s.error is not None), None)
    if broken is not None and broken.error is not None:
        raise broken.error
    if len(chosen) > 1 and len({s.series_uid for s in chosen}) == 1:
        raise DicomSeriesError(
            f"a row must name one volume, this series holds {len(chosen)} stacks of different "
            "direction or pixel size",
            path=None,
            remedy="Give the folder itself to `mass prepare`: each stack becomes a scan of its own",
        )
    if len(chosen) > 1:
        raise DicomSeriesError(
            f"a row must name one series, the folder holds {len(chosen)}",
            path=None,
            remedy="Name a folder with one series, or give its SeriesInstanceUID in the column `series`",
        )
    return chosen[0]


def _refuse_duplicates(entries: Sequence[_Entry]) -> list[_Entry]:
    """Give an error to all rows that share an id; taking one of them would be an arbitrary choice."""
    rows: dict[str, list[int]] = {}
    for entry in entries:
        rows.setdefault(entry.row["id"], []).append(entry.row.number)
    checked = []
    for entry in entries:
        numbers = rows[entry.row["id"]]
        if len(numbers) > 1 and entry.row["id"]:
            listed = ", ".join(str(n) for n in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
            error = DuplicateId(
                f"{len(numbers)} scans claim the id {entry.row['id']!r} (lines {listed}); "
                "none of them is used",
                path=None,
                remedy="Give each row of the manifest its own id",
            )
            entry = replace(entry, error=error)
        checked.append(entry)
    return checked


def _failure_id(row: Row) -> str:
    """Return the row's id if it is safe; else an id with its line."""
    try:
        return check_scan_id(row["id"])
    except ScanError:
        return f"manifest-line-{row.number}"


def _merge(failures: Sequence[Failure]) -> list[Failure]:
    """Return one failure per id; rows with the same id are reported together, with all their locations."""
    by_id: dict[str, Failure] = {}
    for failure in failures:
        first = by_id.get(failure.scan_id)
        by_id[failure.scan_id] = (
            failure if first is None else replace(first, location=f"{first.location}, {failure.location}")
        )
    return list(by_id.values())


def _notes(entries: Sequence[_Entry], unknown: Sequence[str], scrubber: Scrubber) -> list[str]:
    notes = []
    num_labels = sum(1 for e in entries if e.source is not None and e.source.labels)
    if num_labels:
        notes.append(f"{num_labels} labels paired by the manifest")
    if unknown:
        notes.append(f"columns of the manifest not used: {', '.join(unknown)}")
    notes.extend(sorted({note for e in entries for note in e.notes}))
    named = sum(
        1
        for e in entries
        if e.source is not None and any(scrubber.holds_identity(e.row[column]) for column in ("id", "case"))
    )
    if named:
        notes.append(
            f"{named} ids or cases in the manifest hold what a DICOM header calls its patient; they "
            "are kept as given: "
            "change them if that is a real name"
        )
    return notes
