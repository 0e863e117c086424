"""A store with flat multi-scale SLIC segments as its proposals: the baseline to pretrain against.

    python benchmarks/slic_store.py STORE OUT [--segments 100 400 1600 6400] [--min-volume-mm3 100]

Same scans, images, labels and grid; only the proposals differ. Every scale of SLIC becomes an atom layer and
every segment within the size limits one proposal. The limits are those of STORE's own proposals (in its
config) unless given. SLIC ranks nothing, so all scores are 1. Scans that are in OUT already, made from the
same scan with the same settings, are kept: run it again to go on. About 5 seconds a million voxels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.proposals.config import ProposalConfig
from pipeline.quality.slic_baseline import SlicConfig, slic_scales
from storage import ScanRecord, Store, commit_scan, create_store, digest_of, finish, open_store
from storage.records.proposal_checks import atom_extents


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which segments are proposals."""

    min_volume_mm3: float
    """Smaller ones are none."""
    max_volume_fraction: float
    """Those that fill more of the scan are none either."""

    def within(self, voxels: NDArray[np.int64], record: ScanRecord) -> NDArray[np.bool_]:
        """Return which of these sizes (voxels) may be proposals of a scan."""
        least = np.ceil(self.min_volume_mm3 / float(np.prod(record.spacing_zyx_mm)))
        most = int(self.max_volume_fraction * record.image.size)
        return (voxels >= least) & (voxels <= most)


def with_slic(record: ScanRecord, slic: SlicConfig, limits: Limits) -> ScanRecord:
    """Return the scan with SLIC's segments in place of its proposals, coarsest scale first.

    Raises:
        ValueError: No segment of any scale is within the limits.
    """
    atoms, tables, sources = [], [], []
    for wanted, segments in zip(
        slic.segments, slic_scales(record.image, record.spacing_zyx_mm, config=slic), strict=True
    ):
        _, ids = np.unique(segments, return_inverse=True)
        ids = ids.reshape(segments.shape).astype(np.uint16)
        voxels, lows, highs = atom_extents(ids, int(ids.max()) + 1, has_background=False)
        rows = np.flatnonzero(limits.within(voxels, record))
        if len(rows):
            code = np.full(len(rows), len(atoms))
            runs = np.stack([code, rows, rows + 1], axis=1)
            tables.append(np.c_[runs, lows[rows], highs[rows], voxels[rows], code].astype(np.int32))
            atoms.append(ids)
            sources.append(f"slic-{wanted}")
    if not tables:
        raise ValueError(f"scan {record.scan_id}: no SLIC segment is within the size limits {limits}")
    table = np.concatenate(tables)
    return replace(
        record,
        atoms=tuple(atoms),
        orders=tuple(np.arange(int(ids.max()) + 1, dtype=np.uint16)[None] for ids in atoms),
        table=table,
        scores=np.ones(len(table), np.float32),
        sources=tuple(sources),
        digests={**record.digests, "proposals": digest_of({"slic": asdict(slic), "limits": asdict(limits)})},
    )


def limits_of(store: Store) -> Limits:
    """Return the size limits that the store's own proposals were made with."""
    default, config = ProposalConfig(), store.info.config.get("proposals", {})
    return Limits(
        min_volume_mm3=config.get("min_volume_mm3", default.min_volume_mm3),
        max_volume_fraction=config.get("max_volume_fraction", default.max_volume_fraction),
    )


def make_slic_store(
    source: Path,
    target: Path,
    *,
    slic: SlicConfig,
    limits: Limits | None = None,
    progress: Callable[[str], None] = print,
) -> Store:
    """Make or complete the store at `target`, and return it.

    Args:
        source: The store whose scans are taken.
        target: Where the new one is.
        slic: Scales and compactness.
        limits: Sizes of proposals; None takes those of `source`.
        progress: Called with a line every 20 scans.
    """
    store = open_store(source)
    limits = limits or limits_of(store)
    config = {**store.info.config, "proposals": {"slic": asdict(slic), "limits": asdict(limits)}}
    made = create_store(target, spacing_mm=store.info.spacing_mm, config=config)
    made.set_config(config)
    for number, (scan_id, entry) in enumerate(store.entries.items(), start=1):
        wanted = {**entry.digests, "proposals": digest_of(config["proposals"])}
        there = made.entries.get(scan_id)
        if there is None or there.digests != wanted:
            commit_scan(target, with_slic(store.scan(scan_id).record(), slic, limits), replace=True)
        if number % 20 == 0 or number == len(store):
            progress(f"SLIC masks: {number}/{len(store)} scans")
    finish(target)
    return open_store(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--segments", type=int, nargs="+", default=list(SlicConfig().segments))
    parser.add_argument("--compactness", type=float, default=SlicConfig().compactness)
    parser.add_argument("--min-volume-mm3", type=float, help="default: that of STORE's proposals")
    arguments = parser.parse_args()
    limits = limits_of(open_store(arguments.store))
    if arguments.min_volume_mm3 is not None:
        limits = replace(limits, min_volume_mm3=arguments.min_volume_mm3)
    slic = SlicConfig(segments=tuple(arguments.segments), compactness=arguments.compactness)
    make_slic_store(arguments.store, arguments.out, slic=slic, limits=limits)


if __name__ == "__main__":
    main()
