"""Scans as a data set of nnU-Net v2: one numbering of structures for all scans, one channel.

    DatasetNNN_NAME/
      imagesTr/SCAN_0000.nii.gz   labelsTr/SCAN.nii.gz      scans with labels
      imagesTs/SCAN_0000.nii.gz   labelsTs/SCAN.nii.gz      the split "test", and scans without labels
      proposalsTr/SCAN.nii.gz                               4D; not part of nnU-Net's layout
      dataset.json

nnU-Net's labels are 0, 1, 2, ... without a gap, and a voxel has one. So structures are numbered anew by name,
and label maps that overlap are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportRefused
from pipeline.exchange.export_files import write_stack, write_volume
from pipeline.exchange.export_scans import ExportLabel, ExportScan

_DATASET = re.compile(r"Dataset\d{3}_\w+")

_CHANNEL_NAMES = {"ct": "CT", "mr": "MR", "pet": "PET"}
"""Names of channels; nnU-Net scales an image as CT if its channel has this name."""


@dataclass(frozen=True, kw_only=True)
class LabelNumbers:
    """The number of each structure, from 1."""

    by_name: Mapping[str, int]


def number_structures(names_of_scans: Iterable[Sequence[Mapping[int, str]]]) -> LabelNumbers:
    """Return a number for each name: those of one map keep their order, and their values where these fit.

    Args:
        names_of_scans: For each scan and label map, the name of each value.
    """
    found: dict[str, int] = {}
    for maps in names_of_scans:
        for names in maps:
            for value, name in names.items():
                found[name] = min(value, found.get(name, value))
    ordered = sorted(found, key=lambda name: (found[name], name))
    return LabelNumbers(by_name={name: number for number, name in enumerate(ordered, start=1)})


def nnunet_folder(folder: Path) -> Path:
    """Return the folder of the data set: the given one, if nnU-Net would take its name, else one inside."""
    if _DATASET.fullmatch(folder.name):
        return folder
    name = re.sub(r"\W+", "_", folder.absolute().name).strip("_") or "mass"
    return folder / f"Dataset001_{name}"


def write_nnunet_scan(folder: Path, scan: ExportScan, numbers: LabelNumbers) -> None:
    """Write one scan.

    Raises:
        ExportRefused: Its label maps overlap; none of its files is written.
    """
    part = part_of(scan)
    labels = None if not scan.labels else joined_labels(scan, numbers)
    write_volume(folder / f"images{part}" / f"{scan.scan_id}_0000.nii.gz", scan.image_array(), scan.grid)
    if labels is not None:
        write_volume(folder / f"labels{part}" / f"{scan.scan_id}.nii.gz", labels, scan.grid)
    if len(scan.masks):
        path = folder / f"proposals{part}" / f"{scan.scan_id}.nii.gz"
        write_stack(path, scan.masks, len(scan.masks), scan.grid)


def part_of(scan: ExportScan) -> str:
    """Return "Ts" for scans of the split "test" and for those without labels, else "Tr"."""
    return "Ts" if scan.split == "test" or not scan.labels else "Tr"


def joined_labels(scan: ExportScan, numbers: LabelNumbers) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return one label map of all of a scan's, in the common numbering.

    Raises:
        ExportRefused: Two maps have a structure at the same voxel.
    """
    most = max(numbers.by_name.values(), default=0)
    joined: NDArray[np.uint8] | NDArray[np.uint16] = np.zeros(scan.grid.shape_zyx, np.uint8)
    for label in scan.labels:
        mapped = _renumbered(label, numbers, wide=most > 255)
        clash = int(np.count_nonzero((joined != 0) & (mapped != 0)))
        if clash:
            names = ", ".join(one.name for one in scan.labels)
            raise ExportRefused(
                f"scan {scan.scan_id}: nnU-Net has one label for a voxel, its maps ({names}) overlap at "
                f"{clash:,} voxels. Choose one with --label-map NAME"
            )
        joined = joined + mapped
    return joined


def _renumbered(
    label: ExportLabel, numbers: LabelNumbers, *, wide: bool
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return a label map in the common numbering."""
    names = label.names()
    table = np.zeros(max(names, default=0) + 1, dtype=np.uint16)
    for value, name in names.items():
        table[value] = numbers.by_name[name]
    mapped: NDArray[np.uint8] | NDArray[np.uint16] = table[label.array]
    return mapped if wide else mapped.astype(np.uint8)


def _no_background(name: str) -> str:
    """Return a structure's name that is not nnU-Net's name of 0."""
    return f"{name} (structure)" if name.lower() == "background" else name


def dataset_document(scans: Sequence[ExportScan], numbers: LabelNumbers) -> dict[str, object]:
    """Return the contents of dataset.json."""
    modality = next((scan.modality for scan in scans), "")
    return {
        "channel_names": {"0": _CHANNEL_NAMES.get(modality, modality)},
        "labels": {"background": 0, **{_no_background(n): k for n, k in numbers.by_name.items()}},
        "numTraining": sum(part_of(scan) == "Tr" for scan in scans),
        "file_ending": ".nii.gz",
    }
