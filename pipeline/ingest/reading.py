"""From a source's files to arrays in real units, on the scan's own axes.

*Reads*: single-file images (`image_files`), DICOM files, .npz sets. *Writes*: `RawScan`: image (z, y, x) on
the axes of the file, int16 or float32 in real units (rescale slope and intercept applied), its grid, and
label maps on the same grid. Every other input is refused with a `ScanError` that gives the reason; a message
contains no path, only the source's `location`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from pipeline.discovery import SetItem, Source
from pipeline.errors import NotVolumetric
from pipeline.formats import (
    Slices,
    parse_modality,
    read_set_image,
    until_stalled,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.dicom.pixels import plain_if_whole, read_slices, read_values
from pipeline.ingest.dicom.suv import pet_scale
from pipeline.ingest.image_checks import check_spacing, plain
from pipeline.ingest.image_files import read_file, read_file_header
from pipeline.ingest.label_files import read_labels
from pipeline.ingest.labels import RawLabel
from pipeline.volumes import Grid

sitk: Any = SimpleITK
"""SimpleITK without types."""


@dataclass(frozen=True, kw_only=True)
class RawScan:
    """A scan as its files hold it.

    Attributes:
        scan_id: Its id.
        location: Its name in messages.
        image: (z, y, x) int16 or float32 in real units, on the file's own axes.
        grid: Its grid.
        labels: Label maps on the same grid.
        modality: "ct", "mr", "pet"; "other" for a set; None if neither manifest nor DICOM declares it.
        modality_origin: "manifest", "dicom", "set", or "" if unknown.
        facts: Machine and acquisition from DICOM, as text; nothing about the patient.
        kept_whole: Whether it is not cropped, because the makers of a set have cropped it.
        unit: Unit of a DICOM PET's values, "SUV", "Bq/ml" or "arbitrary"; "" if it is not known here.
        notes: What was unusual in the files, and what was done about it.
    """

    scan_id: str
    location: str
    image: NDArray[np.int16] | NDArray[np.float32]
    grid: Grid
    labels: tuple[RawLabel, ...]
    modality: str | None
    modality_origin: str
    facts: tuple[tuple[str, str], ...] = ()
    kept_whole: bool = False
    unit: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """Size of a scan, from its header."""

    shape_zyx: tuple[int, int, int]
    """Voxels of the file."""
    spacing_zyx_mm: tuple[float, float, float]
    """Their size."""
    kept_whole: bool = False
    """Whether it is neither resampled nor cropped."""

    @property
    def num_voxels(self) -> int:
        """Voxels of the file."""
        return math.prod(self.shape_zyx)

    def voxels_at(self, spacing_mm: float) -> int:
        """Return the voxels of the whole volume at a spacing, before any crop."""
        if self.kept_whole:
            return self.num_voxels
        lengths = [n * s for n, s in zip(self.shape_zyx, self.spacing_zyx_mm, strict=True)]
        return math.prod(max(1, round(length / spacing_mm)) for length in lengths)


@dataclass(frozen=True, kw_only=True)
class _Volume:
    """Voxels of a scan before its labels are read; fields as in `RawScan`, `tag` is DICOM's modality."""

    image: NDArray[np.int16] | NDArray[np.float32]
    grid: Grid
    tag: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()


def read_source(source: Source, config: IngestConfig) -> RawScan:
    """Read a scan and its labels.

    Raises:
        ScanError: The files are not a usable scan, or a label does not fit; the class is the kind of cause.
            `StalledRead` if reading stands still for longer than the settings allow.
    """
    return until_stalled(
        lambda: _read(source, config), seconds=config.read_timeout_seconds, shown=source.location
    )


def _read(source: Source, config: IngestConfig) -> RawScan:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    where = source.location
    slices: Slices | None = None
    if source.item is not None:
        return _read_item(source, source.item, config)
    modality, origin = source.modality, "manifest" if source.modality else ""
    if source.format == "dicom":
        volume, slices = _read_dicom(source, config)
        if modality is None:
            modality = parse_modality(volume.tag)
            origin = "dicom" if modality else ""
    else:
        frame = config.frame if source.frame is None else source.frame
        one = read_file(source.files, config, frame=frame, shown=where)
        volume = _Volume(image=one.array, grid=one.grid, notes=one.notes)
    labels, label_notes = read_labels(source, volume.grid, slices, config)
    return RawScan(
        scan_id=source.scan_id,
        location=where,
        image=volume.image,
        grid=volume.grid,
        labels=labels,
        modality=modality,
        modality_origin=origin,
        facts=volume.facts,
        unit=volume.unit,
        notes=(*volume.notes, *label_notes),
    )


def _read_item(source: Source, item: SetItem, config: IngestConfig) -> RawScan:
    """Read a scan of a set.

    Its axes are declared as head, front, right, as in the store, so nothing is turned.
    """
    where = source.location
    _check_item(item, config, where)
    array = read_set_image(source.files[0], item.array, item.index, shown=where)
    edge = config.set_spacing_mm or config.spacing_mm
    grid = Grid(
        shape_zyx=item.shape_zyx,
        spacing_xyz_mm=(edge, edge, edge),
        origin_xyz_mm=(0.0, 0.0, 0.0),
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    )
    return RawScan(
        scan_id=source.scan_id,
        location=where,
        image=plain(array),
        grid=grid,
        labels=(),
        modality="other",
        modality_origin="set",
        kept_whole=True,
    )


def read_scan_header(source: Source, config: IngestConfig) -> ScanHeader:
    """Return the size of a source from its headers; no voxel is read.

    Errors in the voxels (NaN, a constant image, a damaged stream) or the labels are not found.

    Raises:
        ScanError: The header shows that the source cannot be used; the class is the kind of cause.
    """
    where = source.location
    if source.item is not None:
        _check_item(source.item, config, where)
        edge = config.set_spacing_mm or config.spacing_mm
        whole = config.set_spacing_mm is None
        return ScanHeader(shape_zyx=source.item.shape_zyx, spacing_zyx_mm=(edge,) * 3, kept_whole=whole)
    if source.format == "dicom":
        grid = read_slices(source, config.series_rules).grid
        size, spacing = grid.shape_zyx[::-1], grid.spacing_xyz_mm
        check_spacing(spacing, size, config, where)
    else:
        frame = config.frame if source.frame is None else source.frame
        size, spacing = read_file_header(source.files, config, frame=frame, shown=where)
    return ScanHeader(
        shape_zyx=(size[2], size[1], size[0]), spacing_zyx_mm=(spacing[2], spacing[1], spacing[0])
    )


def _check_item(item: SetItem, config: IngestConfig, where: str) -> None:
    """Refuse a scan of a set that is no volume."""
    if min(item.shape_zyx) < config.min_size_voxels:
        raise NotVolumetric(
            f"a volume needs at least {config.min_size_voxels} voxels along three axes, this has "
            f"{' x '.join(map(str, item.shape_zyx))}",
            path=where,
            remedy="Take the set's 3D form",
        )


def _read_dicom(source: Source, config: IngestConfig) -> tuple[_Volume, Slices]:
    """Return the volume of a DICOM series, PET in SUV if that is wanted and possible; and its slices."""
    where = source.location
    slices = read_slices(source, config.series_rules)
    grid, header = slices.grid, slices.headers[0]
    x, y, z = grid.shape_zyx[::-1]
    check_spacing(grid.spacing_xyz_mm, (x, y, z), config, where)
    array = read_values(slices, where)
    unit, note = "", ""
    if header.modality == "PT" and config.pet_unit == "suv":
        scale = pet_scale([h.path for h in slices.headers], where)
        if scale.factor != 1:
            array *= np.float32(scale.factor)
        unit, note = scale.unit, scale.note
    volume = _Volume(
        image=plain_if_whole(array),
        grid=grid,
        tag=header.modality,
        facts=header.facts,
        unit=unit,
        notes=(note,) if note else (),
    )
    return volume, slices
