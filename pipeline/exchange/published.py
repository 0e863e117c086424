"""The layout of the published MASS release: an image for each case, and one HDF5 file of all masks.

    FOLDER/
      <case>_image.npy       (z, y, x) float32
      dataset.h5
        <case>/auto_masks    (N, z, y, x) uint8, 0 or 1

The layout has no geometry. Files written here have it in attributes of `auto_masks`: `shape_zyx`,
`spacing_xyz_mm`, `origin_xyz_mm`, `direction` (as in `Grid`), and `<case>/mask_names`. Masks from elsewhere
are placed on the scan's grid that has their shape, and the image beside them must be that scan's: so a
mirrored or turned file is refused.

*Reads*: `<case>/auto_masks`, and `<case>_image.npy` where the geometry is missing. *Writes*: `MaskVolume`s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CorruptImage, LabelMismatch, NotAnImage
from pipeline.exchange.image_masks import label_values
from pipeline.exchange.placing import MaskVolume, Target, put_on
from pipeline.formats import check_readable
from pipeline.volumes import Grid

MASKS = "auto_masks"
"""Name of a case's masks."""

IMAGE_END = "_image.npy"
"""End of the name of a case's image, beside the HDF5 file."""

_PART = ".part-dataset.h5"
"""Name of the HDF5 file while it is written."""

_NAMES = "mask_names"
"""Name of the JSON list of names beside a case's masks; not part of the published layout."""

_LEAST_CORRELATION = 0.5
"""Least correlation of two images of the same scan, also after clipping and another resampling."""

_GRID_NAMES = ("shape_zyx", "spacing_xyz_mm", "origin_xyz_mm", "direction")


def cases_in(path: Path, *, shown: str) -> tuple[str, ...]:
    """Return the cases of an HDF5 file, sorted.

    Raises:
        NotAnImage: It is not such a file.
    """
    check_readable(path, shown=shown)
    try:
        with h5py.File(path, "r") as file:
            cases = tuple(sorted(str(name) for name, group in file.items() if MASKS in group))
    except (OSError, TypeError):
        raise NotAnImage(
            "it is not an HDF5 file, or it is damaged", path=shown, remedy="Copy the file again"
        ) from None
    if not cases:
        raise NotAnImage(
            f"no case in it has masks: <case>/{MASKS} is missing",
            path=shown,
            remedy="Name the dataset.h5 of the published layout",
        )
    return cases


def read_published_masks(path: Path, case: str, target: Target, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the masks of one case, one at a time.

    Raises:
        LabelMismatch: They fit no grid of the scan, or the image beside them is another one.
        CorruptImage: They cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            masks = file[f"{case}/{MASKS}"]
            if masks.ndim != 4:
                raise LabelMismatch(
                    f"masks must be (N, z, y, x), got {masks.shape}", path=shown, remedy="Write them anew"
                )
            grid = _own_grid(masks) or _grid_of_shape(path, case, masks.shape[1:], target, shown=shown)
            names = json.loads(file[case][_NAMES][()]) if _NAMES in file[case] else []
            for number in range(len(masks)):
                values = label_values(masks[number], shown=shown)
                yield MaskVolume(values=values, grid=grid, names=_names(values, number, names))
    except (OSError, KeyError, RuntimeError):
        raise _damaged(shown) from None


def hash_published_masks(path: Path, case: str, digest: Any, *, shown: str) -> None:
    """Update a hash with the masks of a case, their names and attributes."""
    try:
        with h5py.File(path, "r") as file:
            masks = file[f"{case}/{MASKS}"]
            about = [file[case][_NAMES][()]] if _NAMES in file[case] else []
            for value in (masks.shape, *about, *(masks.attrs[name] for name in sorted(masks.attrs))):
                digest.update(repr(np.asarray(value).tolist()).encode())
            for number in range(len(masks)):
                digest.update(np.ascontiguousarray(masks[number]).data)
    except (OSError, KeyError, RuntimeError):
        raise _damaged(shown) from None


def _damaged(shown: str) -> CorruptImage:
    return CorruptImage(
        "its masks cannot be read, the file is damaged", path=shown, remedy="Copy the file again"
    )


def begin_file(folder: Path) -> None:
    """Begin the HDF5 file of an export; the incomplete file of an export that was killed is removed."""
    (folder / _PART).unlink(missing_ok=True)


def finish_file(folder: Path) -> None:
    """Rename the complete HDF5 file of an export to its name."""
    if (folder / _PART).exists():
        os.replace(folder / _PART, folder / "dataset.h5")


def add_case(
    folder: Path, case: str, masks: Iterable[NDArray[np.bool_]], names: Sequence[str], grid: Grid
) -> None:
    """Add the masks of a case to the HDF5 file of an export.

    Args:
        folder: Folder of the export.
        case: Name of the case.
        masks: bool (z, y, x) each, as many as there are names.
        names: Name of each mask.
        grid: Grid of all of them.
    """
    with h5py.File(folder / _PART, "a") as file:
        _write_masks(file.create_group(case), masks, names, grid)


def _write_masks(group: Any, masks: Iterable[NDArray[np.bool_]], names: Sequence[str], grid: Grid) -> None:
    shape = grid.shape_zyx
    data = group.create_dataset(
        MASKS,
        (len(names), *shape),
        dtype=np.uint8,
        chunks=(1, *(min(64, size) for size in shape)),
        compression="gzip",
        compression_opts=1,
        track_times=False,
    )
    for number, mask in enumerate(masks):
        data[number] = mask
    for name, value in grid.to_dict().items():
        data.attrs[name] = value
    group.create_dataset(_NAMES, data=json.dumps(list(names)), track_times=False)


def _own_grid(masks: Any) -> Grid | None:
    """Return the grid in the attributes of masks that `mass export` has written; None for other masks."""
    if not all(name in masks.attrs for name in _GRID_NAMES):
        return None
    grid = Grid.from_dict({name: list(masks.attrs[name]) for name in _GRID_NAMES})
    return grid if grid.shape_zyx == masks.shape[1:] else None


def _grid_of_shape(path: Path, case: str, shape: tuple[int, int, int], target: Target, *, shown: str) -> Grid:
    """Return the scan's grid of this shape, after a check of the image beside the masks."""
    _, grid = target.with_axes("zyx").orient(shape, shown=shown)
    picture = path.with_name(case + IMAGE_END)
    if not picture.is_file():
        return grid
    try:
        image = np.load(picture, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise CorruptImage(
            f"the image {picture.name} beside it cannot be read", path=shown, remedy="Copy it again"
        ) from None
    if image.shape != shape:
        raise LabelMismatch(
            f"the image {picture.name} has {image.shape} voxels, its masks {shape}",
            path=shown,
            remedy="Put the right image beside the masks",
        )
    image, own = image.astype(np.float32), target.image()
    agreement, *mirrored = (
        _correlation(put_on(image[flip], grid, target.stored), own)
        for flip in product((slice(None), slice(None, None, -1)), repeat=3)
    )
    if agreement < max(_LEAST_CORRELATION, *mirrored):
        raise LabelMismatch(
            f"the image {picture.name} is not that of scan {target.scan_id}, or is mirrored (correlation "
            f"{agreement:.2f}, mirrored {max(mirrored):.2f})",
            path=shown,
            remedy="Save the masks as NIfTI with the geometry of their image",
        )
    return grid


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the correlation of two images; 0 where one is constant."""
    a, b = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _names(values: NDArray[np.uint8] | NDArray[np.uint16], number: int, names: list[str]) -> dict[int, str]:
    own = names[number] if number < len(names) else str(number + 1)
    present = [int(value) for value in np.unique(values) if value] or [1]
    return {value: own if len(present) == 1 else f"{own} {value}" for value in present}
