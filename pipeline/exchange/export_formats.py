"""Scans in the layouts of other tools.

    nifti               SCAN/image.nii.gz, SCAN/labels/MAP.nii.gz and .json, SCAN/proposals.nii.gz (4D) and
                        .json, and manifest.csv, which `mass prepare` reads
    totalsegmentator    SCAN/ct.nii.gz or mri.nii.gz, SCAN/segmentations/, SCAN/proposals/, meta.csv
    published           SCAN_image.npy, dataset.h5 with SCAN/auto_masks (N, z, y, x)
    nnunet              Dataset001_NAME/imagesTr, labelsTr, imagesTs, labelsTs, dataset.json (`export_nnunet`)

*Reads*: `ExportScan`s, one after the other. *Writes*: files below one folder, through `export_files`. No file
holds a path or anything about a patient that the store does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from pipeline.errors import ExportRefused
from pipeline.exchange.export_files import (
    MARK,
    being_written,
    claim_folder,
    remove_parts,
    safe_names,
    write_json,
    write_stack,
    write_table,
    write_volume,
)
from pipeline.exchange.export_nnunet import LabelNumbers, dataset_document, nnunet_folder, write_nnunet_scan
from pipeline.exchange.export_scans import ExportScan, without_voxels
from pipeline.exchange.published import add_case, begin_file, finish_file

ExportFormat: TypeAlias = Literal["nifti", "nnunet", "published", "totalsegmentator"]

_TOTALSEGMENTATOR_IMAGES = {"ct": "ct", "mr": "mri"}


@dataclass(kw_only=True)
class Export:
    """An export that is being written; `begin` makes it."""

    folder: Path
    """Folder of the format's files."""
    mark: Path
    """Folder that the user named; it has `export.json`."""
    format: ExportFormat
    about: dict[str, object]
    numbers: LabelNumbers
    """For nnU-Net: one numbering for all scans; else empty."""
    rows: list[ExportScan] = field(default_factory=list)
    """The scans so far, without arrays."""
    labels_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of each scan's label maps as files have them."""

    def add(self, scan: ExportScan) -> None:
        """Write one scan.

        Raises:
            ExportRefused: The format cannot hold it.
        """
        match self.format:
            case "nifti":
                self.labels_of[scan.scan_id] = _write_nifti_scan(self.folder / scan.scan_id, scan)
            case "totalsegmentator":
                _write_totalsegmentator_scan(self.folder / scan.scan_id, scan)
            case "published":
                _write_published_scan(self.folder, scan)
            case "nnunet":
                write_nnunet_scan(self.folder, scan, self.numbers)
        self.rows.append(without_voxels(scan))

    def finish(self) -> None:
        """Write the files about all scans, such as a manifest."""
        if self.format == "nifti":
            write_table(self.folder / "manifest.csv", _manifest(self.rows, self.labels_of))
        elif self.format == "totalsegmentator":
            rows = [("image_id", "split"), *((scan.scan_id, scan.split) for scan in self.rows)]
            write_table(self.folder / "meta.csv", rows, delimiter=";")
        elif self.format == "nnunet":
            write_json(self.folder / "dataset.json", dataset_document(self.rows, self.numbers))
        else:
            finish_file(self.folder)
        remove_parts(self.mark)
        finished = {"finished": True, "scans": [scan.scan_id for scan in self.rows]}
        write_json(self.mark / MARK, self.about | finished)


def begin(folder: Path, format: ExportFormat, about: Mapping[str, object], numbers: LabelNumbers) -> Export:
    """Return an export into a folder, which must be new, empty, or one of the same format.

    Args:
        folder: The folder.
        format: Layout of the files.
        about: Further contents of `export.json`.
        numbers: For nnU-Net: the numbering of structures; else empty.

    Raises:
        ExportRefused: The folder holds something else.
    """
    document: dict[str, object] = {"format": format, "finished": False, **about}
    claim_folder(folder, document)
    inside = nnunet_folder(folder) if format == "nnunet" else folder
    if format == "published":
        begin_file(folder)
    return Export(folder=inside, mark=folder, format=format, about=document, numbers=numbers)


def _write_nifti_scan(folder: Path, scan: ExportScan) -> tuple[str, ...]:
    """Write one scan; return the file names of its label maps."""
    write_volume(folder / "image.nii.gz", scan.image_array(), scan.grid)
    names = safe_names([label.name for label in scan.labels])
    for name, label in zip(names, scan.labels, strict=True):
        write_volume(folder / "labels" / f"{name}.nii.gz", label.array, scan.grid)
        write_json(folder / "labels" / f"{name}.json", {str(k): v for k, v in label.names().items()})
    if len(scan.masks):
        write_stack(folder / "proposals.nii.gz", scan.masks, len(scan.masks), scan.grid)
        listed = {str(number): name for number, name in enumerate(scan.masks.names, start=1)}
        write_json(folder / "proposals.json", listed)
    return tuple(names)


def _manifest(scans: Sequence[ExportScan], labels_of: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the rows of a manifest; of several label maps the first is named."""
    rows: list[tuple[str, ...]] = [
        ("id", "image", "label", "label_names", "modality", "dataset", "split", "case")
    ]
    for scan in scans:
        label = next(iter(labels_of[scan.scan_id]), None)
        files = (
            ("", "")
            if label is None
            else tuple(f"{scan.scan_id}/labels/{label}{suffix}" for suffix in (".nii.gz", ".json"))
        )
        image = f"{scan.scan_id}/image.nii.gz"
        modality = scan.modality if scan.modality in ("ct", "mr", "pet") else ""
        rows.append((scan.scan_id, image, *files, modality, scan.dataset, scan.split, scan.case))
    return rows


def _write_totalsegmentator_scan(folder: Path, scan: ExportScan) -> None:
    """Write one scan: an image named by modality, a file for each structure.

    Raises:
        ExportRefused: The layout has no name for the modality.
    """
    image = _TOTALSEGMENTATOR_IMAGES.get(scan.modality)
    if image is None:
        raise ExportRefused(
            f"scan {scan.scan_id}: TotalSegmentator's layout holds CT and MR, this is {scan.modality!r}. "
            "Leave it out with --scan or --dataset, or take another format"
        )
    write_volume(folder / f"{image}.nii.gz", scan.image_array(), scan.grid)
    structures = [(label, value, name) for label in scan.labels for value, name in label.names().items()]
    for name, (label, value, _) in zip(safe_names([s[2] for s in structures]), structures, strict=True):
        write_volume(folder / "segmentations" / f"{name}.nii.gz", label.array == value, scan.grid)
    for number, mask in enumerate(scan.masks, start=1):
        write_volume(folder / "proposals" / f"{number:04d}.nii.gz", mask, scan.grid)


def _write_published_scan(folder: Path, scan: ExportScan) -> None:
    """Write one scan: its image as float32, its masks into the HDF5 file of all."""
    if not len(scan.masks):
        raise ExportRefused(
            f"scan {scan.scan_id}: the published layout holds masks, and there is none to write. Give "
            "--proposals N, and a --source that the scan has"
        )
    with being_written(folder / f"{scan.scan_id}_image.npy") as part, part.open("wb") as file:
        np.save(file, scan.image)
    add_case(folder, scan.scan_id, scan.masks, scan.masks.names, scan.grid)
