"""The label maps of a scan from their files: label maps, DICOM structures, and binary masks of structures.

*Reads*: label files. *Writes*: `RawLabel` on the scan's grid, and notes on what was left out. Masks are read
one after the other, so that only the maps and one mask are held in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.discovery import LabelSource, Source, id_from_parts
from pipeline.errors import LabelMismatch, NoSuchFrame
from pipeline.formats import Slices, check_readable, companions
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.dicom.labels import read_dicom_label
from pipeline.ingest.image_files import read_file
from pipeline.ingest.labels import OtherGrid, RawLabel, check_label
from pipeline.ingest.packing import map_names, pack_values
from pipeline.volumes import Grid


def read_labels(
    source: Source, grid: Grid, slices: Slices | None, config: IngestConfig
) -> tuple[tuple[RawLabel, ...], tuple[str, ...]]:
    """Return the label maps of a scan, and notes on what was left out.

    Args:
        source: The scan.
        grid: Its grid.
        slices: Its slices, if it is a DICOM series.
        config: How labels are checked.

    Raises:
        ScanError: A label cannot be read or does not fit. A label that several scans share is left out where
            it lies on another grid.
    """
    labels: list[RawLabel] = []
    notes: list[str] = []
    for label in source.labels:
        where = label.location or f"{source.location} (label {label.name})"
        try:
            if label.parts:
                made, said = _read_parts(label, grid, config, shown=where)
                labels.extend(made)
                notes.extend(said)
            elif label.format != "map":
                labels.extend(read_dicom_label(label, grid, slices, config, shown=where))
            else:
                frame = config.frame if source.frame is None else source.frame
                labels.append(_read_map(label, grid, config, shown=where, frame=frame))
        except OtherGrid as error:
            if not label.shared:
                raise LabelMismatch(error.reason, path=error.path, remedy=error.remedy) from None
            notes.append(f"label {label.name} of the case is not used for this scan: {error.reason}")
    return tuple(labels), tuple(notes)


def _read_map(
    label: LabelSource, grid: Grid, config: IngestConfig, *, shown: str, frame: int | None = None
) -> RawLabel:
    """Return the label map in a file; it must lie on the scan's grid and hold declared values only.

    From a 4D file the volume with the scan's own frame index is taken.
    """
    check_readable(label.path, shown=shown, what="label file")
    files = companions(label.path)
    try:
        try:
            one = read_file(files, config, frame=None, shown=shown)
        except NoSuchFrame:
            if frame is None:
                raise
            one = read_file(files, config, frame=frame, shown=shown)
    except NoSuchFrame as error:
        raise LabelMismatch(
            error.reason,
            path=shown,
            remedy="Save the volume that belongs to its scan as a 3D file",
        ) from None
    return check_label(one.array, one.grid, label=label, grid=grid, config=config, shown=shown)


def _read_parts(
    label: LabelSource, grid: Grid, config: IngestConfig, *, shown: str
) -> tuple[list[RawLabel], list[str]]:
    """Return the label maps made from binary masks, and notes.

    Masks that overlap go to further maps. A file with several values is a label map of its own. A mask on
    another grid is an error, or left out with a note if the label is shared.
    """
    others: list[RawLabel] = []
    notes: list[str] = []
    about = Counter[str]()

    def masks() -> Iterator[tuple[int, str, NDArray[np.bool_]]]:
        for part in label.parts:
            one = LabelSource(name=id_from_parts([part.name]), path=part.path, value_names=None)
            try:
                read = _read_map(one, grid, config, shown=f"{shown}: {part.name}")
            except OtherGrid as error:
                if not label.shared:
                    raise
                notes.append(f"mask {part.name} of the case is not used for this scan: {error.reason}")
                continue
            about.update(note.split(": ", 1)[-1] for note in read.notes)
            inside, top = read.array != 0, int(read.array.max())
            if top == 0 or np.count_nonzero(read.array == top) == np.count_nonzero(inside):
                yield part.value, part.name, inside
            else:
                others.append(replace(read, notes=()))
                notes.append(f"mask {part.name} has several values: it is a label map of its own")

    maps = pack_values(masks(), grid.shape_zyx)
    packed = [
        RawLabel(name=name, array=made.array, grid=grid, value_names=made.value_names)
        for name, made in zip(map_names(label.name, len(maps)), maps, strict=True)
        if made.value_names
    ]
    notes.extend(f"label {label.name}, {count} masks: {text}" for text, count in about.items())
    return packed + others, notes
