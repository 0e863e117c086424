"""Label sources of scans and labels that are paired by name, as every layout makes them.

*Reads*: JSON files of label names. *Writes*: `LabelSource`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.discovery.label_names import find_value_names
from pipeline.discovery.sources import LabelSource


def label_sources(
    root: Path, labels: Iterable[tuple[str, Path]], *, shared: Collection[Path] = ()
) -> tuple[tuple[LabelSource, ...], tuple[str, ...]]:
    """Return the label maps of a scan with the names beside them, and notes on files of names.

    Args:
        root: The searched folder.
        labels: (name, path relative to it) of each.
        shared: Those that belong to all scans of a case, or to this scan probably: they are left out, with a
            note, where they lie on another grid.
    """
    sources, notes = [], []
    for name, path in labels:
        names, note = find_value_names(root / path, root)
        sources.append(LabelSource(name=name, path=root / path, value_names=names, shared=path in shared))
        notes.extend([note] if note else [])
    return tuple(sources), tuple(notes)


def with_distinct_names(labels: Iterable[LabelSource]) -> tuple[LabelSource, ...]:
    """Return the labels of one scan with distinct names: a second "seg" becomes "seg-2"."""
    named, times = [], dict[str, int]()
    for label in labels:
        times[label.name] = times.get(label.name, 0) + 1
        again = times[label.name] > 1
        named.append(replace(label, name=f"{label.name}-{times[label.name]}") if again else label)
    return tuple(named)
