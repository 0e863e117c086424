"""Interface of raw scans for `segment`: protocols of a scan and of its reader; structures in masks.

`training` does not read image files itself. The reader is found by the entry point group "mass3d.scans"
(this distribution registers its ingest there), or is passed as an argument. This module reads and writes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, DataError
from training.inference.prompts import Structure

Integer = TypeVar("Integer", bound=np.integer[Any])
OwnBox: TypeAlias = tuple[slice, slice, slice]
"""Half-open box, in voxels along the input's own array axes."""

GROUP = "mass3d.scans"
"""Entry point group that names the reader of scan files."""


class RawScan(Protocol):
    """A scan prepared as for training, with methods to resample results to the grid of its files."""

    @property
    def scan_id(self) -> str:
        """Name of the scan, usable in file names."""

    @property
    def location(self) -> str:
        """Path of the scan, for messages."""

    @property
    def suffix(self) -> str:
        """Suffix of result files, as ".nii.gz"."""

    @property
    def image(self) -> NDArray[np.float32]:
        """Prepared image (z, y, x), z-scores; indices grow to head, front and right."""

    @property
    def labels(self) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
        """Label map (z, y, x) on the image's grid, 0 is background; None without a mask."""

    @property
    def label_values(self) -> tuple[int, ...]:
        """Label values in the mask's file, without 0."""

    @property
    def value_names(self) -> Mapping[int, str]:
        """Names of the label values, as far as they are known."""

    @property
    def modality(self) -> str:
        """One of "ct", "mr", "pet"."""

    @property
    def modality_origin(self) -> str:
        """Source of the modality; begins with "guess" if it was guessed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on unusual properties of the files."""

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size of the prepared image."""

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """Voxels of the input's own grid along its array axes."""

    @property
    def own_voxel_ml(self) -> float:
        """Volume of a voxel of the input's own grid, ml."""

    def to_own_grid(
        self, probability: NDArray[np.float32], *, above: float | None = None
    ) -> tuple[OwnBox, NDArray[np.float32]] | None:
        """Resample a probability (z, y, x) from the image's grid to the input's own grid.

        Args:
            probability: float32 (z, y, x) on the image's grid.
            above: If given, the box only needs to contain the values above this.

        Returns:
            A box of the input's own grid and the values in it; all others are 0. None if there are none.
        """

    def from_own_grid(self, labels: NDArray[Integer]) -> NDArray[Integer]:
        """Resample labels from the input's own grid to the image's grid (z, y, x)."""

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """Write an array on the input's own grid as an image file."""


class ScanReader(Protocol):
    """Reads one raw scan, and a mask on its grid."""

    def __call__(
        self,
        image: Path | str,
        *,
        mask: Path | str | None = None,
        ingest: Mapping[str, Any] | None = None,
        modality: str | None = None,
    ) -> RawScan:
        """Read and prepare the scan at a path.

        Args:
            image: A file, or the folder of a DICOM series.
            mask: A label map on the image's grid.
            ingest: Settings of the ingest by name, with "spacing_mm".
            modality: "ct", "mr" or "pet"; None to find it in the files, or to guess it.
        """


def installed_reader() -> ScanReader:
    """Return the reader of scan files that an installed distribution registers.

    Raises:
        ConfigError: No distribution registers one, or several do.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: point.value)
    values = sorted({point.value for point in found})
    if len(values) != 1:
        raise ConfigError(
            f"one reader of scan files is wanted (entry point group {GROUP!r}), "
            f"{', '.join(values) if values else 'none'} installed. Install mass3d (pip install -e .), or "
            "give `reader`"
        )
    reader: ScanReader = found[0].load()
    return reader


def structures_of(references: Sequence[RawScan], labels: Sequence[int]) -> list[Structure]:
    """Return a structure for each requested label value in the masks of references.

    Args:
        references: Scans with masks; values without a name in one have that of another.
        labels: Label values; empty takes all.

    Raises:
        DataError: There is no such label value, or one has two names.
    """
    present = sorted({value for scan in references for value in scan.label_values})
    for value in labels:
        if value not in present:
            where = references[0].location if len(references) == 1 else f"{len(references)} references"
            raise DataError(
                f"{where}: there is no label {value} in the mask, which holds {listed(present)}. "
                "Choose one of these"
            )
    wanted = sorted(set(labels) or present)
    names: dict[int, tuple[str, str]] = {}
    for scan in references:
        for value, name in scan.value_names.items():
            first, where = names.setdefault(value, (name, scan.location))
            if first != name and value in wanted:
                raise DataError(
                    f"label {value} is {first!r} in the mask of {where} and {name!r} in that of "
                    f"{scan.location}. Give references with the same values, correct the names beside the "
                    "masks, or choose other values (--label)"
                )
    return [
        Structure(name=names[value][0] if value in names else f"label {value}", values=(value,))
        for value in wanted
    ]


def listed(values: Sequence[int]) -> str:
    """Return label values as text, the first dozen of many."""
    more = f" and {len(values) - 12} more" if len(values) > 12 else ""
    return ", ".join(map(str, values[:12])) + more
