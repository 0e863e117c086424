"""Folders of binary masks beside scans: TotalSegmentator's layout, and those like it.

    s0001/ct.nii.gz, s0001/segmentations/liver.nii.gz, ...   TotalSegmentator (mri.nii.gz likewise)
    X.nii.gz, X_masks/liver.nii.gz, ...                      also X_seg, X_labels, ...
    images/X.nii.gz, labels/X/liver.nii.gz, ...              a folder for each scan among the labels

Every mask is a structure, named like its file. All scans of a data set share one numbering: the names in the
order of letters, from 1. A table meta.csv (columns image_id and split) beside the cases gives the split.
Only masks that no rule of `pairing` pairs by name are taken in this way.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.layouts.channels import cases_among
from pipeline.discovery.layouts.layout import Files, Layout, LayoutFind, LayoutScan
from pipeline.discovery.layouts.paired import label_sources, with_distinct_names
from pipeline.discovery.pairing import LABEL_FOLDERS, LABEL_WORDS, Pairing, pair
from pipeline.discovery.sources import LabelPart, LabelSource, id_from_parts
from pipeline.formats import parse_modality, stem_of

META_FILE = "meta.csv"

_SUFFIX = re.compile(rf"^(?P<x>.+)[_.-](?:{'|'.join(LABEL_WORDS)})$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _MaskFolder:
    """A folder of masks, the scans that it belongs to, and the data set of these.

    Several scans are channels of one case.
    """

    scans: tuple[Path, ...] = field(repr=False)
    name: str
    masks: tuple[Path, ...] = field(repr=False)
    dataset: Path = field(repr=False)


def find_mask_folders(files: Files) -> LayoutFind:
    """Return the scans that have a folder of masks."""
    pairing = pair(files.volumes)
    folders = list(_mask_folders(files.volumes, pairing))
    names: dict[tuple[Path, str], list[Path]] = {}
    of_scan: dict[Path, list[_MaskFolder]] = {}
    for folder in folders:
        names.setdefault((folder.dataset, folder.name), []).extend(folder.masks)
        for scan in folder.scans:
            of_scan.setdefault(scan, []).append(folder)
    numbers = {key: number_names(stem_of(mask.name) for mask in masks) for key, masks in names.items()}
    splits = {dataset: read_splits(files.root / dataset / META_FILE) for dataset, _ in numbers}
    cases = {scan: case for case in cases_among(of_scan) for scan in case.channels}
    own = {paired.image: paired for paired in pairing.scans}
    scans, notes = [], dict[str, None]()
    for scan, held in sorted(of_scan.items()):
        labels, said = label_sources(files.root, own[scan].labels, shared=own[scan].unsure)
        notes |= dict.fromkeys(said)
        made = [
            masks_of(
                files.root, one.name, one.masks, numbers[one.dataset, one.name], shared=len(one.scans) > 1
            )
            for one in held
        ]
        scans.append(
            LayoutScan(
                image=scan,
                labels=with_distinct_names((*labels, *made)),
                modality=cases[scan].modality(scan) if scan in cases else parse_modality(stem_of(scan.name)),
                split=splits[held[0].dataset].get(scan.parent.name),
                case=cases[scan].place if scan in cases else None,
                dataset=held[0].dataset,
            )
        )
    taken = {path for folder in folders for path in (*folder.scans, *folder.masks)}
    taken |= {label for scan in of_scan for _, label in own[scan].labels}
    return LayoutFind(scans=tuple(scans), taken=frozenset(taken), notes=tuple(notes))


def _mask_folders(volumes: Sequence[Path], pairing: Pairing) -> Iterator[_MaskFolder]:
    """Yield the folders of masks that belong to one scan, or to the channels of one case."""
    in_folder: dict[Path, list[Path]] = {}
    for path in volumes:
        in_folder.setdefault(path.parent, []).append(path)
    scans = {paired.image for paired in pairing.scans}
    stems = {path.parent / stem_of(path.name): path for path in scans}
    orphans = set(pairing.orphans)
    images = {
        (folder.parent, labels): folder
        for folder in in_folder
        for labels, of_images in LABEL_FOLDERS.items()
        if folder.name.lower() == of_images
    }
    for folder, inside in sorted(in_folder.items()):
        owner = stems.get(folder.with_name(base)) if (base := _without_word(folder.name)) else None
        dataset = folder.parent.parent
        if owner is not None:
            yield _MaskFolder(scans=(owner,), name="masks", masks=tuple(inside), dataset=owner.parent)
        elif not orphans.issuperset(inside):
            continue
        elif folder.name.lower() in LABEL_FOLDERS:
            beside = tuple(path for path in in_folder.get(folder.parent, []) if path in scans)
            if _belong_together(beside, len(inside)):
                name = id_from_parts([folder.name.lower()])
                yield _MaskFolder(scans=beside, name=name, masks=tuple(inside), dataset=dataset)
        else:
            beside_labels = images.get((folder.parent.parent, folder.parent.name.lower()))
            owner = None if beside_labels is None else stems.get(beside_labels / folder.name)
            if owner is not None:
                yield _MaskFolder(scans=(owner,), name="masks", masks=tuple(inside), dataset=dataset)


def _belong_together(scans: Sequence[Path], num_masks: int) -> bool:
    """Whether masks in a folder certainly belong to the scans beside it.

    They do if these are the channels of one case, or one scan that is named by its modality (ct.nii.gz) or
    has several masks. A single mask of another name may be the label of a scan that is missing.
    """
    if len(scans) == 1:
        return num_masks > 1 or parse_modality(stem_of(scans[0].name)) is not None
    return [set(case.channels) for case in cases_among(scans)] == [set(scans)]


def _without_word(name: str) -> str:
    """Return a folder's name without a word for labels at its end ("p01" of "p01_masks"); "" without one."""
    match = _SUFFIX.match(name)
    return match["x"] if match else ""


def read_splits(path: Path) -> dict[str, str]:
    """Return the split of each case in a meta.csv; {} if there is no such file or no such columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return {}
    delimiter = max((";", ",", "\t"), key=text.split("\n", 1)[0].count)
    rows = csv.DictReader(text.splitlines(), delimiter=delimiter)
    return {
        row["image_id"].strip(): row["split"].strip()
        for row in rows
        if row.get("image_id") and row.get("split")
    }


def masks_of(
    root: Path, name: str, masks: Iterable[Path], numbers: Mapping[str, int], *, shared: bool
) -> LabelSource:
    """Return the label that several binary masks make together.

    Args:
        root: The searched folder.
        name: Name of the label.
        masks: Their files.
        numbers: Value of each structure.
        shared: Whether it belongs to all scans of a case.
    """
    parts = sorted((numbers[stem_of(mask.name)], stem_of(mask.name), root / mask) for mask in masks)
    return LabelSource(
        name=name,
        path=parts[0][2],
        value_names=None,
        parts=tuple(LabelPart(value=value, name=part, path=path) for value, part, path in parts),
        shared=shared,
    )


def number_names(names: Iterable[str]) -> dict[str, int]:
    """Return the value of each structure of a data set: its place among all names in order, from 1."""
    return {name: value for value, name in enumerate(sorted(set(names)), start=1)}


TOTALSEGMENTATOR = Layout(
    name="totalsegmentator",
    title="a folder of masks beside each scan (TotalSegmentator)",
    wants="masks in a folder such as segmentations, beside the only scan of the folder above",
    find=find_mask_folders,
)
