"""Masks of slices in JSON, as SAM2 writes them for pictures and videos, in COCO run lengths.

    {"12": [{"segmentation": {"size": [H, W], "counts": "..."}, "predicted_iou": 0.93}, ...], ...}
        by slice, the records of `SAM2AutomaticMaskGenerator(output_mode="coco_rle")`
    a folder of such lists, one file per slice, whose names end in the slice's number
    {"masklet": [[{"size": [H, W], "counts": "..."}, ...], ...]}
        by slice, then object: the layout of the SA-V data set, for masks that were tracked through a scan

A record is a mask of one slice. Records with one `object_id` are one mask. Slices are counted from 0 along
the last axis of the file (the first of an array z, y, x); rows of a slice are y, columns x, or x and y if it
was cut out of a nibabel array.

*Reads*: JSON only; pickled results are refused. *Writes*: `MaskVolume`s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LabelMismatch, NotAnImage
from pipeline.exchange.placing import MaskVolume, Target
from pipeline.formats import check_readable
from pipeline.volumes import Grid, crop_grid

_NUMBER_AT_END = re.compile(r"(\d+)$")

_OBJECT_KEYS = ("object_id", "obj_id")


@dataclass(kw_only=True)
class _Object:
    """A mask while it is read: its slices, and the scores of its records."""

    name: str
    slices: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)

    def add(self, number: int, mask: NDArray[np.bool_], score: object) -> None:
        """Add a part of it in a slice."""
        known = self.slices.get(number)
        self.slices[number] = mask if known is None else known | mask
        if isinstance(score, int | float):
            self.scores.append(float(score))


def read_slice_masks(paths: Sequence[Path], target: Target, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the masks of one JSON file of slices, or of a file for each slice.

    Args:
        paths: The file, or the files.
        target: The scan; gives the directions of the slices.
        shown: Name of the file or folder in messages.

    Raises:
        NotAnImage: A file has another content.
        LabelMismatch: The slices do not fit the scan.
    """
    objects: dict[str, _Object] = {}
    num_slices: int | None = None
    for path in paths:
        data = _load(path, shown=shown)
        if isinstance(data, dict) and "masklet" in data:
            num_slices = _add_masklet(objects, data, shown=shown)
        elif isinstance(data, dict):
            for number, records in data.items():
                _add_records(objects, _slice_number(number, shown), records, shown=shown)
        elif isinstance(data, list):
            _add_records(objects, _slice_number(path.stem, shown), data, shown=shown)
        else:
            raise _not_masks(shown)
    yield from _volumes(objects, num_slices, target, shown=shown)


def looks_like_slice_masks(path: Path) -> bool:
    """Whether a JSON file has masks, and not names of labels or anything else."""
    try:
        data = _load(path, shown=path.name)
    except (NotAnImage, OSError):
        return False
    if isinstance(data, dict):
        data = data.get("masklet", next(iter(data.values()), None))
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, list):
        first = first[0] if first else {"counts": ""}
    return isinstance(first, dict) and ("segmentation" in first or "counts" in first)


def decode_run_lengths(value: object) -> NDArray[np.bool_]:
    """Return the mask in a COCO run-length encoding, bool (rows, columns).

    Counts of pixels outside and inside follow one another, column by column. They are a list, or a string in
    the code of the COCO API: five bits per character, from 48 on; the sixth bit is set if the number
    continues. From the fourth number on, each is the difference to the number two before it.

    Raises:
        ValueError: It is no such encoding, or its counts do not fill its size.
    """
    if not isinstance(value, Mapping) or "size" not in value or "counts" not in value:
        raise ValueError("a mask needs 'size' and 'counts'")
    height, width = (int(n) for n in value["size"])
    counts = value["counts"]
    if isinstance(counts, str):
        counts = _numbers_in(counts)
    lengths = np.array(counts, dtype=np.int64)
    if min(height, width) < 1 or (lengths < 0).any() or int(lengths.sum()) != height * width:
        raise ValueError(f"counts must add up to {height} x {width} pixels, they make {int(lengths.sum())}")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def _numbers_in(text: str) -> list[int]:
    """Return the numbers in the compressed counts of the COCO API."""
    numbers: list[int] = []
    number, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"counts hold the character {character!r}")
        number |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            number -= 1 << shift
        numbers.append(number + numbers[-2] if len(numbers) > 2 else number)
        number, shift = 0, 0
    return numbers


def _load(path: Path, *, shown: str) -> Any:
    check_readable(path, shown=shown)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        raise NotAnImage(
            "it is not JSON, or it is damaged", path=shown, remedy="Save SAM2's results again, as JSON"
        ) from None


def _not_masks(shown: str) -> NotAnImage:
    return NotAnImage(
        "JSON of masks must be a list of records with 'segmentation' for a slice, such lists by slice, or a "
        "'masklet'",
        path=shown,
        remedy="Save SAM2's results with output_mode='coco_rle'",
    )


def _slice_number(text: str, shown: str) -> int:
    match = _NUMBER_AT_END.search(text)
    if match is None:
        raise LabelMismatch(
            f"masks of a slice need its number, got {text!r}",
            path=shown,
            remedy="Name each file or entry after its slice, counted from 0: 12.json",
        )
    return int(match[1])


def _add_masklet(objects: dict[str, _Object], data: Mapping[str, Any], *, shown: str) -> int:
    """Add the objects of a masklet; return its number of slices."""
    frames = data["masklet"]
    ids = data.get("masklet_id")
    if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames):
        raise _not_masks(shown)
    for number, frame in enumerate(frames):
        for place, encoded in enumerate(frame):
            name = str(ids[place]) if isinstance(ids, list) and place < len(ids) else str(place)
            if encoded:
                objects.setdefault(name, _Object(name=name)).add(number, _decoded(encoded, shown), None)
    return len(frames)


def _add_records(objects: dict[str, _Object], number: int, records: object, *, shown: str) -> None:
    """Add the records of one slice."""
    if not isinstance(records, list):
        raise _not_masks(shown)
    for place, record in enumerate(records):
        if not isinstance(record, dict) or "segmentation" not in record:
            raise _not_masks(shown)
        joined = next((str(record[key]) for key in _OBJECT_KEYS if key in record), None)
        key = f"slice {number} mask {place}" if joined is None else f"object {joined}"
        mask = _decoded(record["segmentation"], shown)
        objects.setdefault(key, _Object(name=key)).add(number, mask, record.get("predicted_iou"))


def _decoded(value: object, shown: str) -> NDArray[np.bool_]:
    try:
        if isinstance(value, list):  # output_mode="binary_mask", written out
            mask = np.array(value)
            if mask.ndim != 2:
                raise ValueError(f"a mask of a slice has two axes, got {mask.ndim}")
            return np.asarray(mask != 0, dtype=np.bool_)
        return decode_run_lengths(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise NotAnImage(
            f"a mask cannot be decoded ({error})", path=shown, remedy="Save SAM2's results again"
        ) from None


def _volumes(
    objects: Mapping[str, _Object], num_slices: int | None, target: Target, *, shown: str
) -> Iterator[MaskVolume]:
    """Yield a volume for each object, from its first slice to its last."""
    shapes = {mask.shape for one in objects.values() for mask in one.slices.values()}
    if len(shapes) != 1:
        reason = "there is no mask" if not shapes else "masks of one scan must have one size"
        raise LabelMismatch(reason, path=shown, remedy="Save the masks of all slices of one scan")
    height, width = next(iter(shapes))
    turned, grid = target.orient((num_slices, height, width), shown=shown, slices=True)
    for one in objects.values():
        first, last = min(one.slices), max(one.slices)
        if last >= grid.shape_zyx[0]:
            raise LabelMismatch(
                f"slice {last} is not in 0..{grid.shape_zyx[0] - 1} of scan {target.scan_id}",
                path=shown,
                remedy="Count slices from 0 along the last axis of the file",
            )
        yield _volume(one, first, last, turned=turned, grid=grid)


def _volume(one: _Object, first: int, last: int, *, turned: bool, grid: Grid) -> MaskVolume:
    _, height, width = grid.shape_zyx
    values = np.zeros((last - first + 1, height, width), dtype=np.uint8)
    for number, mask in one.slices.items():
        values[number - first] = mask.T if turned else mask
    return MaskVolume(
        values=values,
        grid=crop_grid(grid, (slice(first, last + 1), slice(0, height), slice(0, width))),
        names={1: one.name},
        scores={1: sum(one.scores) / len(one.scores)} if one.scores else {},
    )
