"""Channels of one case in files named alike: BraTS's layout, and CT, PET and MR of one patient in a folder.

    BraTS-GLI-00003-000/BraTS-GLI-00003-000-t1n.nii.gz  ...-t1c  ...-t2w  ...-t2f  ...-seg
    p07_t1.nii.gz  p07_flair.nii.gz  p07_seg.nii.gz
    STS_003/CT_image.nii.gz  CT_mask.nii.gz  PET_image.nii.gz  PET_mask.nii.gz

Files of one folder are a case if their names are equal but for a channel at the end (`channel_words`), and
there are two channels or more. Scans whose names differ otherwise are no case. X_seg belongs to all channels
of X that lie on its grid; X_t1_seg to X_t1. In BraTS-GLI-00003-000 the case is BraTS-GLI-00003: the
last number counts its visits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.layouts.channel_words import modality_of_words, split_channel
from pipeline.discovery.layouts.layout import Files, Layout, LayoutFind, LayoutScan
from pipeline.discovery.layouts.paired import label_sources, with_distinct_names
from pipeline.discovery.pairing import LABEL_WORDS, pair
from pipeline.formats import Modality, stem_of

_LABEL_WORDS = (*LABEL_WORDS, "lesion", "lesions", "tumor", "tumour", "roi")
"""Words of the labels of a case; the last ones are labels only beside channels."""

_IMAGE = re.compile(r"^(?P<x>.+)[_.-](?:image|img)$", re.IGNORECASE)
_VISIT = re.compile(r"^(?P<patient>BraTS-[A-Za-z]+-\d+)-\d+$")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Scans of one patient, each a channel.

    Attributes:
        folder: Folder of the scans.
        prefix: What their names have in common; may be empty.
        channels: Words of the channel of each scan.
    """

    folder: Path = field(repr=False)
    prefix: str = field(repr=False)
    channels: Mapping[Path, tuple[str, ...]] = field(repr=False)

    @property
    def place(self) -> Path:
        """A path that identifies the case; it need not exist."""
        match = _VISIT.match(self.prefix)
        if match:
            above = self.folder.parent if self.folder.name == self.prefix else self.folder
            return above / match["patient"]
        return self.folder if self.prefix in ("", self.folder.name) else self.folder / self.prefix

    def modality(self, scan: Path) -> Modality | None:
        """Return the modality of one of its scans by the words of its channel, or None."""
        return modality_of_words(self.channels[scan], [w for words in self.channels.values() for w in words])


def cases_among(scans: Iterable[Path]) -> list[Case]:
    """Return the cases of two or more channels."""
    groups: dict[tuple[Path, str], dict[Path, tuple[str, ...]]] = {}
    for scan in scans:
        stem = stem_of(scan.name)
        match = _IMAGE.match(stem)
        prefix, words = split_channel(match["x"] if match else stem)
        if words:
            groups.setdefault((scan.parent, prefix), {})[scan] = words
    return [
        Case(folder=folder, prefix=prefix, channels=channels)
        for (folder, prefix), channels in sorted(groups.items())
        if len(set(channels.values())) > 1
    ]


def find_channels(files: Files) -> LayoutFind:
    """Return the scans of all cases that have several channels."""
    pairing = pair(files.volumes)
    own = {paired.image: paired for paired in pairing.scans}
    paired_labels = {label for paired in pairing.scans for _, label in paired.labels}
    common_labels = _by_case(path for path in files.volumes if path not in paired_labels)
    scans, taken, notes = [], set[Path](), dict[str, None]()
    for case in cases_among(own):
        named = sorted(common_labels.get((case.folder, case.prefix), ()))
        common, said = label_sources(files.root, named, shared=[path for _, path in named])
        notes |= dict.fromkeys(said)
        for scan in sorted(case.channels):
            labels, said = label_sources(files.root, own[scan].labels, shared=own[scan].unsure)
            notes |= dict.fromkeys(said)
            scans.append(
                LayoutScan(
                    image=scan,
                    labels=with_distinct_names((*labels, *common)),
                    modality=case.modality(scan),
                    case=case.place,
                )
            )
            taken |= {scan, *(label for _, label in own[scan].labels)}
        taken |= {path for _, path in named}
    return LayoutFind(scans=tuple(scans), taken=frozenset(taken), notes=tuple(notes))


def _by_case(paths: Iterable[Path]) -> dict[tuple[Path, str], list[tuple[str, Path]]]:
    """Return (name, path) of the files that may be labels of a case as a whole, by its folder and prefix."""
    found: dict[tuple[Path, str], list[tuple[str, Path]]] = {}
    for path in paths:
        stem = stem_of(path.name)
        word = re.split(r"[_.\- ]", stem)[-1]
        if word.lower() in _LABEL_WORDS:
            prefix = stem[: len(stem) - len(word)].rstrip("_-. ")
            name = _PLAIN.get(word.lower(), word.lower())
            found.setdefault((path.parent, prefix), []).append((name, path))
    return found


_PLAIN = {"labels": "label", "masks": "mask", "segmentation": "seg"}

BRATS = Layout(
    name="brats",
    title="channels of a case (BraTS)",
    wants="files of one folder whose names are equal but for a channel at the end, such as X_t1 and X_flair",
    find=find_channels,
)
