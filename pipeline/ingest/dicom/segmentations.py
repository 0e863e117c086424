"""DICOM-SEG frames to masks on the grid of the series that they belong to.

*Reads*: binary, fractional and label map segmentations. *Writes*: a mask for each segment, bool (z, y, x) on
the series' grid, and notes.

A frame may be stored along other axes than the series' slices, flipped, or smaller; each of its pixels must
lie on a voxel centre. Frames without anything are often left out of the file: what no frame shows is
background. A fractional segment is cut at half of its largest possible value, with a note.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.pixels.utils import iter_pixels

from pipeline.errors import CorruptImage, LabelMismatch
from pipeline.formats import find_number, find_text, first_item, in_groups, source_instances
from pipeline.volumes import Grid


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """Where the pixels of a frame lie on the series' grid, in voxels (x, y, z).

    Attributes:
        first: Index coordinates of the first pixel.
        along_row: Step from a pixel to the next of its row.
        along_column: Step from a pixel to the one below.
    """

    first: NDArray[np.float64]
    along_row: NDArray[np.float64]
    along_column: NDArray[np.float64]


class Segmentation:
    """A DICOM-SEG file, opened; frames are decoded when a segment is asked for.

    Args:
        path: The file.
        grid: Grid of the series.
        slice_positions: World point of the first pixel of each image of the series, by SOP instance: for
            files whose frames refer to their image in place of a position.
        tolerance_voxels: Largest distance of a frame's corner from a voxel centre.
        shown: Name of the file in error messages.

    Raises:
        CorruptImage: The file is damaged.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        slice_positions: Mapping[str, tuple[float, float, float]],
        tolerance_voxels: float,
        shown: str,
    ) -> None:
        self._path, self._grid, self._shown = path, grid, shown
        self._positions, self._tolerance = slice_positions, tolerance_voxels
        self.notes: list[str] = []
        try:
            with disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they contain the path, perhaps with a name
                data: Any = pydicom.dcmread(path)
                self._data = data
                self._kind = find_text(data, "SegmentationType").upper() or "LABELMAP"
                self._shared = first_item(data, "SharedFunctionalGroupsSequence")
                self._frames = list(data.get("PerFrameFunctionalGroupsSequence") or ())
                self._size = int(data.Rows), int(data.Columns)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, IndexError):
            raise self._damaged("its header cannot be read") from None

    def masks(self, segments: Sequence[tuple[int, str]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield name and mask, bool (z, y, x), of each segment, given as (number, name).

        Raises:
            LabelMismatch: A frame does not lie on the series' grid.
            CorruptImage: The pixels cannot be decoded.
        """
        if self._kind == "FRACTIONAL" and segments:
            self.notes.append("fractional segments were cut at half of their largest possible value")
        of_frame = [self._segment_of(group) for group in self._frames]
        everything = range(len(of_frame))
        shared = list(self._pixels(everything)) if self._kind == "LABELMAP" else None
        for number, name in segments:
            mask = np.zeros(self._grid.shape_zyx, np.bool_)
            lost, wanted = 0, [i for i in everything if of_frame[i] in (number, None)]
            for index, pixels in zip(wanted, shared or self._pixels(wanted), strict=True):
                inside = pixels == number if self._kind == "LABELMAP" else pixels >= self._threshold()
                if inside.any():
                    lost += _paint(mask, inside, self._plane(index))
            if lost:
                self.notes.append(f"{lost} labelled voxels of {name} lie outside the series")
            yield name, mask

    def _segment_of(self, group: Any) -> int | None:
        """Return the segment number of a frame; None for a label map, whose frames show all segments."""
        if self._kind == "LABELMAP":
            return None
        for one in (group, self._shared):
            item = first_item(one, "SegmentIdentificationSequence")
            number = None if item is None else find_number(item, "ReferencedSegmentNumber")
            if number is not None:
                return int(number)
        raise self._damaged("a frame does not say which segment it shows")

    def _threshold(self) -> float:
        if self._kind != "FRACTIONAL":
            return 1
        return (find_number(self._data, "MaximumFractionalValue") or 255) / 2

    def _pixels(self, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the pixels of frames, (rows, columns)."""
        if not frames:
            return
        try:
            with disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if (
                    self._data.BitsAllocated == 1
                    and not self._data.file_meta.TransferSyntaxUID.is_encapsulated
                ):
                    yield from (self._bits(index) for index in frames)
                    return
                for pixels in iter_pixels(self._data, raw=True, indices=list(frames)):
                    yield pixels.reshape(self._size)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError, RuntimeError):
            # NotImplementedError, for unknown compressions, is a RuntimeError
            raise self._damaged("its pixels cannot be decoded") from None

    def _bits(self, index: int) -> NDArray[np.uint8]:
        """Return a frame of single bits; frames need not begin with a byte, which pydicom gets wrong."""
        count = self._size[0] * self._size[1]
        first, stop = index * count, (index + 1) * count
        packed = np.frombuffer(self._data.PixelData[first // 8 : (stop + 7) // 8], np.uint8)
        bits = np.unpackbits(packed, bitorder="little")
        return bits[first % 8 : first % 8 + count].reshape(self._size)

    def _plane(self, index: int) -> _Plane:
        """Return where a frame lies on the grid.

        Raises:
            LabelMismatch: Its pixels do not lie on voxel centres.
        """
        groups = [self._frames[index], self._shared]
        position = in_groups(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
        position = position or self._source(index)
        orientation = in_groups(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing = in_groups(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
        matrix = self._grid.matrix
        if orientation is None:
            orientation = (*matrix[:, 0], *matrix[:, 1])
        if spacing is None:
            spacing = (self._grid.spacing_xyz_mm[1], self._grid.spacing_xyz_mm[0])
        if position is None:
            raise self._damaged("a frame has neither a position nor an image that it refers to")
        start = np.array(position)
        steps = np.array(orientation[:3]) * spacing[1], np.array(orientation[3:]) * spacing[0]
        first = self._grid.to_index(start)
        row, column = (self._grid.to_index(start + step) - first for step in steps)
        plane = _Plane(first=first, along_row=row, along_column=column)
        self._check(plane)
        return plane

    def _source(self, index: int) -> tuple[float, float, float] | None:
        known = (self._positions.get(uid) for uid in source_instances(self._frames[index]))
        return next((position for position in known if position is not None), None)

    def _check(self, plane: _Plane) -> None:
        """Refuse a frame whose pixels do not lie on voxel centres."""
        rows, columns = self._size
        steps = np.rint(plane.along_row), np.rint(plane.along_column)
        corner = plane.first + (columns - 1) * plane.along_row + (rows - 1) * plane.along_column
        wanted = np.rint(plane.first) + (columns - 1) * steps[0] + (rows - 1) * steps[1]
        away = max(np.abs(plane.first - np.rint(plane.first)).max(), np.abs(corner - wanted).max())
        if any(np.abs(step).sum() != 1 for step in steps) or away > self._tolerance:
            raise LabelMismatch(
                "a segmentation must lie on its series' grid, these frames have other pixels"
                + ("" if away > 1e3 else f" (a corner lies {away:.2f} voxels away)"),
                path=self._shown,
                remedy="Export it on the series that it was drawn on, or resample it (nearest neighbour)",
            )

    def _damaged(self, what: str) -> CorruptImage:
        return CorruptImage(
            f"the segmentation is damaged or oddly compressed: {what}",
            path=self._shown,
            remedy="Export it again, uncompressed",
        )


def _paint(mask: NDArray[np.bool_], inside: NDArray[np.bool_], plane: _Plane) -> int:
    """Set the voxels of a frame's pixels, and return how many pixels lie outside the grid."""
    rows, columns = np.nonzero(inside)
    points = np.rint(plane.first + columns[:, None] * plane.along_row + rows[:, None] * plane.along_column)
    zyx = points.astype(np.int64)[:, ::-1]
    within = ((zyx >= 0) & (zyx < mask.shape)).all(axis=1)
    z, y, x = zyx[within].T
    mask[z, y, x] = True
    return int((~within).sum())
