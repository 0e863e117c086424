"""One scan from its files, prepared as for training; results are written on the scan's own grid.

*Reads*: NIfTI, NRRD, MetaImage and DICOM files through `read_source` and `standardize`, as `mass prepare`
does. *Writes*: `LoadedScan`: z-scores float32 (z, y, x) on the stored grid, and a label map uint8/uint16 on
the same grid if the scan has a mask; results as image files on the input's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.discovery import Discovery, LabelSource, Source, discover, find_value_names, id_from_parts
from pipeline.errors import LabelMismatch, NoSuchFrame, NotAnImage, UnreadableFile
from pipeline.formats import companions, os_error, result_suffix, stem_of, volume_suffix
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.labels import refuse_label_as_scan
from pipeline.ingest.reading import RawScan, read_source
from pipeline.ingest.standard_scan import StandardScan, standardize
from pipeline.ingest.writeback import Box, probability_to_source_grid, to_stored_grid, write_image
from pipeline.toml_settings import parse_config
from pipeline.volumes import Grid

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedScan:
    """A scan, prepared as for training.

    Attributes:
        scan_id: Its id, usable as a file name.
        location: Its name in messages.
        suffix: Suffix of result files, such as ".nii.gz": the input's own format; NIfTI for DICOM.
        image: (z, y, x) float32 z-scores on `grid`.
        labels: (z, y, x) uint8 or uint16 on `grid`, 0 is background; None without a mask.
        label_values: Values in the mask file, without 0.
        value_names: Names of these values, if a file next to the mask declares them.
        modality: "ct", "mr" or "pet".
        modality_origin: "manifest", "dicom", or "guess: " with the reason.
        notes: What was unusual, and what was done about it.
        grid: The stored grid.
        source_grid: The input's own grid.
    """

    scan_id: str
    location: str
    suffix: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | NDArray[np.uint16] | None
    label_values: tuple[int, ...]
    value_names: Mapping[int, str]
    modality: str
    modality_origin: str
    notes: tuple[str, ...]
    grid: Grid
    source_grid: Grid

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size of `image`, in mm."""
        return self.grid.spacing_zyx_mm

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """Number of voxels of the input's own grid along its array axes z, y, x."""
        return self.source_grid.shape_zyx

    @property
    def own_voxel_ml(self) -> float:
        """Volume of a voxel of the input's own grid, in millilitres."""
        return float(np.prod(self.source_grid.spacing_xyz_mm)) / 1000

    def to_own_grid(
        self, probability: NDArray[np.float32], *, above: float | None = None
    ) -> tuple[Box, NDArray[np.float32]] | None:
        """Return a probability on the input's own grid.

        Args:
            probability: (z, y, x) on `grid`.
            above: Values that are certainly below this may be left out.

        Returns:
            A box of the input's own grid, and float32 (z, y, x) values in it; all values outside are 0. None
            if the box is empty.
        """
        return probability_to_source_grid(probability, self.grid, self.source_grid, above=above)

    def from_own_grid(self, labels: NDArray[Scalar]) -> NDArray[Scalar]:
        """Resample labels (z, y, x) from the input's own grid to `grid` by nearest neighbour; same dtype."""
        return to_stored_grid(labels, self.source_grid, self.grid)

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """Write an array (z, y, x) on the input's own grid; the path's suffix decides the format."""
        write_image(path, array, self.source_grid)


def find_targets(path: Path, config: IngestConfig) -> Discovery:
    """Return the scans at a path: the one in a file, all in a folder, or those of a manifest.

    A file that is given by name is always a scan. In folders, label maps are recognised by their names.

    Raises:
        ScanError: There is nothing at the path, or no scan, or its folder may not be entered.
    """
    try:
        is_file, is_there = path.is_file(), path.exists()
    except OSError as error:  # of a folder around it
        raise os_error(error, shown=str(path)) from None
    if is_file and volume_suffix(path.name):
        source = Source(
            scan_id=id_from_parts([stem_of(path.name)]),
            format="file",
            files=companions(path),
            location=str(path),
        )
        return Discovery(sources=(source,), failures=(), notes=())
    if not is_there:
        raise UnreadableFile("there is no such file or folder", path=path, remedy="Check the path")
    found = discover(path, config.series_rules)
    if not found.sources and not found.failures:
        raise NotAnImage(
            "there is no scan here", path=path, remedy="Name a NIfTI, NRRD, MetaImage file or DICOM folder"
        )
    return found


def find_one(path: Path, config: IngestConfig) -> Source:
    """Return the one scan at a path.

    Raises:
        ScanError: There is none, it cannot be read, or there are several.
    """
    found = find_targets(path, config)
    if len(found.sources) == 1:
        return found.sources[0]
    if not found.sources:
        failure = found.failures[0]
        kind = NoSuchFrame if failure.kind == NoSuchFrame.__name__ else NotAnImage
        raise kind(failure.reason, path=path, remedy=failure.remedy)
    listed = ", ".join(source.location for source in found.sources[:3])
    more = f" and {len(found.sources) - 3} more" if len(found.sources) > 3 else ""
    raise NotAnImage(
        f"one scan is wanted, there are {len(found.sources)} here: {listed}{more}",
        path=path,
        remedy="Name the file or the folder of one of them",
    )


def ingest_config(values: Mapping[str, Any] | None, *, spacing_mm: float | None = None) -> IngestConfig:
    """Return ingest settings from plain values by name; missing ones have their default.

    Args:
        values: As a store or a checkpoint records them; None for the defaults.
        spacing_mm: Used instead of the recorded spacing.

    Raises:
        ConfigError: A name is unknown or a value is impossible.
    """
    given = {name: value for name, value in (values or {}).items() if value is not None}
    config = parse_config(given, IngestConfig, where="the recorded ingest settings")
    return config if spacing_mm is None else replace(config, spacing_mm=spacing_mm)


def read_scan(
    image: Path | str,
    *,
    mask: Path | str | None = None,
    ingest: Mapping[str, Any] | None = None,
    modality: str | None = None,
) -> LoadedScan:
    """Return the scan at a path, prepared as for training, with its mask if there is one.

    The entry point `mass3d.scans` refers to this function.

    Args:
        image: A file, or the folder of a DICOM series.
        mask: A label map on the image's own grid.
        ingest: Ingest settings by name, as a store records them.
        modality: "ct", "mr" or "pet"; None to take it from the files or to guess it.

    Raises:
        ScanError: The files are not a usable scan, or the mask does not fit it or is empty.
        ConfigError: The settings are impossible.
    """
    config = ingest_config(ingest)
    return load_source(find_one(Path(image), config), config, mask=mask, modality=modality)


def load_source(
    source: Source,
    config: IngestConfig,
    *,
    mask: Path | str | None = None,
    modality: str | None = None,
) -> LoadedScan:
    """Return a scan that was found, prepared as for training; arguments and errors as in `read_scan`."""
    labels: tuple[LabelSource, ...] = ()
    if mask is not None:
        mask = Path(mask)
        names, _ = find_value_names(mask, mask.parent.parent)
        labels = (LabelSource(name=mask.name, path=mask, value_names=None, location=str(mask)),)
        names = names or {}
    else:
        names = {}
    source = replace(source, labels=labels, modality=modality or source.modality)
    try:
        raw = read_source(source, config)
    except LabelMismatch:
        _refuse_exchanged(read_source(replace(source, labels=()), config), mask)
        raise
    values = _values(raw, mask)
    scan = standardize(raw, config)
    return LoadedScan(
        scan_id=source.scan_id,
        location=source.location,
        suffix=result_suffix(source.files[0].name if source.format == "file" else ""),
        image=_z_scores(scan),
        labels=scan.labels[0].array if scan.labels else None,
        label_values=values,
        value_names={value: name for value, name in names.items() if value in values},
        modality=scan.modality,
        modality_origin=scan.modality_origin,
        notes=scan.notes,
        grid=scan.grid,
        source_grid=scan.source_grid,
    )


def read_own_labels(
    source: Source, config: IngestConfig, mask: Path
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the mask of a scan that was found, on the scan's own grid.

    Returns:
        uint8 or uint16 (z, y, x) along the file's array axes; 0 is background.

    Raises:
        ScanError: The files are not a usable scan, or the mask does not fit it.
    """
    labels = (LabelSource(name=mask.name, path=mask, value_names=None, location=str(mask)),)
    return read_source(replace(source, labels=labels), config).labels[0].array


def _values(raw: RawScan, mask: Path | None) -> tuple[int, ...]:
    """Return the values of the mask without 0.

    Raises:
        LabelMismatch: There are none.
        LooksLikeLabel: The image is a label map of fewer values than its mask has: both are exchanged.
    """
    if not raw.labels:
        return ()
    values = tuple(int(v) for v in np.unique(raw.labels[0].array) if v)
    if not values:
        raise LabelMismatch(
            "the mask is empty, every voxel is 0", path=mask, remedy="Draw the structure that is wanted in it"
        )
    if len(np.unique(raw.image)) <= len(values):
        _refuse_exchanged(raw, mask)
    return values


def _refuse_exchanged(raw: RawScan, mask: Path | None) -> None:
    """Check that the image is not a label map: if the mask is not one, both are exchanged.

    Raises:
        LooksLikeLabel: It is a label map.
    """
    refuse_label_as_scan(
        raw.image, shown=raw.location, remedy=f"Are image and mask exchanged? The mask is {mask}"
    )


def _z_scores(scan: StandardScan) -> NDArray[np.float32]:
    """Return float32 (z, y, x) z-scores; the same bits as a store's `image(normalize=True)`."""
    std = scan.intensity.std
    image: NDArray[np.float32] = np.empty(scan.image.shape, np.float32)
    np.multiply(scan.image, np.float32(scan.scale / std), out=image, dtype=np.float32)
    image += np.float32((scan.offset - scan.intensity.mean) / std)
    return image
