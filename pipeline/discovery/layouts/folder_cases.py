"""Cases by folders: a folder for each patient, or a folder for each MR sequence.

    patient001/patient001_frame01.nii.gz, patient001_4d.nii.gz      the files are named after their folder
    100307/T1w/T1w.nii.gz, 100307/MNI/T1w.nii.gz                    the same names in other such folders
    IXI-T1/IXI002-T1.nii.gz, IXI-T2/IXI002-T2.nii.gz                the same name but for the sequence

In the first two, a folder is that of a patient only if its name has a number, and a folder beside it has the
same name but for the number. In the second, files whose names have numbers may be of several patients: then
it is not. A folder of more than 20 scans is never that of a patient. In doubt, scans have no case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.discovery.layouts.layout import LayoutScan
from pipeline.discovery.name_words import (
    CHANNEL_WORDS,
    PLAIN_WORDS,
    channel_start,
    has_number,
    name_words,
)
from pipeline.discovery.sources import id_from_parts
from pipeline.formats import stem_of

MOST_SCANS = 20
"""A folder with more scans than this is that of a data set, not of a patient."""

_TIMES = frozenset(
    ["visit", "ses", "session", "study", "timepoint", "tp", "time", "scan", "run", "series", "date", "month"]
)
"""Words of folders that are one of several of a patient."""


def folder_cases(scans: Iterable[Path]) -> dict[Path, Path]:
    """Return the case of each scan whose folders give one."""
    listed = tuple(scans)
    return _cases_of_sequences(listed) | _cases_of_folders(listed)


def with_wider_case(scan: LayoutScan, cases: Mapping[Path, Path]) -> LayoutScan:
    """Return a scan with the case by its folders, if it has no case, or one that lies inside that case."""
    case = cases.get(scan.image)
    is_wider = case is not None and (scan.case is None or scan.case.is_relative_to(case))
    return replace(scan, case=case) if is_wider else scan


def labels_of_cases(labels: Iterable[Path], cases: Mapping[Path, Path]) -> dict[Path, list[tuple[str, Path]]]:
    """Return (name, path) of labels without a scan, for each scan of the patient in whose folder they lie.

    They belong to the scans beside them, else to all of the patient. A label among more than 20 has none.

    Args:
        labels: The labels.
        cases: Case of each scan.
    """
    scans_of: dict[Path, list[Path]] = {}
    for scan, case in cases.items():
        scans_of.setdefault(case, []).append(scan)
    labels_of: dict[Path, list[Path]] = {}
    for label in labels:
        around = next((folder for folder in label.parents if folder in scans_of), None)
        if around is not None:
            labels_of.setdefault(around, []).append(label)
    found: dict[Path, list[tuple[str, Path]]] = {}
    for case, held in labels_of.items():
        for label in held if len(held) <= MOST_SCANS else ():
            beside = [scan for scan in scans_of[case] if scan.parent == label.parent]
            name = _name_without(case, label)
            for scan in beside or scans_of[case]:
                found.setdefault(scan, []).append((name, label))
    return found


def _name_without(case: Path, label: Path) -> str:
    """Return the name of a label map from its file's name, without the words of the patient's folder."""
    words = [PLAIN_WORDS.get(word, word) for word in name_words(stem_of(label.name))]
    return id_from_parts([word for word in words if word not in name_words(case.name)] or ["label"])


def _cases_of_folders(scans: Iterable[Path]) -> dict[Path, Path]:
    """Return the folder of the patient of each scan that is in one, if it has several."""
    below: dict[Path, list[Path]] = {}
    for scan in scans:
        for folder in scan.parents[:-1]:
            below.setdefault(folder, []).append(scan)
    alike: dict[tuple[Path, str], list[Path]] = {}
    for folder in below:
        alike.setdefault((folder.parent, _shape(folder.name)), []).append(folder)
    cases: dict[Path, Path] = {}
    for beside in alike.values():
        common = _common_names(below, beside) if len(beside) > 1 else frozenset[Path]()
        for folder in beside if len(beside) > 1 else ():
            inside = below[folder]
            if not 1 < len(inside) <= MOST_SCANS or not _is_of_a_patient(folder):
                continue
            named = [scan for scan in inside if _is_named_after(scan, folder)]
            same = inside if _differ_without_numbers(inside) and _shares(inside, folder, common) else []
            for scan in named if len(named) > 1 else same:
                if scan not in cases or folder.is_relative_to(cases[scan]):
                    cases[scan] = folder
    return cases


def _cases_of_sequences(scans: Iterable[Path]) -> dict[Path, Path]:
    """Return the case of scans that lie in a folder for each sequence, or in one for CT and one for PET."""
    groups: dict[tuple[Path, tuple[str, ...], tuple[str, ...]], dict[Path, tuple[str, ...]]] = {}
    for scan in scans:
        folder = name_words(scan.parent.name)
        channel = tuple(word for word in folder if word in CHANNEL_WORDS)
        name = name_words(stem_of(scan.name))
        key = name[: channel_start(name)]
        if channel and has_number(key):
            rest = tuple(word for word in folder if word not in CHANNEL_WORDS)
            groups.setdefault((scan.parent.parent, rest, key), {})[scan] = channel
    return {
        scan: Path(above, *(["-".join(rest)] if rest else []), "-".join(key))
        for (above, rest, key), channels in groups.items()
        if _are_of_one_patient(channels)
        for scan in channels
    }


def _are_of_one_patient(channels: Mapping[Path, tuple[str, ...]]) -> bool:
    """Whether several channels of one name are certainly of one patient: not CT and MR of the same number."""
    kinds = {CHANNEL_WORDS[word] for words in channels.values() for word in words}
    return len(set(channels.values())) > 1 and (kinds == {"mr"} or kinds == {"ct", "pet"})


def _shape(name: str) -> str:
    """Return a name with its numbers replaced."""
    return re.sub(r"\d+", "#", name)


def _is_of_a_patient(folder: Path) -> bool:
    words = name_words(folder.name)
    return has_number(words) and re.sub(r"\d", "", words[0]) not in _TIMES


def _is_named_after(scan: Path, folder: Path) -> bool:
    """Whether a folder's words occur in a scan's name; a short one must be its beginning."""
    words, wanted = name_words(stem_of(scan.name)), name_words(folder.name)
    starts = range(len(words) - len(wanted) + 1 if len(folder.name) > 4 else 1)
    return any(words[start : start + len(wanted)] == wanted for start in starts)


def _common_names(below: Mapping[Path, list[Path]], folders: Iterable[Path]) -> frozenset[Path]:
    """Return the paths below folders that occur in several of them."""
    once, twice = set[Path](), set[Path]()
    for folder in folders:
        inner = {scan.relative_to(folder) for scan in below[folder]}
        twice |= once & inner
        once |= inner
    return frozenset(twice)


def _shares(scans: Iterable[Path], folder: Path, common: frozenset[Path]) -> bool:
    """Whether one of the scans has its name in another folder too."""
    return any(scan.relative_to(folder) in common for scan in scans)


def _differ_without_numbers(scans: Iterable[Path]) -> bool:
    """Whether scans of a folder differ by more than a number in their names; channels may have one (T1)."""
    seen = set[tuple[Path, tuple[str, ...]]]()
    for scan in scans:
        words = name_words(stem_of(scan.name))
        plain = tuple(word if word in CHANNEL_WORDS else re.sub(r"\d", "", word) for word in words)
        if (scan.parent, plain) in seen:
            return False
        seen.add((scan.parent, plain))
    return True
