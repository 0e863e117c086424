"""A store of phantoms, quickly: their structures, and blocks of these, are the atoms and the proposals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from storage import LabelVolume, ScanRecord, Store, commit_scan, create_store, finish, open_store
from tests.phantom import STRUCTURES, phantom
from tests.storage.drawn_record import SMALL, draw_record, measure_run

Shape = tuple[int, int, int]

SHAPE: Shape = (32, 40, 32)
"""Two windows of 32 voxels: more would make every test that predicts slower."""


def phantom_record(scan_id: str, *, seed: int, shape: Shape = SHAPE) -> ScanRecord:
    """Return a phantom whose proposals are its structures, their octants, and runs of four of these."""
    generator = np.random.default_rng(seed)
    drawn = phantom(
        shape_zyx=shape,
        spacing_zyx_mm=(3.3, 1.6, 2.5),
        centre_xyz_mm=tuple(generator.uniform(-3, 3, 3)),
        seed=seed,
    )
    image = np.clip(drawn.image, -991, 500).astype(np.int16)
    body = (drawn.image > -600) | (drawn.labels > 0)
    parts = np.where(body, drawn.labels.astype(int) + 1, 0)
    octants = sum((axis // 20) * 2**k for k, axis in enumerate(np.indices(shape)))
    atoms = np.unique(parts * 8 + octants, return_inverse=True)[1].reshape(shape).astype(np.uint16)
    num_atoms = int(atoms.max()) + 1
    orders = (np.arange(num_atoms, dtype=np.uint16)[None],)
    part_of = np.zeros(num_atoms, int)
    part_of[atoms.ravel()] = parts.ravel()
    starts = np.searchsorted(part_of, np.arange(1, 8))
    runs = [(int(a), int(b)) for a, b in pairwise(starts) if b > a]
    runs += [(k, k + 1) for k in range(num_atoms)] + [(k, k + 4) for k in range(0, num_atoms - 4, 2)]
    table = np.array([measure_run((atoms,), orders, 0, *run) for run in runs], dtype=np.int32)
    labels = LabelVolume(name="structures", array=drawn.labels, value_names=STRUCTURES)
    statistics = {"low": -991.0, "high": 500.0, "mean": float(image.mean()), "std": float(image.std())}
    return replace(
        draw_record(scan_id, shape=SMALL, layers=1),
        dataset="phantoms",
        image=image,
        scale=1.0,
        offset=0.0,
        labels=(labels,),
        atoms=(atoms,),
        orders=orders,
        table=table,
        scores=np.linspace(1, 0, len(table), dtype=np.float32),
        sources=("parts",),
        attributes={"intensity": {**statistics, "unit": "HU"}},
        digests={"source": scan_id, "ingest": "a", "proposals": f"{seed:02d}"},
    )


def make_phantom_store(folder: Path, num_scans: int = 4, shape: Shape = SHAPE) -> Store:
    create_store(folder, spacing_mm=1.5, config={})
    for number in range(num_scans):
        commit_scan(folder, phantom_record(f"phantom-{number}", seed=number, shape=shape))
    finish(folder)
    return open_store(folder)
