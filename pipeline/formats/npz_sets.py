"""Sets of small 3D images in one .npz file, as in MedMNIST: many scans, with their splits and classes.

*Reads*: an .npz file with at least one of the arrays `train_images`, `val_images`, `test_images`, each
(N, z, y, x) of numbers. Classes are optional, in `train_labels` and so on: (N,) or (N, 1) with one class per
scan, or (N, L) with a 0 or 1 for each of L classes. *Writes*: splits, shapes and classes; single images.

Such a set has no unit, no voxel size and no orientation. Its images are used as they are: axes in the file's
order, no crop, `set_spacing_mm` for the voxel size (unset: the store's spacing, so that nothing is
resampled). Arrays of more than 4 GiB are refused: one is held in memory at a time.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import CorruptImage, LabelMismatch, NotAnImage, NotVolumetric, ScanError
from pipeline.formats.files import check_readable, os_error

SET_SUFFIX = ".npz"

SPLITS = ("train", "val", "test")

_MAX_ARRAY_BYTES = 4 << 30
_COLOURS = (3, 4)
"""A last axis of this length is colour, so the set holds 2D images."""
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,  # a way of packing that zipfile does not know
    RuntimeError,  # "encrypted"
    OverflowError,
    tokenize.TokenError,  # in the words of an array's header
    SyntaxError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class SetPart:
    """Images of one split.

    Attributes:
        split: "train", "val" or "test".
        shape_zyx: Voxels of each image.
        classes: For each image its class, or a 0 or 1 for each of several classes; empty if unknown.
    """

    split: str
    shape_zyx: tuple[int, int, int]
    classes: tuple[tuple[str, ...], ...]

    @property
    def array(self) -> str:
        """Name of its array in the file."""
        return f"{self.split}_images"


def open_set(path: Path, *, shown: str) -> tuple[SetPart, ...]:
    """Return the splits of a set, from the headers of its arrays and its labels; no image is read.

    Args:
        path: The file.
        shown: Name of the file in error messages.

    Raises:
        NotAnImage: The file is not an .npz file, or holds no images of this kind.
        NotVolumetric: The images are 2D, in colour, or not numbers.
        LabelMismatch: The labels are not one per image, or not whole numbers.
        CorruptImage: The file is damaged.
        UnreadableFile: The file cannot be opened.
    """
    check_readable(path, shown=shown)
    if not zipfile.is_zipfile(path):
        raise NotAnImage(
            "an .npz file is a ZIP archive, this is none", path=shown, remedy="Download or save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            parts = [_part(archive, split, names, shown) for split in SPLITS if f"{split}_images" in names]
    except ScanError:
        raise
    except OSError as error:
        raise os_error(error, shown=shown) from None
    except _DAMAGED:
        raise _damaged(shown) from None
    if not parts:
        listed = ", ".join(sorted(names)[:5]) or "nothing"
        raise NotAnImage(
            f"a set of scans holds train_images, val_images or test_images, this .npz holds {listed}",
            path=shown,
            remedy="Name the arrays so (labels: train_labels, ...), or remove the file",
        )
    return tuple(parts)


def read_set_image(path: Path, array: str, index: int, *, shown: str) -> NDArray[Any]:
    """Return one image of a set, (z, y, x), in the file's data type.

    Args:
        path: The file.
        array: Name of the array.
        index: Index of the image, from 0.
        shown: Name of the file in error messages.

    Raises:
        CorruptImage: The file is damaged, or has fewer images.
        UnreadableFile: The file cannot be opened.
    """
    check_readable(path, shown=shown)
    try:
        status = path.stat()
        images = _images(path, array, status.st_size, status.st_mtime_ns)
        image: NDArray[Any] = images[index]
    except OSError as error:
        raise os_error(error, shown=shown) from None
    except (*_DAMAGED, IndexError):
        raise _damaged(shown) from None
    return image


@lru_cache(maxsize=1)
def _images(path: Path, array: str, size: int, mtime_ns: int) -> NDArray[Any]:
    """Return an array (N, z, y, x). The last one is kept, so that it is unzipped once for all its images."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as file:
        images: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return images


def _part(archive: zipfile.ZipFile, split: str, names: set[str], shown: str) -> SetPart:
    what = f"{split}_images"
    shape, dtype = _header(archive, what)
    if dtype.kind not in "buif" or len(shape) != 4 or shape[-1] in _COLOURS:
        raise NotVolumetric(
            f"{what} must be numbers (N, z, y, x), it is {dtype} {shape}",
            path=shown,
            remedy="Take the set's 3D form, or save its images as one array of volumes",
        )
    if math.prod(shape) * dtype.itemsize > _MAX_ARRAY_BYTES:
        raise CorruptImage(
            f"{what} has {math.prod(shape) * dtype.itemsize:,} bytes, {_MAX_ARRAY_BYTES:,} are allowed",
            path=shown,
            remedy="Split the set into several files",
        )
    count, z, y, x = shape
    labels = f"{split}_labels"
    classes: tuple[tuple[str, ...], ...] = ((),) * count
    if labels in names:
        with archive.open(f"{labels}.npy") as file:
            classes = _classes(npy.read_array(file, allow_pickle=False), count, labels, shown)
    return SetPart(split=split, shape_zyx=(z, y, x), classes=classes)


def _header(archive: zipfile.ZipFile, array: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(f"{array}.npy") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    return tuple(int(n) for n in shape), dtype


def _classes(labels: NDArray[Any], count: int, what: str, shown: str) -> tuple[tuple[str, ...], ...]:
    table = labels[:, None] if labels.ndim == 1 else labels
    if table.ndim != 2 or len(table) != count or not table.shape[1]:
        raise LabelMismatch(
            f"{what} must be one row for each of {count} images, it is {labels.shape}",
            path=shown,
            remedy="Save the set again with a label for each image",
        )
    if table.dtype.kind not in "bui" or (table.size and table.min() < 0):
        raise LabelMismatch(
            f"{what} must be whole numbers from 0, it is {labels.dtype}",
            path=shown,
            remedy="Save the set again with class numbers",
        )
    if table.shape[1] > 1 and table.size and table.max() > 1:
        raise LabelMismatch(
            f"{what} has {table.shape[1]} columns, so each must be 0 or 1, got {int(table.max())}",
            path=shown,
            remedy="Save one column with the class, or one column of 0 and 1 for each class",
        )
    return tuple(tuple(str(int(value)) for value in row) for row in table)


def _damaged(shown: str) -> ScanError:
    return CorruptImage(
        "the .npz set is cut short or damaged", path=shown, remedy="Download or save it again"
    )


def ids_in(part: SetPart) -> Iterator[tuple[int, str]]:
    """Yield the index of each image and its name, such as "0007"; all names have equally many digits."""
    width = max(4, len(str(len(part.classes) - 1)))
    return ((index, f"{index:0{width}d}") for index in range(len(part.classes)))
