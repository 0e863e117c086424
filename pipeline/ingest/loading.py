"""One scan from its files, as training sees it, and what leads back to its own grid.

*Reads*: NIfTI, NRRD, MetaImage and DICOM files through `read_source` and `standardize`: exactly what
`mass prepare` does. *Writes*: `LoadedScan`: z-scores float32 (z, y, x) on the stored grid, a label map
uint8/uint16 on the same grid where a mask goes with the scan; results as image files on the input's own grid.
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
from pipeline.formats import companions, stem_of, volume_suffix
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import RawScan, read_source
from pipeline.ingest.standard_scan import StandardScan, standardize
from pipeline.ingest.writeback import Box, probability_to_source_grid, to_stored_grid, write_image
from pipeline.toml_settings import parse_config
from pipeline.volumes import Grid

Scalar = TypeVar("Scalar", bound=np.generic)

_RESULT_SUFFIXES = {".nii": ".nii", ".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}
"""What results of an input are written as; all else, DICOM too, is answered with .nii.gz."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedScan:
    """A scan as training sees it.

    Attributes:
        scan_id: Its id, a plain name.
        location: Place to show.
        suffix: Of result files, as ".nii.gz": the input's own format, NIfTI for DICOM.
        image: (z, y, x) float32 z-scores on `grid`.
        labels: (z, y, x) uint8 or uint16 on `grid`, 0 is background; None without a mask.
        label_values: Values in the mask as its file has it, without 0.
        value_names: Names of them, where a file beside the mask tells.
        modality: "ct", "mr" or "pet".
        modality_origin: "manifest", "dicom", or "guess: " and why.
        notes: What was unusual and how it was met.
        grid: The stored grid.
        source_grid: The input's own.
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
        """Of `image`."""
        return self.grid.spacing_zyx_mm

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """Voxels of the input's own grid along its array axes."""
        return self.source_grid.shape_zyx

    @property
    def own_voxel_ml(self) -> float:
        """Volume of a voxel of the input's own grid in millilitres."""
        return float(np.prod(self.source_grid.spacing_xyz_mm)) / 1000

    def to_own_grid(
        self, probability: NDArray[np.float32], *, above: float | None = None
    ) -> tuple[Box, NDArray[np.float32]] | None:
        """A probability (z, y, x) on `grid` as a box of the input's own grid and the values there.

        Args:
            probability: (z, y, x) on `grid`.
            above: Leave out what is sure to lie below this.

        Returns:
            The box and float32 values in it, 0 elsewhere; None where there is nothing.
        """
        return probability_to_source_grid(probability, self.grid, self.source_grid, above=above)

    def from_own_grid(self, labels: NDArray[Scalar]) -> NDArray[Scalar]:
        """Labels on the input's own grid as the stored grid shows them, by nearest neighbour."""
        return to_stored_grid(labels, self.source_grid, self.grid)

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """Writes (z, y, x) on the input's own grid; the path's suffix tells the format."""
        write_image(path, array, self.source_grid)


def find_targets(path: Path, config: IngestConfig) -> Discovery:
    """The scans at a place: the one in a file, all in a folder, or those of a manifest.

    A file that is named is a scan whatever its name says; in folders, label maps are told by their names.

    Raises:
        ScanError: There is nothing at the place, or no scan.
    """
    if path.is_file() and volume_suffix(path.name):
        source = Source(
            scan_id=id_from_parts([stem_of(path.name)]),
            format="file",
            files=companions(path),
            location=str(path),
        )
        return Discovery(sources=(source,), failures=(), notes=())
    if not path.exists():
        raise UnreadableFile("there is no such file or folder", path=path, remedy="Check the path")
    found = discover(path, config.series_rules)
    if not found.sources and not found.failures:
        raise NotAnImage(
            "there is no scan here", path=path, remedy="Name a NIfTI, NRRD, MetaImage file or DICOM folder"
        )
    return found


def find_one(path: Path, config: IngestConfig) -> Source:
    """The one scan at a place.

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
    """Ingest settings from plain values by name; what is left out keeps its default.

    Args:
        values: As a store or a checkpoint records them; None is the defaults.
        spacing_mm: Goes before the recorded one.

    Raises:
        ConfigError: A name is unknown or a value cannot be.
    """
    told = {name: value for name, value in (values or {}).items() if value is not None}
    config = parse_config(told, IngestConfig, where="the recorded ingest settings")
    return config if spacing_mm is None else replace(config, spacing_mm=spacing_mm)


def read_scan(
    image: Path | str,
    *,
    mask: Path | str | None = None,
    ingest: Mapping[str, Any] | None = None,
    modality: str | None = None,
) -> LoadedScan:
    """The scan at a path, prepared as for training, with its mask where there is one.

    This is what the entry point `mass3d.scans` names.

    Args:
        image: A file, or the folder of a DICOM series.
        mask: A label map on the image's own grid.
        ingest: Ingest settings by name, as a store records them.
        modality: "ct", "mr" or "pet"; None where the files or a guess shall tell.

    Raises:
        ScanError: The files are no usable scan, or the mask does not fit it or is empty.
        ConfigError: The settings cannot be.
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
    """A found scan, prepared as for training; arguments and errors as of `read_scan`."""
    labels: tuple[LabelSource, ...] = ()
    if mask is not None:
        mask = Path(mask)
        names, _ = find_value_names(mask, mask.parent.parent)
        labels = (LabelSource(name=mask.name, path=mask, value_names=None, location=str(mask)),)
        names = names or {}
    else:
        names = {}
    raw = read_source(replace(source, labels=labels, modality=modality or source.modality), config)
    values = _values(raw, mask)
    scan = standardize(raw, config)
    suffix = volume_suffix(source.files[0].name) if source.format == "file" else None
    return LoadedScan(
        scan_id=source.scan_id,
        location=source.location,
        suffix=_RESULT_SUFFIXES.get(suffix or "", ".nii.gz"),
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
    """A found scan's mask on the scan's own grid, (z, y, x) along its array axes, 0 is background.

    Raises:
        ScanError: The files are no usable scan, or the mask does not fit it.
    """
    labels = (LabelSource(name=mask.name, path=mask, value_names=None, location=str(mask)),)
    return read_source(replace(source, labels=labels), config).labels[0].array


def _values(raw: RawScan, mask: Path | None) -> tuple[int, ...]:
    """The values of the mask without 0.

    Raises:
        LabelMismatch: There are none.
    """
    if not raw.labels:
        return ()
    values = tuple(int(v) for v in np.unique(raw.labels[0].array) if v)
    if not values:
        raise LabelMismatch(
            "the mask is empty, every voxel is 0", path=mask, remedy="Draw the structure that is wanted in it"
        )
    return values


def _z_scores(scan: StandardScan) -> NDArray[np.float32]:
    """What a store's `image(normalize=True)` gives, to the bit."""
    std = scan.intensity.std
    image: NDArray[np.float32] = np.empty(scan.image.shape, np.float32)
    np.multiply(scan.image, np.float32(scan.scale / std), out=image, dtype=np.float32)
    image += np.float32((scan.offset - scan.intensity.mean) / std)
    return image
