"""Raw scans as `segment` needs them: what a reader gives, and which reader is installed.

`training` knows nothing of file formats. Who reads is told by the entry point group "mass3d.scans" (this
distribution names its ingest there), or is handed over as an argument. Protocols only: reads and writes
nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError

Integer = TypeVar("Integer", bound=np.integer[Any])
OwnBox: TypeAlias = tuple[slice, slice, slice]
"""Half-open, in voxels of the input's own array axes."""

GROUP = "mass3d.scans"
"""Entry point group that names the reader of scan files."""


class RawScan(Protocol):
    """A scan prepared as for training, that knows the way back to the grid of its files."""

    @property
    def scan_id(self) -> str:
        """A plain name."""

    @property
    def location(self) -> str:
        """Place to show."""

    @property
    def suffix(self) -> str:
        """Of result files, as ".nii.gz"."""

    @property
    def image(self) -> NDArray[np.float32]:
        """(z, y, x) z-scores; indices grow to head, front and right."""

    @property
    def labels(self) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
        """(z, y, x) on the image's grid, 0 is background; None without a mask."""

    @property
    def label_values(self) -> tuple[int, ...]:
        """Values in the mask's file, without 0."""

    @property
    def value_names(self) -> Mapping[int, str]:
        """Names of them, as far as they are known."""

    @property
    def modality(self) -> str:
        """One of "ct", "mr", "pet"."""

    @property
    def modality_origin(self) -> str:
        """Where that is from; begins with "guess" where it is one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unusual."""

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Of the image."""

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """Voxels of the input's own grid along its array axes."""

    @property
    def own_voxel_ml(self) -> float:
        """Volume of a voxel of the input's own grid."""

    def to_own_grid(
        self, probability: NDArray[np.float32], *, above: float | None = None
    ) -> tuple[OwnBox, NDArray[np.float32]] | None:
        """A probability as a box of the input's own grid and the values there; 0 elsewhere."""

    def from_own_grid(self, labels: NDArray[Integer]) -> NDArray[Integer]:
        """Labels on the input's own grid as the image's grid shows them."""

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
        """The scan at a path.

        Args:
            image: A file, or the folder of a DICOM series.
            mask: A label map on the image's grid.
            ingest: Settings of the ingest by name, "spacing_mm" among them.
            modality: "ct", "mr" or "pet"; None where the files or a guess shall tell.
        """


def installed_reader() -> ScanReader:
    """The reader that the installed distributions name.

    Raises:
        ConfigError: None does, or several do.
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
