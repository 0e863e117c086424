"""A scan at one level as the browser's viewer reads it: image, atoms, proposals, labels in one gzip stream.

Reads: a scan (see `pipeline.quality.stored_scan.ScanLike`) whose volumes are those of a level; everything
       but the image may be missing.
Writes: gzip of: uint32 n (little-endian), n bytes of JSON, then arrays (C order, little-endian) at the
       offsets that the JSON names, counted from its end. `pipeline/report/web/data.js` and `scan.js` read
       it.
Bounds: masks in the browser are those of the level; volumes in mL are those of level 0. The same scan gives
       the same bytes.

Membership of a proposal is sent as in the store (docs/format.md): `segments` of each layer, (T, A), has the
segment of each atom in each tree, 0 where no proposal of the tree has the atom; a proposal is a range of
segments of a tree, so that one comparison per atom gives its mask.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.quality import IntArray, LabelLike, Rows, ScanLike, ScanScore
from pipeline.report.slices import display_window

GREY_STEPS = 255
"""Highest grey level of an image that is reduced to 8 bits."""


@dataclass(frozen=True, kw_only=True)
class LeveledScan:
    """A scan at a level of its store; has the fields of `pipeline.quality.stored_scan.ScanLike`."""

    scan_id: str
    dataset: str
    modality: str
    image: IntArray
    """int16 or uint8 (z, y, x) codes; real value = code * scale + offset."""
    scale: float
    offset: float
    spacing_zyx_mm: tuple[float, float, float]
    """Voxel size of the level."""
    labels: Sequence[LabelLike] = ()
    atoms: Sequence[IntArray] = ()
    """One volume per layer, on the level's grid; none to show no proposals."""
    orders: Sequence[Rows] = ()
    table: IntArray
    """(N, 11); boxes and voxels are those of level 0."""
    scores: NDArray[np.floating[Any]]
    sources: Sequence[str] = ()
    attributes: Mapping[str, Any]
    factors_zyx: tuple[int, int, int] = (1, 1, 1)
    """Voxels of level 0 that a voxel of the level spans."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A labelled structure, and what is compared with it: a proposal, or a value of another label map."""

    name: str
    label: int
    """Index of the label map."""
    value: int
    """Value of the structure in the label map."""
    row: int = -1
    """Row of the proposal; -1 if it is a value of another map, or if nothing matches."""
    other: int = -1
    """Index of the other label map, such as a prediction; -1 if it is a proposal."""
    other_value: int = 0
    iou: float
    dice: float
    note: str = ""
    """A remark, such as a distance or a confidence."""


@dataclass(frozen=True, kw_only=True)
class PackFacts:
    """Facts in a pack, beside its arrays."""

    pairs: tuple[Pair, ...] = ()
    """Structures with their best match."""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values to print beside the pictures."""
    level: int = 0
    levels: tuple[tuple[int, int, int], ...] = ()
    """Shape (z, y, x) of each level that the viewer can request; empty where there is no choice."""


def pairs_of(score: ScanScore | None, labels: Sequence[LabelLike]) -> tuple[Pair, ...]:
    """Return each scored structure with its best proposal, the worst matched first."""
    if score is None:
        return ()
    index = {label.name: number for number, label in enumerate(labels)}
    return tuple(
        Pair(
            name=entry.name,
            label=index[entry.label],
            value=entry.value,
            row=entry.best,
            iou=entry.iou[-1],
            dice=entry.dice[-1],
            note=entry.best_source,
        )
        for entry in sorted(score.structures, key=lambda entry: (entry.iou[-1], entry.name))
    )


def in_8_bits(scan: LeveledScan) -> LeveledScan:
    """Return the scan with 256 grey levels between the extremes of its image: less than half the bytes."""
    low, high = int(scan.image.min()), int(scan.image.max())
    step = max((high - low) / GREY_STEPS, 1.0)
    image = np.rint((scan.image.astype(np.float32) - low) / step).astype(np.uint8)
    return replace(scan, image=image, scale=scan.scale * step, offset=low * scan.scale + scan.offset)


def pack_scan(scan: LeveledScan, facts: PackFacts | None = None, *, compression: int = 6) -> bytes:
    """Return the scan's pack.

    Args:
        scan: The scan at a level.
        facts: Facts beside the arrays.
        compression: Level of gzip, 1 (fast) to 9 (small).
    """
    facts = facts or PackFacts()
    arrays: dict[str, NDArray[Any]] = {"image": _native(scan.image)}
    for layer, atoms in enumerate(scan.atoms):
        arrays[f"atoms_{layer}"] = atoms.astype(np.uint16, copy=False)
    for number, label in enumerate(scan.labels):
        arrays[f"label_{number}"] = _native(label.array)
    trees: list[tuple[int, int]] = []
    if scan.atoms:
        table, segments, trees = _segments(scan)
        arrays |= {"proposals": table, "scores": np.asarray(scan.scores, dtype=np.float32)}
        arrays |= {f"segments_{layer}": values for layer, values in enumerate(segments)}
    return _stream(_about(scan, facts, trees), arrays, compression)


def _about(scan: LeveledScan, facts: PackFacts, trees: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the JSON of a pack, without the places of its arrays."""
    window = display_window(scan)
    z, y, x = (
        mm / factor for mm, factor in zip(scan.spacing_zyx_mm, scan.factors_zyx, strict=True)
    )  # of level 0
    intensity = scan.attributes.get("intensity")
    return {
        "scan_id": scan.scan_id,
        "dataset": scan.dataset,
        "modality": scan.modality,
        "scale": scan.scale,
        "offset": scan.offset,
        "unit": str(intensity.get("unit", "")) if isinstance(intensity, Mapping) else "",
        "spacing_zyx_mm": scan.spacing_zyx_mm,
        "full_spacing_zyx_mm": (z, y, x),
        "level_factors": scan.factors_zyx,
        "window": asdict(window),
        "num_layers": len(scan.atoms),
        "trees": [{"layer": layer, "row": row} for layer, row in trees],
        "sources": list(scan.sources),
        "labels": [
            {
                "name": label.name,
                "names": {str(value): name for value, name in (label.value_names or {}).items()},
            }
            for label in scan.labels
        ],
        "pairs": [asdict(pair) for pair in facts.pairs],
        "facts": facts.facts,
        "level": facts.level,
        "levels": facts.levels,
    }


def _segments(scan: ScanLike) -> tuple[NDArray[np.int32], list[NDArray[Any]], list[tuple[int, int]]]:
    """Return the proposals as ranges of segments, the segments of each layer, and (layer, row) of each tree.

    Returns:
        Table (N, 11) int32 with `start` and `stop` replaced by the first and the last segment; for each layer
        uint8 or uint16 (T, A); for each tree its layer and its row there.
    """
    table = np.array(scan.table, dtype=np.int32)
    trees = [(layer, row) for layer, orders in enumerate(scan.orders) for row in range(len(orders))]
    layers: list[NDArray[Any]] = []
    tree = 0
    for orders in scan.orders:
        num_atoms = 1 + max((int(row.max()) for row in orders if len(row)), default=0)
        segments = np.zeros((len(orders), num_atoms), dtype=np.uint16)
        for atoms, line in zip(orders, segments, strict=True):
            mine = table[:, 0] == tree
            cuts = np.unique(table[mine, 1:3])
            line[atoms] = np.searchsorted(cuts, np.arange(len(atoms)), side="right")
            table[mine, 1] = np.searchsorted(cuts, table[mine, 1]) + 1
            table[mine, 2] = np.searchsorted(cuts, table[mine, 2])
            tree += 1
        small = segments.size == 0 or segments.max() <= 255
        layers.append(segments.astype(np.uint8) if small else segments)
    return table, layers, trees


def _native(array: IntArray) -> NDArray[Any]:
    """Return an array in a type that the browser reads: uint8, uint16 or int16."""
    if array.dtype in (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16)):
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, dtype=np.uint16)


def _stream(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], compression: int) -> bytes:
    listed, offset = {}, 0
    for name, array in arrays.items():
        listed[name] = {"dtype": array.dtype.name, "shape": array.shape, "offset": offset}
        offset += array.nbytes
    header = json.dumps({"about": about, "arrays": listed}, sort_keys=True).encode()
    parts = [struct.pack("<I", len(header)), header]
    parts += [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays.values()]
    return gzip.compress(b"".join(parts), compression, mtime=0)
