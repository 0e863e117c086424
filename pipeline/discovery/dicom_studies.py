"""Pairing within DICOM studies: labels with their series, series with their patient.

*Reads*: nothing. *Writes*: label sources by series, cases, and notes.

A structure of a DICOM-SEG or RTSTRUCT file belongs to

    1. the series that holds an image on which it was drawn (referenced SOP instances); else
    2. the series that the file names (SeriesInstanceUID); else
    3. where the file names neither, the only series with its frame of reference.

A file none of whose structures belongs to a series is noted. A case is the patient (PatientID), or the study
where the id is missing or says nothing ("ANONYMOUS"). It is written as a hash of the first StudyInstanceUID
of the patient in the order of texts: a hash of the id itself could be reversed by trying all short ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.discovery.from_dicom import DicomFind, DicomSeries
from pipeline.discovery.sources import LabelSource
from pipeline.formats import DicomStructure, LabelHeader, Scrubber, read_label_header, short_hash

_MAP_NAMES = {"dicom-seg": "seg", "rtstruct": "rtstruct"}
"""Name of the label map of each kind of file."""

_KIND_NAMES = {"dicom-seg": "DICOM-SEG", "rtstruct": "RTSTRUCT"}


def pair_dicom_labels(
    find: DicomFind, root: Path, scrubber: Scrubber
) -> tuple[dict[int, tuple[LabelSource, ...]], list[str]]:
    """Return the labels of each series, by its index in `find.series`, and notes.

    Args:
        find: Series and label files.
        root: Folder that was searched.
        scrubber: Removes patients' names from the names of structures.
    """
    of_series: dict[int, list[LabelSource]] = {}
    orphans: list[str] = []
    used = Counter[str]()
    for header in sorted(find.labels, key=lambda h: (h.kind, str(h.path))):
        shown = scrubber.path(header.path.relative_to(root))
        owners = _owners(header, find.series)
        for index, structures in sorted(owners.items()):
            source = label_source(header, structures, scrubber, location=shown)
            of_series.setdefault(index, []).append(source)
        if owners:
            used[_KIND_NAMES[header.kind]] += 1
        lost = [s for s in header.structures if not any(s in owned for owned in owners.values())]
        if lost or not header.structures:
            what = "no structure" if not header.structures else f"{len(lost)} structures of series not here"
            orphans.append(f"{shown} ({what})")
    notes = [f"{count} {kind} files paired with the series they refer to" for kind, count in used.items()]
    if orphans:
        more = f" and {len(orphans) - 5} more" if len(orphans) > 5 else ""
        notes.append(
            f"{len(orphans)} DICOM label files hold structures that belong to no series found here, "
            f"left out: {', '.join(orphans[:5])}{more}; add the series that they were drawn on, "
            "or pair them in a manifest"
        )
    return {index: distinct_names(labels) for index, labels in of_series.items()}, notes


def label_source(
    header: LabelHeader, structures: Iterable[DicomStructure], scrubber: Scrubber, *, location: str = ""
) -> LabelSource:
    """Return a label file, or some of its structures, as the label of a scan."""
    return LabelSource(
        name=_MAP_NAMES[header.kind],
        path=header.path,
        value_names=None,
        location=location,
        format=header.kind,
        structures=tuple((s.number, scrubber.text(s.name)) for s in structures),
    )


def distinct_names(labels: Sequence[LabelSource]) -> tuple[LabelSource, ...]:
    """Return the labels of one scan with distinct names: a second "seg" becomes "seg-2"."""
    times = Counter[str]()
    named = []
    for label in labels:
        times[label.name] += 1
        number = times[label.name]
        named.append(label if number == 1 else replace(label, name=f"{label.name}-{number}"))
    return tuple(named)


def _owners(header: LabelHeader, series: Sequence[DicomSeries]) -> dict[int, list[DicomStructure]]:
    """Return the structures of a label file that belong to each series, by the series' index."""
    named = [i for i, one in enumerate(series) if one.series_uid and one.series_uid in header.series]
    same_frame = [
        i
        for i, one in enumerate(series)
        if one.frame_of_reference and one.frame_of_reference in header.frames_of_reference
    ]
    owners: dict[int, list[DicomStructure]] = {}
    for structure in header.structures:
        found = [i for i, one in enumerate(series) if structure.instances & one.instances] or named
        if not found and not header.series and not structure.instances and len(same_frame) == 1:
            found = same_frame
        for index in found:
            owners.setdefault(index, []).append(structure)
    return owners


def declared_label(path: Path, series: DicomSeries | None, scrubber: Scrubber) -> LabelSource:
    """Return the label of a scan that a manifest pairs with a DICOM-SEG or RTSTRUCT file.

    All structures are taken if none refers to the scan: the manifest has priority, and the grids are
    compared.

    Args:
        path: The label file.
        series: The scan, if it is DICOM.
        scrubber: Removes patients' names from the names of structures.

    Raises:
        NotAnImage: It is neither of them.
        OSError: It cannot be read.
    """
    header = read_label_header(path)
    owned = {} if series is None else _owners(header, [series])
    return label_source(header, owned.get(0) or header.structures, scrubber)


def cases(series: Sequence[DicomSeries | None]) -> list[str]:
    """Return the case of each series: "" for a patient's only one, and for those without a study.

    Args:
        series: Series, with None where there is none.
    """
    keys = [_patient(one) for one in series]
    times = Counter(key for key in keys if key)
    studies: dict[str, set[str]] = {}
    for key, one in zip(keys, series, strict=True):
        if one is not None and one.study_uid:
            studies.setdefault(key, set()).add(one.study_uid)
    names: Mapping[str, str] = {key: f"case-{short_hash(min(uids), 12)}" for key, uids in studies.items()}
    return [names.get(key, "") if times[key] > 1 else "" for key in keys]


def _patient(series: DicomSeries | None) -> str:
    """Return a text that is the same for all series of one patient, never shown; "" if unknown."""
    if series is None:
        return ""
    known = "" if series.identity is None else series.identity.patient_key()
    if known:
        return f"patient {known}"
    return f"study {series.study_uid}" if series.study_uid else ""
