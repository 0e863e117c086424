"""The table of layouts, and the search that tries them one after the other.

*Reads*: files below a folder, through the layouts. *Writes*: scans, notes and failures.

A new layout is a module with a `Layout`, and a row of `LAYOUTS`. Each takes the files that it understands;
the next is given the rest. So a folder may hold data sets of several layouts. What none takes is paired by
name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.discovery.layouts.bids import BIDS
from pipeline.discovery.layouts.channels import BRATS
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
from pipeline.discovery.layouts.paired import label_sources
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

LAYOUTS = (NNUNET, DECATHLON, BIDS, TOTALSEGMENTATOR, BRATS)
"""Layouts that are recognised, in the order in which they are tried."""

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
        failures: What was recognised and cannot be read.
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
    finds, notes = [], []
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
        if find.scans:
            notes.append(_line(layout, find.scans))
        notes.extend(find.notes)
        finds.append(find)
        rest = replace(rest, volumes=tuple(path for path in rest.volumes if path not in find.taken))
    plain = find_plain(rest)
    found = together([*finds, plain])
    if plain.scans and (notes or name == PLAIN.name):
        notes.append(_line(PLAIN, plain.scans))
    orphans = tuple(path for path in rest.volumes if path not in plain.taken)
    return Search(scans=found.scans, orphans=orphans, notes=(*notes, *plain.notes), failures=found.failures)


def _line(layout: Layout, scans: Sequence[LayoutScan]) -> str:
    """Return the line that tells what a layout found."""
    cases = {scan.case for scan in scans if scan.case is not None}
    labelled = sum(1 for scan in scans if scan.labels)
    return (
        f"layout: {layout.title}, {_counted(len(scans), 'scan')}"
        + (f" of {_counted(len(cases), 'case')}" if cases else "")
        + (f", {labelled} with labels" if labelled else "")
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
