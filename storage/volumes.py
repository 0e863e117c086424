"""A scan's volumes at any level: read where it is stored, made of a finer one where it is not.

*Reads* the arrays of an image (volume "") or label map ("labels/<name>"). Where it stops being fast: a level
of a scan of format version 1, which has level 0 only, takes reading all of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from storage.layout import level_key
from storage.levels import Triple, downsample_image, downsample_labels, fine_region, ratio, steps_to
from storage.regions import Region, region_shape
from storage.scan_files import ScanFiles


@dataclass(frozen=True, kw_only=True)
class VolumeReader:
    """Reads regions of a scan's volumes."""

    files: ScanFiles
    plan: tuple[Triple, ...]
    """Factors of the scan's levels."""
    stored: tuple[Triple, ...]
    """Those of them, the first ones, that lie on disk."""

    def read(self, volume: str, box: Region, factors: Triple) -> NDArray[Any]:
        """Return a parsed region of the level with these factors."""
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
        """Yield the parts of a parsed region, by chunk where the level is stored.

        Args:
            volume: Which.
            box: What to read.
            factors: Of the level.
            wanted: Given where a part lies, whether it is needed; the others are not read.

        Yields:
            Where the part lies, counted from the region's corner; the part, valid until the next one.
        """
        if factors in self.stored:
            reader = self.files.array(level_key(volume, self.stored.index(factors)))
            yield from reader.chunks(box, wanted=wanted)
            return
        everything = tuple(slice(0, size) for size in region_shape(box))
        if wanted is None or wanted(everything):
            yield everything, self.read(volume, box, factors)
