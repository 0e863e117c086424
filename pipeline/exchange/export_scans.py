"""A scan as it is exported: image, labels and masks on one grid, the stored one or the scan's own.

*Reads*: arrays (z, y, x) on the stored grid. *Writes*: the same, or resampled back to the scan's own grid:
labels and masks by nearest neighbour, the image by averaged linear interpolation. The original image is not
in a store: the exported image is cropped, clipped and as smooth as the stored one. Outside of the stored part
the image has its lowest value, labels and masks are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest import probability_to_source_grid, to_source_grid
from pipeline.volumes import Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportLabel:
    """A label map."""

    name: str
    array: NDArray[np.uint8] | NDArray[np.uint16]
    """(z, y, x); 0 is background."""
    value_names: Mapping[int, str]

    def names(self) -> dict[int, str]:
        """Return the name of each value that is declared or occurs, sorted by value."""
        present = np.unique(self.array)
        known = {*self.value_names, *(int(value) for value in present)} - {0}
        return {value: self.value_names.get(value, f"{self.name} {value}") for value in sorted(known)}


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportMasks:
    """Proposals, best first."""

    names: tuple[str, ...]
    """Name of each, such as its rank and source."""
    sources: tuple[str, ...]
    scores: tuple[float, ...]
    read: Callable[[int], NDArray[np.bool_]]
    """Returns one of them, bool (z, y, x), by its index."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self.read(number) for number in range(len(self.names)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportScan:
    """A scan as it is written."""

    scan_id: str
    dataset: str
    split: str
    modality: str
    case: str
    """The patient or study, if several scans have it in common; else empty."""
    image: NDArray[np.float32]
    """(z, y, x) in real units."""
    low: float
    """Lowest value that the image may have."""
    grid: Grid
    labels: tuple[ExportLabel, ...]
    masks: ExportMasks

    def image_array(self) -> NDArray[np.int16] | NDArray[np.float32]:
        """Return the image as int16 if that holds every value exactly."""
        whole = np.rint(self.image)
        if whole.min() >= -32_768 and whole.max() <= 32_767 and np.array_equal(whole, self.image):
            return whole.astype(np.int16)
        return self.image


def without_voxels(scan: ExportScan) -> ExportScan:
    """Return a scan without its voxels, to be kept until the end of the export."""
    nothing = np.zeros((0, 0, 0), dtype=np.uint8)
    return replace(
        scan,
        image=np.zeros((0, 0, 0), dtype=np.float32),
        labels=tuple(replace(label, array=nothing) for label in scan.labels),
        masks=replace(scan.masks, read=lambda number: nothing.view(np.bool_)),
    )


def on_original_grid(scan: ExportScan, original: Grid) -> ExportScan:
    """Return a scan on its own grid, see the module."""
    stored, read = scan.grid, scan.masks.read
    image = np.full(original.shape_zyx, scan.low, dtype=np.float32)
    part = probability_to_source_grid(scan.image, stored, original)
    if part is not None:
        box, values = part
        image[box] = values
    labels = tuple(replace(label, array=_labels_back(label.array, stored, original)) for label in scan.labels)
    masks = replace(scan.masks, read=lambda number: to_source_grid(read(number), stored, original))
    return replace(scan, image=image, grid=original, labels=labels, masks=masks)


def _labels_back(
    array: NDArray[np.uint8] | NDArray[np.uint16], stored: Grid, original: Grid
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if array.dtype == np.uint8:
        return to_source_grid(array.astype(np.uint8, copy=False), stored, original)
    return to_source_grid(array.astype(np.uint16, copy=False), stored, original)
