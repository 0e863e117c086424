"""Structural type of a scan that is read from its store part by part, and its volumes at one level.

`pipeline` may not import `storage`; `storage.Scan` has these attributes and methods.

Reads: nothing by itself. Writes: a `LeveledScan`, at a level of the store or thinned out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.quality import IntArray, Rows, ScanLike
from pipeline.report.packs import LeveledScan


class StoredLevel(Protocol):
    """A level of a stored scan."""

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Voxels along each axis."""

    @property
    def factors_zyx(self) -> tuple[int, int, int]:
        """Voxels of level 0 that a voxel of the level spans."""

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm."""


class StoredProposals(Protocol):
    """The proposals of a stored scan."""

    @property
    def table(self) -> NDArray[np.int32]:
        """(N, 11), see `pipeline.quality.stored_scan`."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) non-increasing."""

    @property
    def sources(self) -> Sequence[str]:
        """Name of each code in the table's source column."""


class DescribedScan(Protocol):
    """Properties that the index of a store and a stored scan have in common."""

    @property
    def dataset(self) -> str:
        """Name of its data set."""

    @property
    def modality(self) -> str:
        """Modality: ct, mr or pet."""

    @property
    def split(self) -> str:
        """Part of its data set, such as "train"."""

    @property
    def case(self) -> str:
        """Patient or study; empty if the scan is a case of its own."""

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size of level 0 along z, y, x, in mm."""


class StoredScan(DescribedScan, Protocol):
    """A stored scan; each method reads the data that it returns."""

    @property
    def id(self) -> str:
        """Its id, unique in its store."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""

    @property
    def scale(self) -> float:
        """Real units per code."""

    @property
    def offset(self) -> float:
        """Real value of code 0."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Provenance, geometry and intensity, as stored."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the label maps."""

    @property
    def num_layers(self) -> int:
        """Number of atom layers."""

    @property
    def proposals(self) -> StoredProposals:
        """Table, scores and sources."""

    @property
    def levels(self) -> Sequence[StoredLevel]:
        """Levels, finest first."""

    def num_atoms(self, layer: int = 0) -> int:
        """Return the number of atoms of a layer."""

    def orders(self, layer: int = 0) -> Rows:
        """Return the orders of a layer's atoms."""

    def image_codes(self, region: None = None, *, level: int = 0) -> NDArray[np.int16]:
        """Return the image at a level, (z, y, x)."""

    def atoms(self, layer: int = 0, region: None = None, *, level: int = 0) -> NDArray[np.uint16]:
        """Return the atoms of a layer at a level, (z, y, x)."""

    def labels(self, name: str, region: None = None, *, level: int = 0) -> IntArray:
        """Return a label map at a level, (z, y, x)."""

    def label_values(self, name: str) -> dict[int, str]:
        """Return the names of a label map's values."""


@dataclass(frozen=True, kw_only=True)
class LeveledLabel:
    """A label map at a level; has the fields of `pipeline.quality.stored_scan.LabelLike`."""

    name: str
    array: IntArray
    value_names: Mapping[int, str] | None


def at_level(scan: StoredScan, level: int) -> LeveledScan:
    """Return a stored scan with its volumes at a level."""
    chosen = scan.levels[level]
    labels = [
        LeveledLabel(name=name, array=scan.labels(name, level=level), value_names=scan.label_values(name))
        for name in scan.label_names
    ]
    return LeveledScan(
        scan_id=scan.id,
        dataset=scan.dataset,
        modality=scan.modality,
        image=scan.image_codes(level=level),
        scale=scan.scale,
        offset=scan.offset,
        spacing_zyx_mm=chosen.spacing_zyx_mm,
        labels=labels,
        atoms=[scan.atoms(layer, level=level) for layer in range(scan.num_layers)],
        orders=[scan.orders(layer) for layer in range(scan.num_layers)],
        table=scan.proposals.table,
        scores=scan.proposals.scores,
        sources=scan.proposals.sources,
        attributes=scan.attributes,
        factors_zyx=chosen.factors_zyx,
    )


def thinned(scan: ScanLike, most_voxels: int) -> LeveledScan:
    """Return every n-th voxel of a scan along each axis, with the least n for about `most_voxels` voxels.

    Args:
        scan: The scan, whose volumes are those of level 0.
        most_voxels: Voxels of the image.
    """
    step = int(np.ceil((scan.image.size / most_voxels) ** (1 / 3)))
    part = (slice(None, None, step),) * 3
    z, y, x = (mm * step for mm in scan.spacing_zyx_mm)
    return LeveledScan(
        scan_id=scan.scan_id,
        dataset=scan.dataset,
        modality=scan.modality,
        image=scan.image[part],
        scale=scan.scale,
        offset=scan.offset,
        spacing_zyx_mm=(z, y, x),
        labels=[
            LeveledLabel(name=label.name, array=label.array[part], value_names=label.value_names)
            for label in scan.labels
        ],
        atoms=[atoms[part] for atoms in scan.atoms],
        orders=scan.orders,
        table=scan.table,
        scores=scan.scores,
        sources=scan.sources,
        attributes=scan.attributes,
        factors_zyx=(step, step, step),
    )
