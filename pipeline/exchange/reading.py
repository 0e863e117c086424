"""The masks of one scan, from all of its inputs.

*Reads*: `MaskInput`s and the scan's `Target`. *Writes*: `PlacedMasks` on the stored grid, and a digest that
changes whenever the masks may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError, UnreadableFile
from pipeline.exchange.dicom_masks import read_dicom_masks
from pipeline.exchange.image_masks import read_array_masks, read_binary_masks, read_image_masks
from pipeline.exchange.matching import MaskInput, files_of_folder, slices_of_folder
from pipeline.exchange.placing import MaskVolume, PlacedMasks, Target, place, put_on
from pipeline.exchange.published import hash_published_masks, read_published_masks
from pipeline.exchange.slice_masks import read_slice_masks
from pipeline.formats import companions, os_error, stem_of
from pipeline.ingest import IngestConfig

IMPORT_VERSION = 1
"""Version of this code: raised when the same files give other masks."""


def read_masks(inputs: Sequence[MaskInput], target: Target, config: IngestConfig) -> PlacedMasks:
    """Return the masks of a scan on its stored grid, in the order of the inputs.

    Args:
        inputs: Masks of the scan.
        target: The scan.
        config: Limits on voxel sizes.

    Raises:
        ScanError: An input cannot be used; its message names it.
    """
    return place((volume for one in inputs for volume in _volumes(one, target, config)), target.stored)


def read_label_map(
    one: MaskInput, target: Target, config: IngestConfig
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return a label map with its values on a scan's stored grid, (z, y, x); 0 outside of the file.

    Args:
        one: A file with one label map.
        target: The scan.
        config: Limits on voxel sizes.

    Raises:
        ScanError: The file cannot be used, or has several volumes.
    """
    volumes = list(_volumes(one, target, config))
    if len(volumes) != 1:
        raise ScanError(f"has {len(volumes)} volumes, not one label map", path=one.shown, remedy="Split it")
    placed: NDArray[np.uint8] | NDArray[np.uint16] = put_on(volumes[0].values, volumes[0].grid, target.stored)
    return placed


def digest_masks(inputs: Sequence[MaskInput], target: Target) -> str:
    """Return the sha256 of the bytes of all inputs, of how they are read, and of the grids.

    Raises:
        ScanError: A file cannot be read.
    """
    digest = hashlib.sha256(f"{IMPORT_VERSION} {target.grid} {target.axes}".encode())
    for grid in (target.stored, target.original):
        digest.update(repr(grid.to_dict()).encode())
    for one in inputs:
        digest.update(f"\n{one.kind} {one.case}\n".encode())
        if one.kind == "published":
            hash_published_masks(one.path, one.case, digest, shown=one.shown)
            continue
        for path in _files(one):
            digest.update(f"\n{path.name}\n".encode("utf-8", "surrogateescape"))
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise os_error(error, shown=one.shown) from None
    return digest.hexdigest()


def _files(one: MaskInput) -> list[Path]:
    """Return the files of an input, in the order in which they are read."""
    if one.kind == "folder":
        return [file for path in files_of_folder(one.path).values() for file in companions(path)]
    if one.kind == "slices":
        return slices_of_folder(one.path) if one.path.is_dir() else [one.path]
    if one.kind == "image":
        names = [one.path.with_suffix("").with_suffix(".json")] if one.path.suffix == ".gz" else []
        names.append(one.path.with_suffix(".json"))
        return [*companions(one.path), *dict.fromkeys(path for path in names if path.is_file())]
    return [one.path]


def _volumes(one: MaskInput, target: Target, config: IngestConfig) -> Iterator[MaskVolume]:
    """Yield the volumes of one input; errors of the operating system become ours."""
    try:
        match one.kind:
            case "image":
                own = name_without(stem_of(one.path.name), target.scan_id)
                for volume in read_image_masks(one.path, config, shown=one.shown):
                    yield _named(volume, own)
            case "folder":
                paths = {
                    name_without(stem, target.scan_id) or stem: path
                    for stem, path in files_of_folder(one.path).items()
                }
                yield from read_binary_masks(paths, config, shown=one.shown)
            case "arrays":
                yield from read_array_masks(one.path, target, shown=one.shown)
            case "slices":
                files = slices_of_folder(one.path) if one.path.is_dir() else [one.path]
                yield from read_slice_masks(files, target, shown=one.shown)
            case "dicom":
                yield from read_dicom_masks(one.path, target, config, shown=one.shown)
            case "published":
                yield from read_published_masks(one.path, one.case, target, shown=one.shown)
    except OSError as error:
        if isinstance(error, ScanError):
            raise
        raise os_error(error, shown=one.shown) from None
    except MemoryError:
        raise UnreadableFile(
            "there is not enough memory for its masks", path=one.shown, remedy="Split it into several files"
        ) from None


def name_without(stem: str, scan_id: str) -> str:
    """Return a file's name without the scan's id; "" if nothing is left."""
    rest = stem[len(scan_id) :] if stem.lower().startswith(scan_id.lower()) else ""
    return rest.strip("._- ")


def _named(volume: MaskVolume, name: str) -> MaskVolume:
    """Return a volume of one mask without a name under the name that its file has."""
    if not name or volume.names or int(volume.values.max()) == 0:
        return volume
    values = np.unique(volume.values[volume.values > 0])
    return replace(volume, names={int(values[0]): name}) if len(values) == 1 else volume
