"""A scan's data before it is stored; checked when made, so that stored scans are valid.

*Axes* are (z, y, x), spacings are in mm. Bounds: at most 65,534 atoms per layer and 2^31 - 1 voxels per
proposal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidRecord
from storage.layout import PROPOSAL_COLUMNS, dump_line, is_label_name, is_safe_name
from storage.records.orders import Rows
from storage.records.proposal_checks import check_proposals

Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Clip bounds and z-score statistics of an image, in real units."""

    low: float
    """Lower clip bound."""
    high: float
    """Upper clip bound."""
    mean: float
    """Mean of the image; z-scores are relative to it."""
    std: float
    """Standard deviation of the image, > 0; the unit of z-scores."""
    unit: str
    """Name of the unit, such as "HU"; empty if it has none."""

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, self.mean, self.std)
        if not all(math.isfinite(number) for number in numbers) or self.std <= 0 or self.low > self.high:
            raise InvalidRecord(f"intensity must be finite with low <= high and std > 0, got {self}")

    @classmethod
    def from_json(cls, value: object, *, scan_id: str) -> Intensity:
        """Return the intensity in a scan's attributes, or raise InvalidRecord."""
        names = ("low", "high", "mean", "std", "unit")
        if not isinstance(value, Mapping) or not set(names) <= set(value):
            raise InvalidRecord(f"scan {scan_id}: attributes['intensity'] must have {', '.join(names)}")
        numbers = {name: float(value[name]) for name in names[:4]}
        return cls(**numbers, unit=str(value["unit"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelVolume:
    """A label map of an expert."""

    name: str
    """Name in the store; letters, digits, dot, dash, underscore."""
    array: Labels
    """(z, y, x) on the image's grid; 0 is background."""
    value_names: Mapping[int, str]
    """Name of each value; some values may have none."""

    def __post_init__(self) -> None:
        if not is_label_name(self.name):
            raise InvalidRecord(
                f"label name {self.name!r}: 1 to 128 letters, digits, dots, dashes, underscores, and not "
                "'atoms' or 'atoms_1': those hold the atoms. Rename the label"
            )
        if self.array.dtype not in (np.uint8, np.uint16) or self.array.ndim != 3:
            raise InvalidRecord(
                f"label {self.name} must be uint8 or uint16 (z, y, x), "
                f"got {self.array.dtype} {self.array.shape}"
            )
        top = np.iinfo(self.array.dtype).max
        for value, name in self.value_names.items():
            if not isinstance(value, int) or not 0 <= value <= top or not isinstance(name, str):
                raise InvalidRecord(
                    f"label {self.name}: value_names maps 0..{top} to names, got {value!r}: {name!r}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """The N proposals of a scan, best first, as columns.

    Proposal i is the set of atoms `orders(layer)[row][start:stop]`; its voxels are those of its atoms.
    """

    table: NDArray[np.int32]
    """(N, 11), columns as in PROPOSAL_COLUMNS."""
    scores: NDArray[np.float32]
    """(N,), non-increasing."""
    sources: tuple[str, ...]
    """Name of each `source` code: the tree that the proposal comes from."""
    layer_of_order: NDArray[np.int32]
    """(sum of T_k,) atom layer of each `order`."""

    def __len__(self) -> int:
        return len(self.scores)

    def column(self, name: str) -> NDArray[np.int32]:
        """Return one column of the table, (N,)."""
        column: NDArray[np.int32] = self.table[:, PROPOSAL_COLUMNS.index(name)]
        return column

    @property
    def order(self) -> NDArray[np.int32]:
        """(N,) index of the row in the orders of all layers, numbered consecutively."""
        return self.column("order")

    @property
    def start(self) -> NDArray[np.int32]:
        """(N,) index of the first atom in that row."""
        return self.column("start")

    @property
    def stop(self) -> NDArray[np.int32]:
        """(N,) one past the index of the last atom in that row."""
        return self.column("stop")

    @property
    def boxes(self) -> NDArray[np.int32]:
        """(N, 6) z0, y0, x0, z1, y1, x1, half-open, in voxels."""
        boxes: NDArray[np.int32] = self.table[:, 3:9]
        return boxes

    @property
    def voxels(self) -> NDArray[np.int32]:
        """(N,) number of voxels."""
        return self.column("voxels")

    @property
    def source(self) -> NDArray[np.int32]:
        """(N,) code in `sources`."""
        return self.column("source")

    @property
    def source_names(self) -> NDArray[np.str_]:
        """(N,) name of the source of each proposal."""
        return np.asarray(self.sources, dtype=np.str_)[self.source]

    @property
    def layer(self) -> NDArray[np.int32]:
        """(N,) atom layer of each proposal."""
        layers: NDArray[np.int32] = self.layer_of_order[self.order]
        return layers


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanRecord:
    """A complete scan, ready to be stored.

    It is checked when made, down to every proposal's box and number of voxels.
    """

    scan_id: str
    """1 to 128 letters, digits, dots, dashes, underscores; a letter or digit first."""
    dataset: str
    """Name of its data set; may be empty."""
    split: str
    """Its part of the data set, such as "train"; may be empty."""
    modality: str
    """"ct", "mr", "pet", ..."""
    image: NDArray[np.int16]
    """(z, y, x) codes; real value = code * scale + offset."""
    scale: float
    """Real units per code."""
    offset: float
    """Real value of code 0."""
    spacing_zyx_mm: tuple[float, float, float]
    """Voxel size along each axis, in mm."""
    labels: tuple[LabelVolume, ...]
    """Label maps of experts on the image's grid; may be empty."""
    atoms: tuple[NDArray[np.uint16], ...]
    """(z, y, x) per layer. Layer 0: ids 0..A-1 everywhere. Others: ids, or 65534 = background."""
    orders: tuple[Rows, ...]
    """For each layer one row per tree: atoms in depth-first order, all of them or those in proposals."""
    table: NDArray[np.int32]
    """(N, 11), columns as in PROPOSAL_COLUMNS, best first, N >= 1."""
    scores: NDArray[np.float32]
    """(N,), non-increasing, finite."""
    sources: tuple[str, ...]
    """Name of each `source` code."""
    attributes: Mapping[str, object]
    """JSON that is stored unchanged: provenance, geometry, `intensity` (see Intensity)."""
    digests: Mapping[str, str]
    """Digest of the inputs of each stage; it shows whether a scan is out of date."""
    case: str = ""
    """Patient or study that it is of; empty if it is a case of its own."""

    def __post_init__(self) -> None:
        if not is_safe_name(self.scan_id):
            raise InvalidRecord(
                f"scan id {self.scan_id!r}: must be 1 to 128 letters, digits, dots, dashes, underscores, "
                "with a letter or digit first. Give the scan a safe id in the manifest"
            )
        try:
            self._check_texts()
            self._check_volumes()
            check_proposals(self.atoms, self.orders, self.table, self.scores, len(self.sources))
        except InvalidRecord as error:
            raise InvalidRecord(f"scan {self.scan_id}: {error}") from None

    def _check_texts(self) -> None:
        texts = (
            self.dataset,
            self.split,
            self.case,
            self.modality,
            *self.sources,
            *self.digests,
            *self.digests.values(),
        )
        if not all(isinstance(text, str) for text in texts) or not self.modality:
            raise InvalidRecord(
                "dataset, split, case, modality, sources and digests are strings, modality not empty"
            )
        plain_json(self.attributes)
        if "intensity" in self.attributes:
            Intensity.from_json(self.attributes["intensity"], scan_id=self.scan_id)
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise InvalidRecord(f"two labels of one name in {names}")

    def _check_volumes(self) -> None:
        numbers = (*self.spacing_zyx_mm, self.scale, self.offset)
        if not all(math.isfinite(number) for number in numbers):
            raise InvalidRecord(f"spacing, scale and offset must be finite, got {numbers}")
        if len(self.spacing_zyx_mm) != 3 or min(self.spacing_zyx_mm) <= 0 or self.scale <= 0:
            raise InvalidRecord(
                f"needs three spacings > 0 and a scale > 0, got {self.spacing_zyx_mm}, {self.scale}"
            )
        check_array("image", self.image, np.int16, 3)
        for name, array in self._volumes().items():
            if array.shape != self.image.shape:
                raise InvalidRecord(
                    f"{name} is {array.shape}, the image {self.image.shape}: they share one grid"
                )

    @property
    def proposals(self) -> Proposals:
        """The proposals as columns."""
        counts = [len(rows) for rows in self.orders]
        return Proposals(
            table=self.table,
            scores=self.scores,
            sources=self.sources,
            layer_of_order=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        )

    def _volumes(self) -> dict[str, NDArray[np.generic]]:
        volumes: dict[str, NDArray[np.generic]] = {
            f"label {label.name}": label.array for label in self.labels
        }
        return volumes | {f"atom layer {k}": array for k, array in enumerate(self.atoms)}


def check_array(name: str, array: NDArray[np.generic], dtype: type[np.generic], num_axes: int) -> None:
    """Raise InvalidRecord unless `array` has this dtype and number of axes, and no axis of length 0."""
    if array.dtype != dtype or array.ndim != num_axes or 0 in array.shape:
        raise InvalidRecord(
            f"{name} must be {dtype.__name__} with {num_axes} axes, none empty, "
            f"got {array.dtype} {array.shape}"
        )


def plain_json(value: Mapping[str, object]) -> dict[str, object]:
    """Return `value` after writing and reading it as JSON, keys sorted at every depth.

    Raises:
        InvalidRecord: It cannot be written as JSON.
    """
    try:
        parsed = json.loads(dump_line(value))
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"attributes must be JSON, without NaN or NumPy numbers: {error}") from None
    return dict(parsed)
