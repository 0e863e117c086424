"""Masks in DICOM-SEG and RTSTRUCT files, on the grid of the series that they were drawn on.

*Reads*: a file, and the grid of the scan's own file, which must be that series. *Writes*: `MaskVolume`s; a
segment or region of interest is a mask. Names of structures are stored without the patient's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.discovery import LabelSource
from pipeline.errors import ScanError
from pipeline.exchange.placing import MaskVolume, Target
from pipeline.formats import Scrubber, check_readable, read_header, read_label_header
from pipeline.ingest import IngestConfig, read_dicom_label


def read_dicom_masks(path: Path, target: Target, config: IngestConfig, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the structures of a file as label maps; those that overlap lie in further maps.

    Args:
        path: The file.
        target: The scan.
        config: Has the tolerance between two grids.
        shown: Name of the file in messages.

    Raises:
        ScanError: It is no such file, or does not lie on the scan's own grid.
    """
    check_readable(path, shown=shown)
    try:
        header = read_label_header(path)
        scrubber = Scrubber([(Path(), read_header(path).identity)])
    except ScanError as error:
        raise type(error)(error.reason, path=shown, remedy=error.remedy) from None
    label = LabelSource(
        name="seg",
        path=path,
        value_names=None,
        location=shown,
        format=header.kind,
        structures=tuple((one.number, scrubber.text(one.name)) for one in header.structures),
    )
    for one in read_dicom_label(label, target.original, None, config, shown=shown):
        yield MaskVolume(values=one.array, grid=one.grid, names=dict(one.value_names or {}))
