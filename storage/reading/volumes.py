"""A scan's volumes at any level: read if the level is stored, else computed from a finer one.

*Reads* the arrays of an image (volume "") or label map ("labels/<name>"). Slow for scans of format version 1:
they have level 0 only, so a coarser level reads the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from storage.layout import level_key
from storage.reading.scan_files import ScanFiles
from storage.records import (
    Region,
    Triple,
    downsample_image,
    downsample_labels,
    fine_region,
    ratio,
    region_shape,
    steps_to,
)


@dataclass(frozen=True, kw_only=True)
class VolumeReader:
    """Reads regions of a scan's volumes."""

    files: ScanFiles
    plan: tuple[Triple, ...]
    """Factors of the scan's levels."""
    stored: tuple[Triple, ...]
    """Factors of the levels on disk; the first ones of `plan`."""

    def read(self, volume: str, box: Region, factors: Triple) -> NDArray[Any]:
        """Return a parsed region of the level with these factors.

        Args:
            volume: "" for the image, else "labels/<name>".
            box: Region to read, in voxels of the level.
            factors: Factors of the level.
        """
        first, *coarser = steps_to(factors, self.plan, self.stored, averaged=not volume)
        reader = self.files.array(level_key(volume, self.stored.index(first)))
        array = reader.read(fine_region(box, ratio(first, factors), reader.layout.shape))
        downsample = downsample_labels if volume else downsample_image
        for following in coarser:
            array = downsample(array, ratio(first, following))
            first = following
        return array

    def parts(
        self,
        volume: str,
        box: Region,
        factors: Triple,
        wanted: Callable[[Region], bool] | None = None,
    ) -> Iterator[tuple[Region, NDArray[Any]]]:
        """Yield the parts of a parsed region, by chunk if the level is stored.

        Args:
            volume: "" for the image, else "labels/<name>".
            box: Region to read, in voxels of the level.
            factors: Factors of the level.
            wanted: Given the position of a part, whether it is needed; other parts are not read.

        Yields:
            The position of the part, relative to the region's corner; and the part, valid until the next one.
        """
        if factors in self.stored:
            reader = self.files.array(level_key(volume, self.stored.index(factors)))
            yield from reader.chunks(box, wanted=wanted)
            return
        everything = tuple(slice(0, size) for size in region_shape(box))
        if wanted is None or wanted(everything):
            yield everything, self.read(volume, box, factors)
