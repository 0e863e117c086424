"""DICOM-SEG and RTSTRUCT files as label maps of a scan.

*Reads*: a label source, and the slices and grid of its scan. *Writes*: `RawLabel`, one or more: structures
that overlap go to further maps ("seg", "seg_2"); and notes. Values are numbered from 1 in the order of the
file's segment or ROI numbers.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.discovery import LabelSource
from pipeline.errors import ScanError
from pipeline.formats import Slices, check_readable, os_error
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.dicom.segmentations import Segmentation
from pipeline.ingest.dicom.structure_sets import read_contours, structure_masks
from pipeline.ingest.labels import RawLabel
from pipeline.ingest.packing import map_names, pack
from pipeline.volumes import Grid


def read_dicom_label(
    label: LabelSource, grid: Grid, slices: Slices | None, config: IngestConfig, *, shown: str
) -> tuple[RawLabel, ...]:
    """Return the label maps of a DICOM-SEG or RTSTRUCT file on a scan's grid; the first has the notes.

    Args:
        label: The file, with the structures that are wanted.
        grid: The scan's grid.
        slices: The scan's slices, if it is DICOM.
        config: Has the tolerance between two grids.
        shown: Name of the file in error messages.

    Raises:
        ScanError: The file cannot be read, or does not fit the scan.
    """
    check_readable(label.path, shown=shown, what="label file")
    notes: list[str] = []
    try:
        if label.format == "rtstruct":
            contours = read_contours(label.path, shown)
            maps = pack(
                structure_masks(contours, label.structures, grid, notes=notes, shown=shown), grid.shape_zyx
            )
        else:
            opened = Segmentation(
                label.path,
                grid,
                slice_positions=_positions(slices),
                tolerance_voxels=config.label_tolerance_voxels,
                shown=shown,
            )
            notes = opened.notes
            maps = pack(opened.masks(label.structures), grid.shape_zyx)
    except ScanError as error:
        if error.path is not None:
            raise
        raise type(error)(error.reason, path=shown, remedy=error.remedy) from None
    except OSError as error:
        raise os_error(error, shown=shown) from None
    if len(maps) > 1:
        notes.append(f"structures overlap: they lie in {len(maps)} label maps")
    labels = [
        RawLabel(name=name, array=one.array, grid=grid, value_names=one.value_names)
        for name, one in zip(map_names(label.name, len(maps)), maps, strict=True)
    ]
    named = tuple(f"label {label.name}: {note}" for note in notes)
    return (replace(labels[0], notes=named), *labels[1:])


def _positions(slices: Slices | None) -> dict[str, tuple[float, float, float]]:
    """Return the world point of the first pixel of each slice, by SOP instance."""
    return {
        header.sop_uid: header.position_xyz_mm
        for header in (() if slices is None or slices.frames is not None else slices.headers)
        if header.position_xyz_mm is not None
    }
