"""Masks in image files: label maps, 4D stacks, folders of binary masks, arrays in .npy and .npz files.

*Reads*: what `mass prepare` reads as an image, with whole numbers from 0 to 65,535; arrays (z, y, x) or
(N, z, y, x) of bool or whole numbers. *Writes*: `MaskVolume`s, one after the other. Every value but 0 of a
volume is a mask, so a binary mask may be 0 and 1 or 0 and 255. Pickled arrays are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from pipeline.discovery import find_value_names
from pipeline.errors import LabelMismatch, NoSuchFrame, NotAnImage
from pipeline.exchange.placing import MaskVolume, Target
from pipeline.formats import check_readable, companions, text_of_path
from pipeline.ingest import IngestConfig, read_file

sitk: Any = SimpleITK
"""SimpleITK without types."""

_MAX_VALUE = 65_535

_FEW_VALUES = 256
"""A file with more distinct values is checked: it may be a scan instead of masks."""

_ARRAY_KEYS = ("masks", "auto_masks", "segmentation", "segmentations", "arr_0")
"""Names of the masks in an .npz file; another name is taken if the file has a single array."""


def read_image_masks(path: Path, config: IngestConfig, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the volumes of a label map or a 4D stack; names come from a JSON file beside it.

    Args:
        path: The file.
        config: Limits on voxel sizes.
        shown: Name of the file in messages.

    Raises:
        ScanError: It is not a usable image, or its values are no labels.
    """
    names = find_value_names(path, path.parent.parent)[0] or {}
    files = companions(path)
    try:
        image = read_file(files, config, frame=None, shown=shown)
    except NoSuchFrame:
        grid = read_file(files, config, frame=0, shown=shown).grid
        for frame, volume in enumerate(_all_volumes(files, config, shown=shown)):
            values = label_values(volume, shown=shown)
            yield MaskVolume(values=values, grid=grid, names=_names_of_frame(values, names, frame))
        return
    yield MaskVolume(values=label_values(image.array, shown=shown), grid=image.grid, names=names)


def read_binary_masks(paths: Mapping[str, Path], config: IngestConfig, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the masks of a folder with a file for each, under the given names.

    Args:
        paths: File of each mask, by name.
        config: Limits on voxel sizes.
        shown: Name of the folder in messages.
    """
    for name, path in paths.items():
        for volume in read_image_masks(path, config, shown=f"{shown}/{path.name}"):
            present = [int(value) for value in np.unique(volume.values) if value]
            named = dict.fromkeys(present or [1], name)
            if len(present) > 1:
                named = {value: f"{name} {volume.names.get(value, value)}" for value in present}
            yield replace(volume, names=named)


def read_array_masks(path: Path, target: Target, *, shown: str) -> Iterator[MaskVolume]:
    """Yield the masks of an .npy or .npz file: (N, z, y, x), or one label map (z, y, x).

    An .npz file may also hold `scores` (N,) and `names` (N,).

    Raises:
        LabelMismatch: The array fits no grid of the scan, or its values are no labels.
        NotAnImage: There is no such array.
    """
    array, scores, names = _load_arrays(path, shown=shown)
    if array.ndim not in (3, 4):
        raise NotAnImage(
            f"masks are an array (N, z, y, x), or a label map (z, y, x), this has shape {array.shape}",
            path=shown,
            remedy="Save the masks of the whole scan as one array",
        )
    volumes = array[None] if array.ndim == 3 else array
    turned, grid = target.orient(volumes.shape[1:], shown=shown)
    for frame, volume in enumerate(volumes):
        values = label_values(volume.transpose() if turned else volume, shown=shown)
        if array.ndim == 3:
            yield MaskVolume(values=values, grid=grid)
            continue
        own = {1: names[frame]} if frame < len(names) else {}
        named = _names_of_frame(values, own, frame)
        score = dict.fromkeys(named, scores[frame]) if frame < len(scores) else {}
        yield MaskVolume(values=values, grid=grid, names=named, scores=score)


def label_values(array: NDArray[Any], *, shown: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return label values in the smallest type, or raise LabelMismatch for what cannot be labels.

    Args:
        array: (z, y, x), any number type.
        shown: Name of the file in messages.
    """
    remedy = "Save masks as whole numbers; a probability has to be cut at a threshold first"
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.dtype.kind not in "uif" or not array.size:
        raise LabelMismatch(
            f"masks must be numbers, got {array.dtype} {array.shape}", path=shown, remedy=remedy
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= _MAX_VALUE):
        raise LabelMismatch(
            f"mask values must be whole numbers from 0 to {_MAX_VALUE}, got {low:g} to {high:g}",
            path=shown,
            remedy=remedy,
        )
    values: NDArray[np.uint8] | NDArray[np.uint16]
    values = array.astype(np.uint8) if high < 256 else array.astype(np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(values, array):
        raise LabelMismatch("mask values must be whole numbers, some are not", path=shown, remedy=remedy)
    _refuse_scan(values, shown=shown)
    return values


def _refuse_scan(values: NDArray[np.uint8] | NDArray[np.uint16], *, shown: str) -> None:
    """Refuse an image: many values, and neighbours that mostly differ."""
    if int(values.max()) < _FEW_VALUES or len(np.unique(values)) <= _FEW_VALUES:
        return
    left, right = values[:, :, :-1], values[:, :, 1:]
    inside = (left != 0) & (right != 0)
    if int(((left == right) & inside).sum()) < 0.5 * int(inside.sum()):
        raise LabelMismatch(
            "masks are wanted, this looks like a scan (many values, neighbours differ)",
            path=shown,
            remedy="Name the file of its masks",
        )


def _all_volumes(files: Sequence[Path], config: IngestConfig, *, shown: str) -> Iterator[NDArray[Any]]:
    """Yield all volumes of a 4D or vector image: at once where SimpleITK reads it, else one by one."""
    try:
        image = sitk.ReadImage(text_of_path(files[0], shown=shown))
    except RuntimeError:
        for frame in count():
            try:
                yield read_file(files, config, frame=frame, shown=shown).array
            except NoSuchFrame:
                return
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    yield from np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array


def _names_of_frame(
    values: NDArray[np.uint8] | NDArray[np.uint16], names: Mapping[int, str], frame: int
) -> dict[int, str]:
    """Return a name for each mask of a frame: its value's own, else the frame's number from 1."""
    present = [int(value) for value in np.unique(values) if value]
    if len(present) <= 1:
        return {value: names.get(frame + 1, names.get(value, str(frame + 1))) for value in present or [1]}
    return {value: names.get(value, f"{frame + 1} {value}") for value in present}


def _load_arrays(path: Path, *, shown: str) -> tuple[NDArray[Any], list[float], list[str]]:
    """Return the masks of an .npy or .npz file, and their scores and names where it has them."""
    check_readable(path, shown=shown)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, [], []
        with loaded:
            keys = [key for key in _ARRAY_KEYS if key in loaded.files] or loaded.files
            large = [key for key in keys if loaded[key].ndim >= 3]
            if not large:
                raise NotAnImage(
                    f"no array of masks is in it: {', '.join(loaded.files) or 'it is empty'}",
                    path=shown,
                    remedy=f"Save the masks as the array {_ARRAY_KEYS[0]!r}, (N, z, y, x)",
                )
            scores = [float(s) for s in loaded["scores"]] if "scores" in loaded.files else []
            names = [str(name) for name in loaded["names"]] if "names" in loaded.files else []
            return loaded[large[0]], scores, names
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "pickle" in str(error).lower()
        raise NotAnImage(
            "it holds pickled objects, which are never loaded: they could run any code"
            if pickled
            else "it is not a NumPy file, or it is damaged",
            path=shown,
            remedy="Save plain arrays: np.savez_compressed(FILE, masks=array)",
        ) from None
