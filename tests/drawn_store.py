"""A store of small drawn scans, without `mass prepare`, so that it takes no time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storage import LabelVolume, ScanRecord, Store, commit_scan, create_store, finish, open_store
from tests.pipeline.drawn_scan import DrawnScan, drawn_scan

INTENSITY = {"low": -1000.0, "high": 200.0, "mean": -500.0, "std": 450.0, "unit": "HU"}


def drawn_record(scan: DrawnScan) -> ScanRecord:
    """Return a drawn scan as it is committed."""
    return ScanRecord(
        scan_id=scan.scan_id,
        dataset=scan.dataset,
        split="",
        modality=scan.modality,
        image=scan.image,
        scale=scan.scale,
        offset=scan.offset,
        spacing_zyx_mm=scan.spacing_zyx_mm,
        labels=tuple(
            LabelVolume(name=label.name, array=label.array, value_names=dict(label.value_names or {}))
            for label in scan.labels
        ),
        atoms=scan.atoms,
        orders=tuple(tuple(orders) for orders in scan.orders),
        table=scan.table,
        scores=scan.scores,
        sources=scan.sources,
        attributes={
            "intensity": INTENSITY,
            "source_grid": {"shape_zyx": list(scan.image.shape), "spacing_xyz_mm": [1.5, 1.5, 3.0]},
        }
        | dict(scan.attributes),
        digests={"source": "s", "ingest": "i", "proposals": "p"},
    )


def drawn_store(folder: Path, scans: Iterable[DrawnScan] | None = None) -> Store:
    """Return a store of drawn scans; of three where none are given, one of them without labels."""
    from dataclasses import replace

    scans = list(
        scans or [drawn_scan(), drawn_scan(1, "drawn_2"), replace(drawn_scan(2, "bare", "other"), labels=())]
    )
    store = create_store(folder, spacing_mm=1.5, config={"ingest": {}, "proposals": {}})
    for scan in scans:
        commit_scan(store.path, drawn_record(scan))
    finish(store.path)
    return open_store(store.path)
