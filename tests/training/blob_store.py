"""A store of scans of two classes: noise, and noise with a bright blob."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage import Store, commit_scan, create_store, finish, open_store
from tests.storage.drawn_record import draw_record

SHAPE = (14, 15, 46)
COUNTS = {"train": 20, "val": 8, "test": 12}


def blob_image(kind: int, seed: int) -> np.ndarray:
    """Return noise with (1) or without (0) a blob somewhere."""
    generator = np.random.default_rng(seed)
    image = generator.normal(0, 50, SHAPE)
    centre = [generator.uniform(6, size - 6) for size in SHAPE]
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(SHAPE), centre, strict=True)))
    return (image + 400 * kind * (distance < 5)).astype(np.int16)


def make_blob_store(folder: Path) -> Store:
    """Return a store of scans "train-00", ...; every second has a blob, and its class is kept with it."""
    create_store(folder, spacing_mm=1.5, config={})
    drawn = draw_record(shape=SHAPE, layers=1)
    seed = 0
    for split, count in COUNTS.items():
        for number in range(count):
            seed += 1
            image = blob_image(number % 2, seed)
            statistics = {
                "low": -200.0,
                "high": 600.0,
                "mean": float(image.mean()),
                "std": float(image.std()),
            }
            record = replace(
                drawn,
                scan_id=f"{split}-{number:02d}",
                dataset="blobs",
                split=split,
                modality="other",
                image=image,
                scale=1.0,
                offset=0.0,
                attributes={"intensity": {**statistics, "unit": ""}, "class": str(number % 2)},
            )
            commit_scan(folder, record)
    finish(folder)
    return open_store(folder)


def write_labels(path: Path, store: Store, **columns: Any) -> Path:
    """A labels.csv: each column is a function of the scan's id."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns])
        writer.writerows([scan_id, *(of(scan_id) for of in columns.values())] for scan_id in store.scan_ids)
    return path


def kind_of(scan_id: str) -> int:
    return int(scan_id.split("-")[1]) % 2
