"""The table of layouts, and the search that tries them one after the other.

*Reads*: files below a folder, through the layouts. *Writes*: scans, notes and failures.

A new layout is a module with a `Layout`, and a row of `LAYOUTS`. Each takes the files that it understands;
the next is given the rest. So a folder may hold data sets of several layouts. What none takes is paired by
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.discovery.layouts.bids import BIDS
from pipeline.discovery.layouts.channels import BRATS
from pipeline.discovery.layouts.folder_cases import folder_cases, labels_of_cases, with_wider_case
from pipeline.discovery.layouts.freesurfer import FREESURFER
from pipeline.discovery.layouts.layout import (
    Files,
    Layout,
    LayoutFailure,
    LayoutFind,
    LayoutScan,
    together,
)
from pipeline.discovery.layouts.mask_folders import TOTALSEGMENTATOR
from pipeline.discovery.layouts.nnunet import DECATHLON, NNUNET
from pipeline.discovery.layouts.paired import label_sources, with_distinct_names
from pipeline.discovery.pairing import pair
from pipeline.errors import ConfigError


def find_plain(files: Files) -> LayoutFind:
    """Return every image file as a scan, with the labels that are paired with it by name."""
    pairing = pair(files.volumes)
    notes = [f"{count} labels paired by name: {rule}" for rule, count in pairing.rules]
    scans, about_names = [], dict[str, None]()
    for paired in pairing.scans:
        labels, said = label_sources(files.root, paired.labels, shared=paired.unsure)
        about_names |= dict.fromkeys(said)
        scans.append(LayoutScan(image=paired.image, labels=labels))
    taken = frozenset(files.volumes) - set(pairing.orphans)
    return LayoutFind(scans=tuple(scans), taken=taken, notes=(*notes, *about_names))


PLAIN = Layout(name="plain", title="plain", wants="any files", find=find_plain)

LAYOUTS = (NNUNET, DECATHLON, BIDS, FREESURFER, TOTALSEGMENTATOR, BRATS)
"""Layouts that are recognised, in the order in which they are tried."""

_OF_FOLDERS = (TOTALSEGMENTATOR, BRATS, PLAIN)
"""Layouts without patients; folders may give them."""

AUTO = "auto"

LAYOUT_NAMES = (AUTO, PLAIN.name, *(layout.name for layout in LAYOUTS))
"""Choices of `mass prepare --layout`."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What the layouts found together.

    Attributes:
        scans: The scans.
        orphans: Files that look like labels and belong to no scan.
        notes: Which layouts were recognised, and what they noted.
        failures: Data sets and files that were recognised and cannot be read.
    """

    scans: tuple[LayoutScan, ...]
    orphans: tuple[Path, ...]
    notes: tuple[str, ...]
    failures: tuple[LayoutFailure, ...]


def search(files: Files, name: str = AUTO) -> Search:
    """Return the scans among image files.

    Args:
        files: All image files, and tables beside them.
        name: The only layout to try; "auto" for all of them, "plain" for none.

    Raises:
        ConfigError: There is no such layout, or nothing of it.
    """
    if name not in LAYOUT_NAMES:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUT_NAMES)}, got {name!r}")
    finds: dict[Layout, LayoutFind] = {}
    rest = files
    for layout in LAYOUTS:
        if name not in (AUTO, layout.name):
            continue
        find = layout.find(rest)
        if name == layout.name and not (find.scans or find.failures):
            raise ConfigError(
                f"nothing in the folder is of the layout {name} ({layout.title}): it is recognised by "
                f"{layout.wants}. Leave --layout out, or choose another"
            )
        finds[layout] = find
        rest = replace(rest, volumes=tuple(path for path in rest.volumes if path not in find.taken))
    finds[PLAIN] = find_plain(rest)
    orphans = tuple(path for path in rest.volumes if path not in finds[PLAIN].taken)
    if name == AUTO:
        finds |= _with_folder_cases(finds, files.root, orphans)
        taken = {path for find in finds.values() for path in find.taken}
        orphans = tuple(path for path in orphans if path not in taken)
    recognised = any(find.scans or find.notes for layout, find in finds.items() if layout != PLAIN)
    notes: list[str] = []
    for layout, find in finds.items():
        if find.scans and (layout != PLAIN or recognised or name == PLAIN.name):
            notes.append(_line(layout, find.scans))
        notes.extend(find.notes)
    found = together(finds.values())
    return Search(scans=found.scans, orphans=orphans, notes=tuple(notes), failures=found.failures)


def _with_folder_cases(
    finds: Mapping[Layout, LayoutFind], root: Path, orphans: Iterable[Path]
) -> dict[Layout, LayoutFind]:
    """Return the results of layouts without patients, with the cases by the folders of all scans.

    Labels that belong to no scan yet belong to those of the patient's folder that they lie in.
    """
    loose = {layout: find for layout, find in finds.items() if layout in _OF_FOLDERS}
    cases = folder_cases(scan.image for find in loose.values() for scan in find.scans)
    labels = labels_of_cases(orphans, cases)
    changed = {}
    for layout, find in loose.items():
        scans, taken = [], set(find.taken)
        for scan in find.scans:
            own = sorted(labels.get(scan.image, ()))
            taken |= {path for _, path in own}
            added, _ = label_sources(root, own, shared=[path for _, path in own])
            made = with_distinct_names((*scan.labels, *added))
            scans.append(replace(with_wider_case(scan, cases), labels=made))
        changed[layout] = replace(find, scans=tuple(scans), taken=frozenset(taken))
    return changed


def _line(layout: Layout, scans: Sequence[LayoutScan]) -> str:
    """Return a line of text on what a layout found."""
    cases = {scan.case for scan in scans if scan.case is not None}
    labelled = sum(1 for scan in scans if scan.labels)
    return (
        f"layout: {layout.title}, {_counted(len(scans), 'scan')}"
        + (f" of {_counted(len(cases), 'case')}" if cases else "")
        + (f", {labelled} with labels" if labelled else "")
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
