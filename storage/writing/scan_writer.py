"""Writes a scan's files with zarr-python: one group, valid OME-NGFF 0.5, the same bytes for the same record.

*Reads* a ScanRecord. *Writes* every key of the scan except COMMIT.json into an empty folder, in the newest
format version. The settings were measured: inner chunks of 64^3, one shard per volume, image blosc(zstd, 5,
bitshuffle), atoms and labels blosc(zstd, 5, noshuffle) (shuffling ids makes them 1.5-3x larger), everything
else level 6, crc32c on every chunk. Readers do not depend on these settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.storage import LocalStore

from storage.layout import (
    CHUNK_VOXELS,
    FORMAT_VERSION,
    MISSING_ATOM,
    OME_VERSION,
    PROPOSAL_COLUMNS,
    atoms_name,
    label_volume,
    level_key,
)
from storage.reading import single_threaded_blosc
from storage.records import (
    Level,
    ScanRecord,
    count_atoms,
    count_voxels,
    downsample_image,
    downsample_labels,
    make_level,
    pack_orders,
    plain_json,
    plan_levels,
    ratio,
)

_AXES = ("z", "y", "x")

_VOLUME_LEVEL = 5
"""zstd level for volumes."""

_TABLE_LEVEL = 6
"""zstd level for segments and tables. Level 9 would reduce the segments of a small scan from 250 to 220 kB,
but take 1.6 s in place of 1.3 s."""

Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]


def write_scan(folder: Path, record: ScanRecord) -> None:
    """Write `record` into the empty folder, except COMMIT.json."""
    store = LocalStore(folder)
    single_threaded_blosc()
    levels = [
        make_level(record.image.shape, record.spacing_zyx_mm, factors, index)
        for index, factors in enumerate(plan_levels(record.image.shape))
    ]
    with zarr.config.set({"json_indent": 2}):
        _write_group(store, "", _scan_attributes(record, levels))
        for index, codes in enumerate(_pyramid(record.image, levels)):
            _write_volume(store, level_key("", index), codes, shuffle="bitshuffle", fill=0)
        names = [atoms_name(layer) for layer in range(len(record.atoms))] + [
            label.name for label in record.labels
        ]
        _write_group(store, "labels", {"ome": {"version": OME_VERSION, "labels": names}})
        counts = [
            _write_atoms(store, atoms_name(layer), atoms, levels) for layer, atoms in enumerate(record.atoms)
        ]
        for label in record.labels:
            volume = label_volume(label.name)
            _write_group(store, volume, _label_attributes(label.name, levels, label.value_names))
            for index, array in enumerate(_pyramid(label.array, levels)):
                _write_volume(store, level_key(volume, index), array, shuffle="noshuffle", fill=0)
        _write_proposals(store, record, counts)


def _write_atoms(
    store: LocalStore, name: str, atoms: NDArray[np.uint16], levels: Sequence[Level]
) -> list[NDArray[np.int64]]:
    """Write an atom layer; return the number of voxels of every id, (65536,), for each level."""
    volume, counts = label_volume(name), []
    _write_group(store, volume, _label_attributes(name, levels, {}))
    for index, ids in enumerate(_pyramid(atoms, levels)):
        _write_volume(store, level_key(volume, index), ids, shuffle="noshuffle", fill=MISSING_ATOM)
        counts.append(np.bincount(ids.ravel(), minlength=65_536))
    return counts


def _write_proposals(
    store: LocalStore, record: ScanRecord, counts: Sequence[Sequence[NDArray[np.int64]]]
) -> None:
    """Write segments, table, scores and the proposals' voxels at each level.

    Args:
        store: Store of the scan.
        record: The scan.
        counts: For each layer and level, (65536,) voxels of every atom id.
    """
    rows = [row for orders in record.orders for row in orders]
    voxels = [count_voxels(record.proposals, rows, at_level) for at_level in zip(*counts, strict=True)]
    sizes = [count_atoms(layer, atoms) for layer, atoms in enumerate(record.atoms)]
    packed, table = pack_orders(record.orders, sizes, record.table)
    _write_group(store, "segments", {})
    for layer, segments in enumerate(packed):
        _write_small(store, f"segments/{layer}", segments, ("atom", "row"), {}, shuffle="noshuffle")
    columns = {"mass": {"columns": list(PROPOSAL_COLUMNS)}}
    _write_small(store, "proposals", table, ("proposal", "column"), columns, shuffle="shuffle")
    _write_small(store, "scores", record.scores, ("proposal",), {}, shuffle="bitshuffle")
    levels = np.stack(voxels, axis=1)
    _write_small(store, "level_voxels", levels, ("proposal", "level"), {}, shuffle="shuffle")


def _pyramid(array: NDArray[Any], levels: Sequence[Level]) -> Iterator[NDArray[Any]]:
    """Yield a volume at each level; int16 is the image, other types are ids."""
    codes = array
    yield array
    for finer, coarser in pairwise(levels):
        if array.dtype == np.int16:
            codes = downsample_image(codes, ratio(finer.factors_zyx, coarser.factors_zyx))
            yield codes
        else:
            yield downsample_labels(array, coarser.factors_zyx)


def _scan_attributes(record: ScanRecord, levels: Sequence[Level]) -> dict[str, Any]:
    mass = {
        "format_version": FORMAT_VERSION,
        "scan_id": record.scan_id,
        "dataset": record.dataset,
        "split": record.split,
        **({"case": record.case} if record.case else {}),
        "modality": record.modality,
        "scale": record.scale,
        "offset": record.offset,
        "spacing_zyx_mm": list(record.spacing_zyx_mm),
        "level_factors": [list(level.factors_zyx) for level in levels],
        "sources": list(record.sources),
        "num_orders": [len(orders) for orders in record.orders],
        "digests": dict(record.digests),
        "attributes": dict(record.attributes),
    }
    return plain_json({"ome": _multiscales(record.scan_id, levels, "mean"), "mass": mass})


def _multiscales(name: str, levels: Sequence[Level], method: str) -> dict[str, Any]:
    datasets = []
    for level in levels:
        transformations = [{"type": "scale", "scale": list(level.spacing_zyx_mm)}]
        if level.index:
            transformations.append({"type": "translation", "translation": list(level.origin_zyx_mm)})
        datasets.append({"path": str(level.index), "coordinateTransformations": transformations})
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in _AXES]
    multiscale = {"name": name, "type": method, "axes": axes, "datasets": datasets}
    return {"version": OME_VERSION, "multiscales": [multiscale]}


def _label_attributes(name: str, levels: Sequence[Level], value_names: Mapping[int, str]) -> dict[str, Any]:
    image_label: dict[str, Any] = {"source": {"image": "../../"}}
    if value_names:
        names = sorted(value_names.items())
        image_label["properties"] = [{"label-value": value, "name": name} for value, name in names]
    return plain_json({"ome": _multiscales(name, levels, "central mode") | {"image-label": image_label}})


def _write_group(store: LocalStore, path: str, attributes: dict[str, Any]) -> None:
    zarr.create_group(store, path=path, zarr_format=3, attributes=attributes)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Storage layout of an array."""

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    level: int
    """Compression level of Zstandard."""
    shuffle: Shuffle
    fill: int = 0
    """Value of missing chunks."""


def _write_volume(store: LocalStore, path: str, array: NDArray[Any], *, shuffle: Shuffle, fill: int) -> None:
    chunks = tuple(min(CHUNK_VOXELS, size) for size in array.shape)
    shards = tuple(-(-size // chunk) * chunk for size, chunk in zip(array.shape, chunks, strict=True))
    layout = _Layout(chunks=chunks, shards=shards, level=_VOLUME_LEVEL, shuffle=shuffle, fill=fill)
    _write_array(store, path, array, layout, _AXES, {})


def _write_small(
    store: LocalStore,
    path: str,
    array: NDArray[Any],
    names: Sequence[str],
    attributes: dict[str, Any],
    *,
    shuffle: Shuffle,
) -> None:
    layout = _Layout(chunks=array.shape, level=_TABLE_LEVEL, shuffle=shuffle)
    _write_array(store, path, array, layout, names, attributes)


def _write_array(
    store: LocalStore,
    path: str,
    array: NDArray[Any],
    layout: _Layout,
    names: Sequence[str],
    attributes: dict[str, Any],
) -> None:
    compressor = BloscCodec(
        cname="zstd",
        clevel=layout.level,
        shuffle=BloscShuffle[layout.shuffle],
        typesize=array.dtype.itemsize,
    )
    target = zarr.create_array(
        store,
        name=path,
        shape=array.shape,
        dtype=array.dtype.newbyteorder("<"),
        chunks=layout.chunks,
        shards=layout.shards,
        compressors=(compressor, Crc32cCodec()),
        fill_value=array.dtype.type(layout.fill),
        # One file in the array's folder, instead of three nested folders.
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=list(names),
        attributes=attributes,
        # Empty chunks are written too, so that a missing chunk always means lost data.
        config={"write_empty_chunks": True},
    )
    target[...] = np.ascontiguousarray(array)
