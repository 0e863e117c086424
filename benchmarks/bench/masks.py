"""The masks that in-context arms are pretrained on, each as a store of the same scans.

    ours     the proposals of the set's store, as they are
    best     of these the 250 with the highest scores a scan
    slic     flat SLIC segments (`benchmarks.slic_store`)
    first    proposals of this project's first version (`benchmarks.first_version`; needs the git history)
    expert   the expert's label maps: a mask for each structure, and one for all of them together

`expert` is a ceiling, not a rival: a user who had these labels would need no pretraining without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench.sets import SetDescription, Sources, prepare_settings
from benchmarks.first_version import working_tree
from benchmarks.slic_store import make_slic_store
from benchmarks.teaching import is_whole, mass
from pipeline.quality.slic_baseline import SlicConfig
from storage import ScanRecord, Store, commit_scan, create_store, digest_of, finish, open_store
from storage.records.proposal_checks import atom_extents

NUM_BEST = 250
EXPERT = "expert"
_VERSION = "1"


def store_of(masks: str, about: SetDescription, store: Store, sources: Sources) -> Store:
    """Return the store with these masks; made, or completed, where it is not there.

    Args:
        masks: "ours", "best", "slic", "first" or "expert".
        about: The set.
        store: Its store.
        sources: Where the stores are kept.

    Raises:
        ValueError: The first version's masks are asked for where there is no manifest to make them from, or a
            label map is empty.
    """
    folder = sources.out / "sets" / about.name / f"store-{masks}"
    match masks:
        case "slic":
            return make_slic_store(store.path, folder, slic=SlicConfig(), progress=lambda line: None)
        case "best":
            return make_store(store, folder, f"best-{NUM_BEST}", with_best_masks, list(store.entries))
        case "expert":
            labelled = [scan_id for scan_id, entry in store.entries.items() if entry.labels]
            return make_store(store, folder, EXPERT, with_expert_masks, labelled)
        case "first":
            return _first(about, store, folder)
        case _:
            return store


def _first(about: SetDescription, store: Store, folder: Path) -> Store:
    manifest = folder.parent / "manifest.csv"
    if not manifest.exists():
        raise ValueError(
            f"set {about.name}: the first version makes its masks from the raw scans. Give the set's "
            "manifest (--manifest) in place of a store, or leave the arm `first` out"
        )
    if not folder.exists() or not is_whole(folder, store.scan_ids):
        settings = folder.parent / "prepare-first.toml"
        settings.write_text(prepare_settings(replace(about, prepare={})), encoding="utf-8")
        with working_tree(folder.parent / "first-tree") as tree:
            mass("prepare", manifest, folder, "--config", settings, tree=tree)
    return open_store(folder)


def make_store(
    store: Store, folder: Path, name: str, changed: Callable[[ScanRecord], ScanRecord], ids: Sequence[str]
) -> Store:
    """Return a store of some scans with other proposals; scans that are there already are kept.

    Args:
        store: Where the scans are.
        folder: Of the new store.
        name: Of the change, for the digests of its proposals.
        changed: Returns a scan with its other proposals.
        ids: The scans.
    """
    made = create_store(folder, spacing_mm=store.info.spacing_mm, config=store.info.config)
    for scan_id in ids:
        wanted = {**store.entries[scan_id].digests, "proposals": digest_of([name, _VERSION])}
        there = made.entries.get(scan_id)
        if there is None or there.digests != wanted:
            record = changed(store.scan(scan_id).record())
            commit_scan(folder, replace(record, digests=wanted), replace=True)
    finish(folder)
    return open_store(folder)


def with_best_masks(record: ScanRecord) -> ScanRecord:
    """Return the scan with its first proposals alone; they are sorted by score."""
    return replace(record, table=record.table[:NUM_BEST], scores=record.scores[:NUM_BEST])


def with_expert_masks(record: ScanRecord) -> ScanRecord:
    """Return the scan with its first label map as its proposals: each structure, and all together.

    Raises:
        ValueError: Its label map is empty.
    """
    values, atoms = np.unique(record.labels[0].array, return_inverse=True)
    if not values.any():
        raise ValueError(f"scan {record.scan_id}: its label map is empty, so that no mask can be made of it")
    ids = atoms.reshape(record.image.shape).astype(np.uint16)
    first, count = int(values[0] == 0), len(values)  # atom 0 is the background, where there is any
    runs = [(row, row + 1) for row in range(first, count)]
    if len(runs) > 1:
        runs.append((first, count))
    voxels, lows, highs = atom_extents(ids, count, has_background=False)
    table = np.array([_row(voxels, lows, highs, *run) for run in runs], np.int32)
    return replace(
        record,
        atoms=(ids,),
        orders=(np.arange(count, dtype=np.uint16)[None],),
        table=table,
        scores=np.ones(len(table), np.float32),
        sources=(EXPERT,),
    )


def _row(
    voxels: NDArray[np.int64], lows: NDArray[np.int32], highs: NDArray[np.int32], start: int, stop: int
) -> NDArray[np.int64]:
    """A line of the table of proposals: atoms start to stop of the only order."""
    box = [*lows[start:stop].min(axis=0), *highs[start:stop].max(axis=0)]
    return np.array([0, start, stop, *box, voxels[start:stop].sum(), 0], np.int64)
