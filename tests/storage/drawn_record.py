"""A small scan drawn by hand: blocks for atoms, two hierarchies, a second layer of thin things, a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage import LabelVolume, ScanRecord
from storage.layout import BACKGROUND_ATOM

SHAPE = (70, 50, 90)  # chunks of 64 cut two of the axes, none fits exactly
SMALL = (8, 25, 41)


def draw_record(
    scan_id: str = "scan-1", *, shape: tuple[int, int, int] = SHAPE, seed: int = 0, layers: int = 2
) -> ScanRecord:
    """Return a scan whose table was measured by brute force."""
    rng = np.random.default_rng(seed)
    blocks = draw_blocks(shape)
    num_blocks = int(blocks.max()) + 1
    thin = np.full(shape, BACKGROUND_ATOM, dtype=np.uint16)
    thin[3:6, 1:3, shape[2] // 2 :] = 0
    thin[-4:, 4:, :1] = 1
    atoms = (blocks, thin)[:layers]
    orders = (
        np.stack([np.arange(num_blocks), rng.permutation(num_blocks)]).astype(np.uint16),
        np.array([[1, 0]], dtype=np.uint16),
    )[:layers]
    runs = [(0, 0, num_blocks), (0, 1, 3), (1, 0, 1), (1, 1, num_blocks - 1), (2, 0, 1), (2, 1, 2), (2, 0, 2)]
    runs = [run for run in runs if run[0] < 2 or layers == 2]
    table = np.array([measure_run(atoms, orders, *run) for run in runs], dtype=np.int32)
    image = np.clip(rng.normal(0, 200, shape), -991, 500).astype(np.int16)
    organs = LabelVolume(
        name="organs", array=(blocks % 3).astype(np.uint8), value_names={1: "liver", 2: "spleen"}
    )
    statistics = {"low": -991.0, "high": 500.0, "mean": float(image.mean()), "std": float(image.std())}
    return ScanRecord(
        scan_id=scan_id,
        dataset="drawn",
        split="train",
        modality="ct",
        image=image,
        scale=0.5,
        offset=-3.0,
        spacing_zyx_mm=(2.0, 1.5, 1.25),
        labels=(organs,),
        atoms=atoms,
        orders=orders,
        table=table,
        scores=np.linspace(1, 0, len(table), dtype=np.float32),
        sources=("linkage", "area", "components"),
        attributes={
            "intensity": {**statistics, "unit": "HU"},
            "provenance": {"source": "drawn", "voxels": [1, 2]},
        },
        digests={"source": "aa", "ingest": "bb", "proposals": f"{seed:02d}"},
    )


def draw_blocks(shape: tuple[int, int, int]) -> NDArray[np.uint16]:
    """Return blocks of up to 20 voxels a side, numbered in scan order."""
    z, y, x = np.indices(shape) // 20
    codes = (z * 100 + y) * 100 + x
    return np.unique(codes, return_inverse=True)[1].reshape(shape).astype(np.uint16)


def brute_mask(
    atoms: tuple[NDArray[np.uint16], ...],
    orders: tuple[NDArray[np.uint16], ...],
    order: int,
    start: int,
    stop: int,
) -> NDArray[np.bool_]:
    """Return a proposal's mask by the definition: all rows of all layers counted through."""
    rows = [(layer, row) for layer, some in enumerate(orders) for row in some]
    layer, row = rows[order]
    return np.isin(atoms[layer], row[start:stop])


def measure_run(
    atoms: tuple[NDArray[np.uint16], ...],
    orders: tuple[NDArray[np.uint16], ...],
    order: int,
    start: int,
    stop: int,
) -> list[int]:
    """Return a row of the table by looking at every voxel; its source is its order."""
    places = np.argwhere(brute_mask(atoms, orders, order, start, stop))
    return [order, start, stop, *places.min(axis=0), *(places.max(axis=0) + 1), len(places), order]


def record_masks(record: ScanRecord) -> NDArray[np.bool_]:
    """Return every proposal's mask, (N, z, y, x)."""
    return np.stack([brute_mask(record.atoms, record.orders, *row[:3]) for row in record.table])


def differently(record: ScanRecord) -> ScanRecord:
    """Return another scan of the same id."""
    return replace(record, image=record.image[::-1].copy(), digests={**record.digests, "ingest": "cc"})


def store_bytes(store: Path) -> dict[str, bytes]:
    """Return every file and folder of a store: two stores are the same if this is."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes() if path.is_file() else b"<folder>"
        for path in sorted(store.rglob("*"))
    }
