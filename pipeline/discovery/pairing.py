"""Pairing of scans and label maps of a folder by their names alone.

*Reads*: relative paths. *Writes*: scans with their labels, and notes. What is a label:

    1. A file in a folder labels, labelsTr, labelsVa, ... (or masks, segmentations, gt, instances, ...).
    2. A file with a word for labels in its name: X_label, X_seg, X_gt, X_mask, segmentation-0, aseg, ...
    3. A file of a folder whose name begins or ends with such a word (Lung_Mask), or with a weaker word in its
       name (X_lesion), if it belongs to a scan by the rules below. Else it is a scan.

Which scan it belongs to, by the first rule that finds one:

    a. The same name in the folder of images at the same position in the tree; channels _0000 may follow.
    b. X_label belongs to X, else to X_image, in the same folder.
    c. The same folder, and the same name but for words for labels and images: volume-0, segmentation-0.
    d. The same folder: the scan's whole name, then words without a number (X_tumor_seg of X); the name of
       several channels without these (X_seg of X_t1, X_t2); or the only scan of the folder, if the label's
       name is nothing but words for labels.
    e. The same name in another folder, likewise; it must have a number. The nearest folder counts.
    f. The same number, if the label has no other name and one scan alone has this number.

A pair of d, e and f is probable, not certain: the label is left out, with a note, where it does not lie on
the scan's grid. A label is never used as a scan. A label without a scan is left out and noted; a manifest can
pair it. Upper and lower case are equal, and so are '_', '-', '.' and a blank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.name_words import (
    IMAGE_WORDS,
    PLAIN_WORDS,
    WEAK_WORDS,
    has_number,
    is_label_folder_word,
    key_of,
    keys_of_scan,
    label_word,
    name_words,
    without_rater,
)
from pipeline.discovery.sources import id_from_parts
from pipeline.formats import stem_of

LABEL_WORDS = ("label", "labels", "seg", "segmentation", "gt", "mask", "masks", "msk", "segm", "dseg")
"""Last words of a label that is named after its scan."""

_PARTS = ("tr", "ts", "va", "val", "te")
"""Ends of imagesTr, labelsTr, ...: the part of a data set."""

_MAIN_FOLDERS = {
    "labels": "images",
    "label": "image",
    "masks": "images",
    "mask": "image",
    "segmentations": "images",
    "segmentation": "image",
    "seg": "images",
    "gt": "images",
    "annotations": "images",
}

LABEL_FOLDERS = (
    _MAIN_FOLDERS
    | {f"{word}{part}": f"images{part}" for word in ("labels", "masks") for part in _PARTS}
    | dict.fromkeys(["segs", "gts", "msk", "annotation", "groundtruth", "ground_truth"], "images")
    | dict.fromkeys(["instances", "structures", "contours", "delineations", "rois"], "images")
)
"""Folders of labels, and the folders of their scans."""

IMAGE_FOLDERS = frozenset(["images", "imagestr", "imagests", "image"])
"""Folders that only mark images; they are left out of a scan's id."""

_SUFFIX = re.compile(rf"^(?P<x>.+)[_.\- ](?P<word>{'|'.join(LABEL_WORDS)})$", re.IGNORECASE)
_IMAGE = re.compile(r"^(?P<x>.+)[_.\- ](image|img)$", re.IGNORECASE)
_CHANNEL = re.compile(r"^(?P<x>.+)_\d{4}$")

_MOST_OWNERS = 32
"""A label without a name of its own that fits more scans than this belongs to none of them."""

RULES = {
    "folders": "images/X with labels/X",
    "suffix": "X or X_image with X_label, X_seg, X_gt or X_mask in one folder",
    "words": "names that are equal but for words for labels and images (volume-0 with segmentation-0)",
    "named": "labels that are named after a scan of their folder, or lie beside its only scan",
    "elsewhere": "the same name in another folder",
    "number": "the same number",
}
"""Rules by which a label finds its scans, in their order, each with its text in notes."""

_CERTAIN = ("folders", "suffix", "words")

_Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A scan's file and its labels (name, path); paths are relative to the searched folder.

    Attributes:
        image: The scan.
        labels: Its labels.
        unsure: Those that may be of another scan.
    """

    image: Path
    labels: tuple[tuple[str, Path], ...]
    unsure: frozenset[Path] = frozenset()


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
    names = {path: _named(path) for path in volumes}
    candidates = [path for path, name in names.items() if name is None]
    labels = {path: name for path, name in names.items() if name is not None}
    scans = _Scans.of(path for path in candidates if not _may_be_label(path))
    found: dict[Path, tuple[str, tuple[Path, ...], str]] = {}
    for path in candidates:
        weak = _weak_label(path, scans)
        if weak is not None:
            found[path] = weak
    scans = _Scans.of(path for path in candidates if path not in found)
    orphans = []
    for path, name in labels.items():
        owners, rule, extra = scans.owners(path)
        if owners:
            found[path] = (extra or name, owners, rule)
        else:
            orphans.append(path)
    of_scan: dict[Path, list[tuple[str, Path]]] = {path: [] for path in candidates if path not in found}
    unsure: dict[Path, set[Path]] = {}
    for path, (name, owners, rule) in found.items():
        for scan in owners:
            of_scan.setdefault(scan, []).append((name, path))
            if rule not in _CERTAIN:
                unsure.setdefault(scan, set()).add(path)
    counts = Counter(rule for _, _, rule in found.values())
    return Pairing(
        scans=tuple(
            Paired(image=scan, labels=_distinct(held), unsure=frozenset(unsure.get(scan, ())))
            for scan, held in sorted(of_scan.items())
        ),
        orphans=tuple(sorted(orphans)),
        rules=tuple((text, counts[rule]) for rule, text in RULES.items() if counts[rule]),
    )


def _named(path: Path) -> str | None:
    """Return the name of the label in a path, or None if it is not known to be a label."""
    if any(part.lower() in LABEL_FOLDERS for part in path.parent.parts):
        return "label"
    stem = stem_of(path.name)
    return None if _IMAGE.match(stem) else label_word(name_words(stem))


def _weak_folder(path: Path) -> str | None:
    """Return the name of the innermost folder that may be one of labels, or None."""
    return next((part for part in reversed(path.parent.parts) if is_label_folder_word(part)), None)


def _may_be_label(path: Path) -> bool:
    """Whether a file that is not known to be a label may be one (`_weak_label`)."""
    return _weak_folder(path) is not None or not WEAK_WORDS.isdisjoint(name_words(stem_of(path.name)))


def _weak_label(path: Path, scans: _Scans) -> tuple[str, tuple[Path, ...], str] | None:
    """Return name, owners and rule of a file that is a label only if it belongs to a scan."""
    words = name_words(stem_of(path.name))
    folder = _weak_folder(path)
    if folder is not None:
        owners = scans.in_other_folder(path, key_of(words))
        return (_label_name(name_words(folder)), owners, "elsewhere") if owners else None
    start = next((i for i, word in enumerate(words) if word in WEAK_WORDS), 0)
    owners = scans.with_words(path.parent, words[:start]) if start else ()
    return (_label_name(words[start:]), owners, "named") if owners else None


def _label_name(words: Iterable[str]) -> str:
    """Return the name of a label map from words."""
    return id_from_parts(PLAIN_WORDS.get(word, word) for word in words)


def _own_name(words: _Key, of_scan: _Key) -> str:
    """Return the name of a label from the words that its scan does not have; "" if none is left."""
    own = [word for word in words if word not in IMAGE_WORDS and word not in of_scan]
    return _label_name(own) if key_of(own) else ""


@dataclass(frozen=True, kw_only=True)
class _Scans:
    """Index of scans for the rules of the pairing.

    Attributes:
        by_name: By folder in lower case and name, as in rules a and b.
        by_words: By folder and all words of the name.
        by_key: By folder and key.
        anywhere: By key.
        by_number: By the numbers in the name.
        in_folder: By folder.
    """

    by_name: dict[tuple[_Key, str], list[Path]] = field(default_factory=dict)
    by_words: dict[tuple[Path, _Key], list[Path]] = field(default_factory=dict)
    by_key: dict[tuple[Path, _Key], list[Path]] = field(default_factory=dict)
    anywhere: dict[_Key, list[Path]] = field(default_factory=dict)
    by_number: dict[_Key, list[Path]] = field(default_factory=dict)
    in_folder: dict[Path, list[Path]] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> _Scans:
        """Return an index of scans."""
        scans = cls()
        for path in paths:
            for name in _names_of_scan(path):
                scans.by_name.setdefault((_lower(path.parent), name), []).append(path)
            words = name_words(stem_of(path.name))
            scans.by_words.setdefault((path.parent, words), []).append(path)
            for key in keys_of_scan(words):
                scans.by_key.setdefault((path.parent, key), []).append(path)
                scans.anywhere.setdefault(key, []).append(path)
            scans.by_number.setdefault(_numbers(words), []).append(path)
            scans.in_folder.setdefault(path.parent, []).append(path)
        return scans

    def owners(self, label: Path) -> tuple[tuple[Path, ...], str, str]:
        """Return the scans that a label belongs to, the rule that found them, and its own name or ""."""
        in_label_folder = any(part.lower() in LABEL_FOLDERS for part in label.parent.parts)
        exact = self._in_image_folder(label) if in_label_folder else self._with_suffix(label)
        if exact:
            return tuple(exact), "folders" if in_label_folder else "suffix", ""
        words = name_words(stem_of(label.name))
        for tried in (words, without_rater(words)):
            if not in_label_folder:
                owners, rule, extra = self._beside(label.parent, tried)
                if owners:
                    return owners, rule, extra
            owners, extra = self._elsewhere(label, tried)
            if owners:
                return owners, "elsewhere", extra
        key = key_of(words)
        alike = self.by_number.get(key, []) if key and all(word.isdigit() for word in key) else []
        return (tuple(alike), "number", "") if len(alike) == 1 else ((), "", "")

    def with_words(self, folder: Path, words: _Key) -> tuple[Path, ...]:
        """Return the scans of a folder whose names have exactly these words, else those without a channel."""
        exact = self.by_words.get((folder, words)) or self.by_key.get((folder, key_of(words)), [])
        return tuple(exact) if len(exact) <= _MOST_OWNERS else ()

    def in_other_folder(self, label: Path, key: _Key) -> tuple[Path, ...]:
        """Return the scans in other folders with this key, in the nearest one; the key must have a number."""
        found = self.anywhere.get(key, ()) if has_number(key) else ()
        return _nearest(label, [scan for scan in found if scan.parent != label.parent])

    def _elsewhere(self, label: Path, words: _Key) -> tuple[tuple[Path, ...], str]:
        """Return the scans in other folders that a label is named after (rule e), and the label's name."""
        key = key_of(words)
        for end in range(len(key), 0, -1):
            if has_number(key[end:]):
                break
            owners = self.in_other_folder(label, key[:end])
            if owners:
                return owners, _own_name(words, key[:end])
        return (), ""

    def _beside(self, folder: Path, words: _Key) -> tuple[tuple[Path, ...], str, str]:
        """Return the scans of a folder that a label is named after (c, d), the rule, the label's name."""
        beside = self.in_folder.get(folder, [])
        key = key_of(words)
        same = [scan for scan in self.by_key.get((folder, key), ()) if key]
        if len(same) == 1 and key_of(name_words(stem_of(same[0].name))) == key:
            return tuple(same), "words", ""
        for end in range(len(key), -1, -1):
            owners = self.by_key.get((folder, key[:end]), [])
            only = len(beside) == 1 or len(owners) == len(beside)
            if not owners or len(owners) > _MOST_OWNERS or has_number(key[end:]) or not (end or only):
                continue
            return tuple(owners), "named", _own_name(words, key[:end])
        return (tuple(beside), "named", "") if len(beside) == 1 and not key else ((), "", "")

    def _in_image_folder(self, label: Path) -> list[Path]:
        """Return the scans of the same name in the folder of images at the same position (rule a)."""
        stem = stem_of(label.name)
        match = _SUFFIX.match(stem)
        folder = _lower(label.parent)
        depth = next(i for i in range(len(folder) - 1, -1, -1) if folder[i] in LABEL_FOLDERS)
        images = (*folder[:depth], LABEL_FOLDERS[folder[depth]], *folder[depth + 1 :])
        names = [stem] + ([match["x"]] if match else [])
        return next((found for name in names if (found := self.by_name.get((images, name.lower())))), [])

    def _with_suffix(self, label: Path) -> list[Path]:
        """Return X, else X_image, in the folder of X_label (rule b)."""
        match = _SUFFIX.match(stem_of(label.name))
        if match is None:
            return []
        owners = self.by_name.get((_lower(label.parent), match["x"].lower()), [])
        exact = [scan for scan in owners if stem_of(scan.name).lower() == match["x"].lower()]
        return exact or owners


def _names_of_scan(scan: Path) -> set[str]:
    """Return the names by which rules a and b find a scan."""
    stem = stem_of(scan.name)
    matches = [match for pattern in (_IMAGE, _CHANNEL) if (match := pattern.match(stem))]
    return {stem.lower(), *(match["x"].lower() for match in matches)}


def _lower(folder: Path) -> _Key:
    return tuple(part.lower() for part in folder.parts)


def _numbers(words: Iterable[str]) -> _Key:
    return tuple(word for word in words if word.isdigit())


def _nearest(label: Path, scans: Sequence[Path]) -> tuple[Path, ...]:
    """Return the scans that have the most folders in common with a label; none if they are too many."""
    depths = [_common_depth(label, scan) for scan in scans]
    most = max(depths, default=0)
    nearest = [scan for scan, depth in zip(scans, depths, strict=True) if depth == most]
    return tuple(nearest) if len(nearest) <= _MOST_OWNERS else ()


def _common_depth(one: Path, other: Path) -> int:
    """Return the number of folders that two paths have in common."""
    depth = 0
    for mine, its in zip(one.parent.parts, other.parent.parts, strict=False):
        if mine != its:
            break
        depth += 1
    return depth


def _distinct(labels: list[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """Return the labels of one scan with distinct names: a second 'label' becomes 'label-2'."""
    named, times = [], dict[str, int]()
    for word, path in sorted(labels, key=lambda item: (item[0], item[1])):
        times[word] = times.get(word, 0) + 1
        named.append((word if times[word] == 1 else f"{word}-{times[word]}", path))
    return tuple(named)
