"""Pairing of scans and label maps of a folder by their names alone.

*Reads*: relative paths. *Writes*: scans with their labels, and notes. The rules, in this order:

    1. A file in a folder labels, labelsTr, labelsTs (or label, masks, mask, segmentations, segmentation, seg,
       gt, annotations) is a label. It belongs to the file of the same name, or that name + _0000, _0001, ...
       (channels), in the folder images, imagesTr, imagesTs (or image) at the same position in the tree.
    2. X_label, X_seg, X_gt, X_mask (also X_labels, X_segmentation, X_masks) is a label. It belongs to X, else
       to X_image (or X_img), in the same folder.
    3. A name with one of these words at another position ("example_seg_mr") is a label without a scan.

A label is never used as a scan. A label without a scan is left out and noted; a manifest can pair it. Upper
and lower case are equal, and '-' and '.' are equal to '_'. Scans with such words in their own names are left
out; the note lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats import stem_of

LABEL_WORDS = ("label", "labels", "seg", "segmentation", "gt", "mask", "masks")
"""A file with one of these words in its name is a label."""

LABEL_FOLDERS = {
    "labels": "images",
    "labelstr": "imagestr",
    "labelsts": "imagests",
    "label": "image",
    "masks": "images",
    "mask": "image",
    "segmentations": "images",
    "segmentation": "image",
    "seg": "images",
    "gt": "images",
    "annotations": "images",
}
"""Folders of labels, and the folders of their scans."""

IMAGE_FOLDERS = frozenset(LABEL_FOLDERS.values())
"""Folders that only mark images; they are left out of a scan's id."""

_SUFFIX = re.compile(rf"^(?P<x>.+)[_.-](?P<word>{'|'.join(LABEL_WORDS)})$", re.IGNORECASE)
_IMAGE = re.compile(r"^(?P<x>.+)[_.-](image|img)$", re.IGNORECASE)
_CHANNEL = re.compile(r"^(?P<x>.+)_\d{4}$")


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A scan's file and its labels (name, path); paths are relative to the searched folder."""

    image: Path
    labels: tuple[tuple[str, Path], ...]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Result of the pairing: scans, labels without a scan (`orphans`), and the number of pairs by rule."""

    scans: tuple[Paired, ...]
    orphans: tuple[Path, ...]
    rules: tuple[tuple[str, int], ...]


def pair(volumes: Sequence[Path]) -> Pairing:
    """Sort files into scans with their labels, and labels without a scan.

    Args:
        volumes: Image files, relative to the searched folder.
    """
    labels = {path: _label_word(path) for path in volumes}
    scans = [path for path, word in labels.items() if word is None]
    by_key: dict[tuple[tuple[str, ...], str], list[Path]] = {}
    for scan in scans:
        for key in _keys_of_scan(scan):
            by_key.setdefault(key, []).append(scan)
    of_scan: dict[Path, list[tuple[str, Path]]] = {scan: [] for scan in scans}
    orphans, rules = [], dict.fromkeys(_RULES, 0)
    for path, word in labels.items():
        if word is None:
            continue
        owners, rule = _owners(path, by_key)
        if not owners:
            orphans.append(path)
        else:
            rules[rule] += 1
        for scan in owners:
            of_scan[scan].append((word, path))
    return Pairing(
        scans=tuple(Paired(image=scan, labels=_named(of_scan[scan])) for scan in sorted(scans)),
        orphans=tuple(sorted(orphans)),
        rules=tuple((rule, count) for rule, count in rules.items() if count),
    )


_RULES = ("images/X with labels/X", "X or X_image with X_label, X_seg, X_gt or X_mask in one folder")


def _label_word(path: Path) -> str | None:
    """Return the name of the label in a path, or None if it is a scan's path."""
    stem = stem_of(path.name)
    if any(part.lower() in LABEL_FOLDERS for part in path.parent.parts):
        return "label"
    if _IMAGE.match(stem):
        return None
    match = _SUFFIX.match(stem)
    if match:
        return _plain(match["word"])
    words = re.split(r"[^A-Za-z0-9]+", stem.lower())
    return next((_plain(word) for word in words if word in LABEL_WORDS), None)


def _plain(word: str) -> str:
    """Return one word for labels and label, masks and mask, segmentation and seg."""
    return {"labels": "label", "masks": "mask", "segmentation": "seg"}.get(word.lower(), word.lower())


def _keys_of_scan(scan: Path) -> Iterable[tuple[tuple[str, ...], str]]:
    """Return the (folder, name) pairs by which a label can find this scan."""
    folder = tuple(part.lower() for part in scan.parent.parts)
    stem = stem_of(scan.name)
    names = {stem.lower()}
    for pattern in (_IMAGE, _CHANNEL):
        match = pattern.match(stem)
        if match:
            names.add(match["x"].lower())
    return [(folder, name) for name in sorted(names)]


def _owners(label: Path, by_key: dict[tuple[tuple[str, ...], str], list[Path]]) -> tuple[list[Path], str]:
    """Return the scans that a label belongs to, and the rule that found them."""
    stem = stem_of(label.name)
    match = _SUFFIX.match(stem)
    names = [stem] + ([match["x"]] if match else [])
    folder = tuple(part.lower() for part in label.parent.parts)
    depth = next((i for i in range(len(folder) - 1, -1, -1) if folder[i] in LABEL_FOLDERS), None)
    if depth is not None:
        images = (*folder[:depth], LABEL_FOLDERS[folder[depth]], *folder[depth + 1 :])
        for name in names:
            owners = by_key.get((images, name.lower()), [])
            if owners:
                return owners, _RULES[0]
        return [], _RULES[0]
    if match is None:
        return [], _RULES[1]
    owners = by_key.get((folder, match["x"].lower()), [])
    exact = [scan for scan in owners if stem_of(scan.name).lower() == match["x"].lower()]
    return exact or owners, _RULES[1]


def _named(labels: list[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """Return the labels of one scan with distinct names: a second 'label' becomes 'label-2'."""
    named, times = [], dict[str, int]()
    for word, path in sorted(labels, key=lambda item: (item[0], item[1])):
        times[word] = times.get(word, 0) + 1
        named.append((word if times[word] == 1 else f"{word}-{times[word]}", path))
    return tuple(named)
