"""Pairs of the same region in two patients: found by registration before a pretraining, without labels.

    partners   each scan with some scans of other cases of its data set and modality, drawn by a hash
    for each   the middle half of the reference is registered to the target: pose, then demons;
               its atoms are carried over; a proposal of either scan is a set of atoms
    paired     two proposals with an IoU of 0.5, or of 0.35 where each is the other's best

*Reads* a store: images and atoms at a level of at most half a million voxels. *Writes* a folder with a file
for each pair (`training.data.region_pairs`); files that are up to date are not made again. The same store
gives the same bytes. A region that registration does not find is not paired: a network can learn from the
pairs only structures that registration finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from storage import IndexEntry, Level, Scan, StorageError, Store, StorePath, open_store
from training.data import LEAST_REGIONS, RegionPairs, file_name, read_pairs, write_pairs
from training.engine import in_processes
from training.errors import DataError
from training.inference import register_labels

PARTNERS = 3
"""Number of scans that each scan is registered to."""
MOST_PAIRS = 600
"""Most pairs of a whole store: more than 200 scans have fewer partners each. A pair takes seconds."""
SURE_OVERLAP = 0.5
"""IoU from which two regions count as the same."""
MUTUAL_OVERLAP = 0.35
"""The same for two regions that are each other's best match."""
LEAST_VOXELS = 30
"""Least voxels of a region, at the level that is registered."""
_MOST_VOXELS = 500_000
_SHORT_SIDE = 40
"""An axis with fewer voxels is registered whole, not its middle half only."""


@dataclass(frozen=True, kw_only=True)
class PairedScans:
    """Result for one pair of scans."""

    reference: str
    target: str
    num_regions: int = 0
    """Number of paired regions."""
    agreement: float = 0.0
    """Correlation of both images after registration."""
    error: str = ""
    """Why there is no file; empty if there is one."""
    kept: bool = False
    """Whether its file was there already."""

    @property
    def is_used(self) -> bool:
        """Whether a training draws from it."""
        return self.num_regions >= LEAST_REGIONS


def choose_pairs(
    entries: Mapping[str, IndexEntry], partners: int = PARTNERS, most: int = MOST_PAIRS
) -> list[tuple[str, str]]:
    """Return the pairs of scans to register: each pair once; the same pairs for the same scans.

    Args:
        entries: The index of a store, by scan id.
        partners: Scans that each is registered to; fewer if its data set and modality have fewer other cases.
        most: Most pairs of all scans; the first ones by a hash.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for scan_id, entry in sorted(entries.items()):
        alike.setdefault((entry.dataset, entry.modality), []).append(scan_id)
    chosen: set[tuple[str, str]] = set()
    for scan_ids in alike.values():
        for scan_id in scan_ids:
            case = entries[scan_id].case_key
            others = [other for other in scan_ids if entries[other].case_key != case]
            others.sort(key=partial(_rank, scan_id))
            chosen.update((min(scan_id, other), max(scan_id, other)) for other in others[:partners])
    return sorted(sorted(chosen, key=lambda pair: _rank(*pair))[:most])


def make_pairs(
    store: StorePath, folder: Path, pairs: Sequence[tuple[str, str]], *, workers: int = 1
) -> Iterator[PairedScans]:
    """Find the same regions in pairs of scans, write each pair's file, and yield each result.

    A pair that fails is yielded with its error; the others go on.

    Args:
        store: Path or URL of the store.
        folder: Folder of the files; created if it does not exist.
        pairs: Ids of reference and target of each pair.
        workers: Number of processes; 1 works in this one.
    """
    entries = open_store(store).entries
    left = []
    for reference, target in pairs:
        found = _up_to_date(folder, reference, target, entries)
        if found is None:
            left.append((reference, target))
        else:
            yield found
    if workers <= 1 or len(left) <= 1:
        opened = open_store(store)
        for pair in left:
            yield _make_pair(opened, folder, *pair)
        return
    yield from in_processes(partial(_opened_pair, store, folder), left, workers)


def paired_regions(store: Store, reference: str, target: str) -> RegionPairs:
    """Return the pairs of proposals of two scans that are the same region.

    Args:
        store: The store.
        reference: Id of the scan that is registered.
        target: Id of the scan that it is registered to.

    Raises:
        StorageError: A scan cannot be read.
    """
    scans = store.scan(reference), store.scan(target)
    levels = _levels(*scans)
    images = [scan.image(level=level, normalize=True) for scan, level in zip(scans, levels, strict=True)]
    atoms = [scan.atoms(0, level=level).astype(np.int32) for scan, level in zip(scans, levels, strict=True)]
    digests = (store.entries[reference].digest, store.entries[target].digest)
    found = register_labels(images[0], _middle(images[0].shape), atoms[0], images[1])
    overlaps = np.zeros((0, 0), np.float32)
    rows: tuple[NDArray[np.int32], ...] = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    if found is not None:
        tables = [_membership(scan) for scan in scans]
        overlaps, rows = _overlaps(found.labels, atoms, tables)
    first, second = _same(overlaps)
    return RegionPairs(
        reference=reference,
        target=target,
        digests=digests,
        agreement=float(found.agreement) if found is not None else 0.0,
        proposals=np.stack([rows[0][first], rows[1][second]]).astype(np.int32),
        overlaps=overlaps[first, second].astype(np.float32),
    )


def _opened_pair(store: StorePath, folder: Path, pair: tuple[str, str]) -> PairedScans:
    return _make_pair(open_store(store), folder, *pair)


def _make_pair(store: Store, folder: Path, reference: str, target: str) -> PairedScans:
    try:
        pairs = paired_regions(store, reference, target)
    except (StorageError, ValueError, RuntimeError) as error:
        return PairedScans(reference=reference, target=target, error=str(error).splitlines()[-1])
    write_pairs(folder, pairs)
    return PairedScans(
        reference=reference, target=target, num_regions=len(pairs.overlaps), agreement=pairs.agreement
    )


def _up_to_date(
    folder: Path, reference: str, target: str, entries: Mapping[str, IndexEntry]
) -> PairedScans | None:
    """Return the result of an earlier call for a pair; None if it is missing, damaged, or of other scans."""
    with suppress(DataError):
        pairs = read_pairs(folder / file_name(reference, target))
        if pairs.digests == (entries[reference].digest, entries[target].digest):
            return PairedScans(
                reference=reference,
                target=target,
                num_regions=len(pairs.overlaps),
                agreement=pairs.agreement,
                kept=True,
            )
    return None


def _rank(one: str, other: str) -> bytes:
    """Return a hash of two scans to sort by; it does not depend on their order."""
    return hashlib.sha256(f"{min(one, other)} {max(one, other)}".encode()).digest()


def _levels(reference: Scan, target: Scan) -> tuple[Level, Level]:
    """Return the finest small level of each scan, with equal voxel sizes; if none is small, the coarsest."""
    of_target = {level.factors_zyx: level for level in target.levels}
    both = [
        (level, of_target[level.factors_zyx]) for level in reference.levels if level.factors_zyx in of_target
    ]
    small = [pair for pair in both if all(np.prod(level.shape_zyx) <= _MOST_VOXELS for level in pair)]
    return small[0] if small else both[-1]


def _middle(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return the mask of the middle half of a scan along each axis that is not short."""
    region = np.zeros(tuple(shape), dtype=bool)
    parts = [(side // 4, side - side // 4) if side >= _SHORT_SIDE else (0, side) for side in shape]
    region[tuple(slice(low, high) for low, high in parts)] = True
    return region


@dataclass(frozen=True, kw_only=True, eq=False)
class _Membership:
    """The atoms of layer 0 in each proposal of that layer."""

    ids: NDArray[np.int32]
    """(n,): ids of the proposals."""
    atoms: sparse.csr_matrix
    """(n, atoms): 1 if the atom is part of the proposal."""


def _membership(scan: Scan) -> _Membership:
    ids = np.flatnonzero(scan.proposals.layer == 0).astype(np.int32)
    members = [scan.atom_ids(int(proposal)) for proposal in ids]
    ends = np.cumsum([0, *map(len, members)])
    columns = np.concatenate(members) if members else np.zeros(0, np.uint16)
    ones = np.ones(len(columns), np.float32)
    matrix = sparse.csr_matrix((ones, columns.astype(np.int64), ends), shape=(len(ids), 65_536))
    return _Membership(ids=ids, atoms=matrix)


def _overlaps(
    carried: NDArray[np.int32], atoms: Sequence[NDArray[np.int32]], tables: Sequence[_Membership]
) -> tuple[NDArray[np.float32], tuple[NDArray[np.int32], ...]]:
    """Return the IoU (n, m) of the registered reference's proposals with the target's, and their ids.

    Args:
        carried: The reference's atoms, on the target's grid; -1 where they do not reach.
        atoms: Atoms of both scans at the level that was registered.
        tables: Proposals of both scans.
    """
    size = tables[0].atoms.shape[1]
    counts = [np.bincount(each.ravel(), minlength=size).astype(np.float32) for each in atoms]
    large = [
        np.flatnonzero(table.atoms @ count >= LEAST_VOXELS)
        for table, count in zip(tables, counts, strict=True)
    ]
    first, second = (table.atoms[rows] for table, rows in zip(tables, large, strict=True))
    here = carried >= 0
    codes, times = np.unique(carried[here].astype(np.int64) * size + atoms[1][here], return_counts=True)
    shared = sparse.csr_matrix((times.astype(np.float32), (codes // size, codes % size)), shape=(size, size))
    both = np.asarray((first @ shared @ second.T).toarray(), dtype=np.float32)
    reached = np.bincount(carried[here], minlength=size).astype(np.float32)
    volumes = (first @ reached)[:, None] + (second @ counts[1])[None, :]
    overlaps = both / np.maximum(volumes - both, 1.0)
    return overlaps, tuple(table.ids[rows] for table, rows in zip(tables, large, strict=True))


def _same(overlaps: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the regions that are the same: each row with its best column."""
    if not overlaps.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    best, back = overlaps.argmax(axis=1), overlaps.argmax(axis=0)
    rows = np.arange(len(overlaps))
    values = overlaps[rows, best]
    mutual = (values >= MUTUAL_OVERLAP) & (back[best] == rows)
    kept = np.flatnonzero(mutual | (values >= SURE_OVERLAP))
    return kept, best[kept]
