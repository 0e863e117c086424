"""Structural types of the scans that the read-only stages use (score, pictures, report).

`pipeline` may not import `storage`, but `pipeline.proposals.proposal_set.ProposalSet` and
`storage.ScanRecord` have the same arrays under the same names. A function that takes `Proposals` or
`ScanLike` accepts either, and a test can pass a small dataclass of its own.

Reads: nothing. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

OWN = "own"
"""Stands for all proposals of a scan that were not imported."""

IntArray: TypeAlias = NDArray[np.integer[Any]]
"""Any integer array; label volumes are uint8 or uint16, atoms uint16, tables int32."""

Rows: TypeAlias = IntArray | Sequence[IntArray]
"""Orders of an atom layer: one row per order, of atom ids in depth-first order of a tree. In a stored scan a
row has only the atoms that proposals need, so rows differ in length."""

ORDER, START, STOP, Z0, Y0, X0, Z1, Y1, X1, VOXELS, SOURCE = range(11)
"""Columns of a proposal table (of both format versions)."""


class Intervals(Protocol):
    """Proposals as intervals of atoms in depth-first order of a tree."""

    @property
    def atoms(self) -> Sequence[IntArray]:
        """Label volumes (z, y, x), one per layer; in uint16, ids from 65534 on are no atoms."""

    @property
    def orders(self) -> Sequence[Rows]:
        """Orders of the atoms of each layer."""

    @property
    def table(self) -> IntArray:
        """(N, 11); the order column numbers the rows of orders[0], orders[1], ... consecutively."""


class Proposals(Intervals, Protocol):
    """Intervals with scores, best first."""

    @property
    def scores(self) -> NDArray[np.floating[Any]]:
        """(N,) non-increasing."""

    @property
    def sources(self) -> Sequence[str]:
        """Name of each code in the table's source column."""


class LabelLike(Protocol):
    """A label map of an expert on the stored grid."""

    @property
    def name(self) -> str:
        """Name of the map."""

    @property
    def array(self) -> IntArray:
        """(z, y, x); 0 is background, every other value a structure."""

    @property
    def value_names(self) -> Mapping[int, str] | None:
        """Name of each value, if declared."""


class ScanLike(Proposals, Protocol):
    """A stored scan: image, proposals and labels on one grid."""

    @property
    def scan_id(self) -> str:
        """Its id, unique in its store."""

    @property
    def dataset(self) -> str:
        """Name of its data set."""

    @property
    def modality(self) -> str:
        """Modality: ct, mr or pet."""

    @property
    def image(self) -> IntArray:
        """(z, y, x) int16 codes; real value = code * scale + offset. Axes run to S, A, R as indices grow."""

    @property
    def scale(self) -> float:
        """Real units per code."""

    @property
    def offset(self) -> float:
        """Real value of code 0."""

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""

    @property
    def labels(self) -> Sequence[LabelLike]:
        """Label maps of experts; may be empty."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Provenance, geometry and intensity, as stored."""


def imported_names(scan: ScanLike) -> tuple[str, ...]:
    """Return the names of a scan's imported sources, sorted; empty if all proposals are its own."""
    imported = scan.attributes.get("imported")
    return tuple(sorted(imported)) if isinstance(imported, Mapping) else ()


def rows_by_origin(scan: ScanLike) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the scan's own proposals ("own"), and of each imported source by its name."""
    names = imported_names(scan)
    codes = [scan.sources.index(name) for name in names]
    source = scan.table[:, SOURCE]
    rows = {OWN: np.flatnonzero(~np.isin(source, codes))}
    return rows | {name: np.flatnonzero(source == code) for name, code in zip(names, codes, strict=True)}
