"""A store of phantoms: prepared by ingest, with blocks for proposals, so that it takes no time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ingest import IngestConfig, find_one, read_source, standardize
from storage import LabelVolume, ScanRecord, Store, commit_scan, create_store, finish, open_store
from tests.phantom import STRUCTURES, Phantom, phantom
from tests.storage.drawn_record import draw_blocks, measure_run

TURNED = ((0, -1, 0), (1, 0, 0), (0, 0, -1))
"""Array axes that run to the front, the left, and the feet."""

OBLIQUE = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))


def draw_store(
    folder: Path, scans: Mapping[str, Phantom], *, spacing_mm: float = 4.0, crop: bool = True
) -> Store:
    """Return a store of these phantoms; their files lie in folder/raw as ID.nii.gz and ID_label.nii.gz."""
    config = IngestConfig(spacing_mm=spacing_mm, crop=crop)
    values = {"ingest": {"spacing_mm": spacing_mm, "crop": crop}, "proposals": {}}
    store = create_store(folder / "store", spacing_mm=spacing_mm, config=values)
    for scan_id, scan in scans.items():
        path = scan.write(folder / "raw" / f"{scan_id}.nii.gz")
        label = scan.write_labels(folder / "raw" / f"{scan_id}_label.nii.gz")
        commit_scan(store.path, _record(scan_id, path, label, scan.modality, config))
    finish(store.path)
    return open_store(store.path)


def two_phantoms() -> dict[str, Phantom]:
    """Return two small scans; the axes of one are turned."""
    return {
        "ann": phantom(shape_zyx=(24, 30, 28), spacing_zyx_mm=(4.5, 2.6, 3.0)),
        "ben": phantom(shape_zyx=(26, 25, 30), spacing_zyx_mm=(3.0, 3.5, 2.7), direction=TURNED, seed=1),
    }


def _record(scan_id: str, path: Path, label: Path, modality: str, config: IngestConfig) -> ScanRecord:
    from dataclasses import replace

    from pipeline.discovery import LabelSource

    source = replace(
        find_one(path, config),
        scan_id=scan_id,
        modality=modality,
        labels=(LabelSource(name="label", path=label, value_names=None, location=label.name),),
    )
    scan = standardize(read_source(source, config), config)
    atoms = (draw_blocks(scan.image.shape),)
    orders = (np.arange(int(atoms[0].max()) + 1, dtype=np.uint16)[None],)
    last = int(atoms[0].max()) + 1
    table = np.array([measure_run(atoms, orders, 0, 0, stop) for stop in (last, 1)], dtype=np.int32)
    attributes: dict[str, Any] = {
        "intensity": scan.intensity.to_dict(),
        "grid": scan.grid.to_dict(),
        "source_grid": scan.source_grid.to_dict(),
        "location": path.name,
    }
    return ScanRecord(
        scan_id=scan_id,
        dataset="phantoms",
        split="train",
        modality=scan.modality,
        image=scan.image,
        scale=scan.scale,
        offset=scan.offset,
        spacing_zyx_mm=scan.grid.spacing_zyx_mm,
        labels=tuple(
            LabelVolume(name=one.name, array=one.array, value_names=STRUCTURES) for one in scan.labels
        ),
        atoms=atoms,
        orders=orders,
        table=table,
        scores=np.array([2.0, 1.0], dtype=np.float32),
        sources=("blocks",),
        attributes=attributes,
        digests={"source": "aa", "ingest": "bb", "proposals": "cc"},
    )
