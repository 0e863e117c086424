"""DICOM-SEG frames to masks on the grid of the series that they belong to.

*Reads*: binary, fractional and label map segmentations. *Writes*: a mask for each segment, bool (z, y, x) on
the series' grid, and notes.

A frame may be stored along other axes than the series' slices, flipped, or smaller; each of its pixels must
lie on a voxel centre. Empty frames are often left out of the file: voxels that no frame shows are background.
A fractional segment is cut at half of its largest possible value, with a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels

from pipeline.errors import CorruptImage, LabelMismatch
from pipeline.formats import (
    DAMAGED,
    find_number,
    find_text,
    first_item,
    in_groups,
    quiet_pydicom,
    source_instances,
)
from pipeline.volumes import Grid


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A stored frame.

    Attributes:
        number: Its index in the file.
        segment: The segment that it shows; None for a label map, whose frames show all.
        position_xyz_mm: World point of its first pixel; None if the file does not say.
        orientation: Unit vectors along a row and along a column; None if the file does not say.
        pixel_spacing_mm: Distance between rows, and between columns; None if the file does not say.
        sources: SOP instances of the images that it was drawn on.
    """

    number: int
    segment: int | None
    position_xyz_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """Position of a frame's pixels on the series' grid, in voxels (x, y, z).

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
        CorruptImage: The file is damaged, or shows segments that it does not describe.
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
        self._grid, self._shown = grid, shown
        self._positions, self._tolerance = slice_positions, tolerance_voxels
        self.notes: list[str] = []
        try:
            with quiet_pydicom():
                data: Any = pydicom.dcmread(path)
                self._data, self._size = data, (int(data.Rows), int(data.Columns))
                self._kind = find_text(data, "SegmentationType").upper() or "LABELMAP"
                self._threshold = (find_number(data, "MaximumFractionalValue") or 255) / 2
                self._frames = self._read_frames()
                numbers = [find_number(item, "SegmentNumber") for item in data.SegmentSequence]
                self._described = {0, *(int(number) for number in numbers if number is not None)}
        except DAMAGED:
            raise self._damaged("its header cannot be read") from None
        self._check_described({f.segment for f in self._frames if f.segment is not None})

    def masks(self, segments: Sequence[tuple[int, str]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield name and mask, bool (z, y, x), of each segment, given as (number, name).

        Raises:
            LabelMismatch: A frame does not lie on the series' grid.
            CorruptImage: The pixels cannot be decoded, or show segments that the file does not describe.
        """
        if self._kind == "FRACTIONAL" and segments:
            self.notes.append("fractional segments were cut at half of their largest possible value")
        decoded = list(self._pixels(self._frames)) if self._kind == "LABELMAP" else []
        self._check_described({int(value) for pixels in decoded for value in np.unique(pixels)})
        for number, name in segments:
            mask, lost = np.zeros(self._grid.shape_zyx, np.bool_), 0
            frames = [frame for frame in self._frames if frame.segment in (number, None)]
            for frame, pixels in zip(frames, decoded or self._pixels(frames), strict=True):
                inside = self._inside(pixels, number)
                if inside.any():
                    lost += _paint(mask, inside, self._plane(frame))
            if lost:
                self.notes.append(f"{lost} labelled voxels of {name} lie outside the series")
            yield name, mask

    def _read_frames(self) -> list[_Frame]:
        """Return all frames of the file."""
        shared = first_item(self._data, "SharedFunctionalGroupsSequence")
        own = self._data.PerFrameFunctionalGroupsSequence
        if len(own) != int(self._data.NumberOfFrames):
            raise self._damaged("it does not describe every frame")
        return [self._read_frame(number, [group, shared]) for number, group in enumerate(own)]

    def _read_frame(self, number: int, groups: Sequence[Any]) -> _Frame:
        found = [first_item(group, "SegmentIdentificationSequence") for group in groups]
        segments = [find_number(item, "ReferencedSegmentNumber") for item in found if item is not None]
        segment = next((int(one) for one in segments if one is not None), None)
        if segment is None and self._kind != "LABELMAP":
            raise self._damaged("a frame does not say which segment it shows")
        return _Frame(
            number=number,
            segment=None if self._kind == "LABELMAP" else segment,
            position_xyz_mm=in_groups(groups, "PlanePositionSequence", "ImagePositionPatient", 3),
            orientation=in_groups(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
            pixel_spacing_mm=in_groups(groups, "PixelMeasuresSequence", "PixelSpacing", 2),
            sources=tuple(source_instances(groups[0])),
        )

    def _inside(self, pixels: NDArray[Any], number: int) -> NDArray[np.bool_]:
        """Return which pixels of a frame belong to a segment."""
        if self._kind == "LABELMAP":
            return np.asarray(pixels == number)
        return np.asarray(pixels >= (self._threshold if self._kind == "FRACTIONAL" else 1))

    def _pixels(self, frames: Sequence[_Frame]) -> Iterator[NDArray[Any]]:
        """Yield the pixels of frames, (rows, columns)."""
        numbers = [frame.number for frame in frames]
        if not numbers:
            return
        try:
            with quiet_pydicom():
                compressed = self._data.file_meta.TransferSyntaxUID.is_encapsulated
                if self._data.BitsAllocated == 1 and not compressed:
                    yield from (self._bits(number) for number in numbers)
                    return
                for pixels in iter_pixels(self._data, raw=True, indices=numbers):
                    yield pixels.reshape(self._size)
        except DAMAGED:
            raise self._damaged("its pixels cannot be decoded") from None

    def _bits(self, number: int) -> NDArray[np.uint8]:
        """Return a frame of single bits. A frame may begin within a byte, which pydicom does not handle."""
        count = self._size[0] * self._size[1]
        first, stop = number * count, (number + 1) * count
        packed = np.frombuffer(self._data.PixelData[first // 8 : (stop + 7) // 8], np.uint8)
        bits = np.unpackbits(packed, bitorder="little")
        return bits[first % 8 : first % 8 + count].reshape(self._size)

    def _plane(self, frame: _Frame) -> _Plane:
        """Return the position of a frame on the grid.

        Raises:
            LabelMismatch: Its pixels do not lie on voxel centres.
        """
        sources = (self._positions.get(uid) for uid in frame.sources)
        position = frame.position_xyz_mm or next((p for p in sources if p is not None), None)
        if position is None:
            raise self._damaged("a frame has neither a position nor an image that it refers to")
        matrix, (columns_mm, rows_mm, _) = self._grid.matrix, self._grid.spacing_xyz_mm
        orientation = frame.orientation or (*matrix[:, 0], *matrix[:, 1])
        spacing = frame.pixel_spacing_mm or (rows_mm, columns_mm)
        start = np.array(position)
        steps = np.array(orientation[:3]) * spacing[1], np.array(orientation[3:]) * spacing[0]
        first = self._grid.to_index(start)
        row, column = (self._grid.to_index(start + step) - first for step in steps)
        plane = _Plane(first=first, along_row=row, along_column=column)
        self._check_on_grid(plane)
        return plane

    def _check_on_grid(self, plane: _Plane) -> None:
        """Refuse a frame whose pixels do not lie on voxel centres."""
        rows, columns = self._size
        row, column = np.rint(plane.along_row), np.rint(plane.along_column)
        corner = plane.first + (columns - 1) * plane.along_row + (rows - 1) * plane.along_column
        wanted = np.rint(plane.first) + (columns - 1) * row + (rows - 1) * column
        away = max(np.abs(plane.first - np.rint(plane.first)).max(), np.abs(corner - wanted).max())
        straight = np.abs(row).sum() == np.abs(column).sum() == 1 and row @ column == 0
        if not straight or not away <= self._tolerance:
            raise LabelMismatch(
                "a segmentation must lie on its series' grid, these frames have other pixels"
                + (f" (a corner lies {away:.2f} voxels away)" if straight else ""),
                path=self._shown,
                remedy="Export it on the series that it was drawn on, or resample it (nearest neighbour)",
            )

    def _check_described(self, shown: set[int]) -> None:
        """Refuse segments that the file does not describe: their voxels would be lost."""
        unknown = sorted(shown - self._described)
        if unknown:
            listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise self._damaged(f"it shows segments that it does not describe ({listed})")

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
