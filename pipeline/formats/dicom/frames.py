"""Frames of multi-frame DICOM files: where each lies, what distinguishes it, and how its values are scaled.

*Reads*: shared and per-frame functional groups of a header (enhanced CT, MR and PET). *Writes*: `Frame`, one
per stored frame. An item of the per-frame groups has priority over the shared one, as the standard wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.formats.dicom.values import find_floats, find_number, find_text

VOLUME_KEYS = ("temporal position", "echo time", "trigger delay", "b-value")
"""What distinguishes the volumes of a 4D file; volumes are sorted by these, in this order."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a multi-frame file.

    Attributes:
        number: Index of the frame in the file, from 0.
        position_xyz_mm: World point of the first pixel's centre.
        orientation: Unit vectors along a row and along a column, six numbers; None if missing.
        pixel_spacing_mm: Distance between rows, and between columns; None if missing.
        stack: StackID, "" if missing.
        order: Values of `VOLUME_KEYS`; 0 where missing. Volumes at the same positions are sorted by them.
        rescale: Slope and intercept from stored to real values; (1, 0) if missing.
    """

    number: int
    position_xyz_mm: tuple[float, float, float]
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, float] | None
    stack: str
    order: tuple[float, ...]
    rescale: tuple[float, float]


def read_frames(data: Any) -> tuple[Frame, ...] | None:
    """Return the frames of a header in stored order, or None if any has no position.

    Args:
        data: A pydicom data set.
    """
    shared = first_item(data, "SharedFunctionalGroupsSequence")
    per_frame = list(data.get("PerFrameFunctionalGroupsSequence") or ())
    frames = [_frame(number, [own, shared]) for number, own in enumerate(per_frame)]
    known = [frame for frame in frames if frame is not None]
    return tuple(known) if known and len(known) == len(frames) else None


def _frame(number: int, groups: Sequence[Any]) -> Frame | None:
    position = in_groups(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    if position is None:
        return None
    spacing = in_groups(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    keys = (
        _number_in(groups, "FrameContentSequence", "TemporalPositionIndex"),
        _number_in(groups, "MREchoSequence", "EffectiveEchoTime"),
        _number_in(groups, "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        _number_in(groups, "MRDiffusionSequence", "DiffusionBValue"),
    )
    slope = _number_in(groups, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _number_in(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    stacks = [find_text(item, "StackID") for item in _items(groups, "FrameContentSequence")]
    return Frame(
        number=number,
        position_xyz_mm=(position[0], position[1], position[2]),
        orientation=in_groups(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        stack=next((t for t in stacks if t), ""),
        order=tuple(value or 0.0 for value in keys),
        rescale=(1.0 if slope is None else slope, intercept or 0.0),
    )


def first_item(data: Any, sequence: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = None if data is None else data.get(sequence)
    return items[0] if items else None


def in_groups(groups: Sequence[Any], sequence: str, tag: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's `count` numbers from the first group that has them, or None."""
    values = (find_floats(item, tag, count) for item in _items(groups, sequence))
    return next((value for value in values if value is not None), None)


def _number_in(groups: Sequence[Any], sequence: str, tag: str) -> float | None:
    values = (find_number(item, tag) for item in _items(groups, sequence))
    return next((value for value in values if value is not None), None)


def _items(groups: Sequence[Any], sequence: str) -> list[Any]:
    return [item for group in groups if (item := first_item(group, sequence)) is not None]
