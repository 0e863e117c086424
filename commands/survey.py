"""Contents of a store's page for each scan: row, score, pictures, and its pack for the viewer."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from commands.terminal import counted
from pipeline.errors import Failure
from pipeline.quality import ScanScore, score_scan
from pipeline.report import (
    PackFacts,
    Picture,
    ScanReport,
    ScanRow,
    at_level,
    describe_scan,
    full_row,
    in_8_bits,
    index_row,
    overview_scan,
    pack_scan,
    pairs_of,
    scan_facts,
    table_row,
)
from storage import CorruptStore, Scan, Store, StorePath, open_store, scan_bytes

VERIFY = "Run `mass verify`"


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """Contents of a page for one scan."""

    row: ScanRow
    score: ScanScore
    thumbnail: Picture
    report: ScanReport | None
    """The scan in full, if requested."""


def survey(
    store_path: StorePath, ids: Sequence[str], in_full: set[str], *, workers: int
) -> tuple[list[Surveyed], list[Failure]]:
    """Return the contents of the page for each scan, in order, and failures of damaged scans."""
    done, failed = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else nullcontext() as pool:
        ahead = {i: pool.submit(survey_one, store_path, i, i in in_full) for i in ids} if pool else {}
        for scan_id in counted("inspect", ids):
            try:
                one = (
                    ahead.pop(scan_id).result()
                    if pool
                    else survey_one(store_path, scan_id, scan_id in in_full)
                )
                done.append(one)
            except CorruptStore as error:
                failed.append(Failure.of(error, scan_id=scan_id, remedy=VERIFY))
    return done, failed


def survey_one(store_path: StorePath, scan_id: str, in_full: bool) -> Surveyed:
    """Return the contents of the page for one scan."""
    scan = open_store(store_path).scan(scan_id)
    record = scan.record()
    score = score_scan(record)
    report = describe_scan(record, score) if in_full else None
    overview = report.overview if report else overview_scan(record, score)
    row = full_row(table_row(index_row(scan.entry), scan, scan_bytes(scan)), overview)
    return Surveyed(row=row, score=score, thumbnail=overview.thumbnail, report=report)


def pack_of(scan: Scan, level: int, *, small: bool) -> bytes:
    """Return a scan's pack for the viewer at a level.

    Args:
        scan: The scan.
        level: Index of the level.
        small: Whether the image has 256 grey levels, for a smaller page.
    """
    leveled, whole = at_level(scan, level), scan.record()
    score = score_scan(whole) if scan.label_names else None
    facts = PackFacts(
        pairs=pairs_of(score, leveled.labels),
        facts=scan_facts(whole),
        level=level,
        levels=() if small else tuple(one.shape_zyx for one in scan.levels),
    )
    if small:
        return pack_scan(in_8_bits(leveled), facts, compression=9)
    return pack_scan(leveled, facts, compression=1)


def level_within(scan: Scan, most_voxels: int) -> int:
    """Return the finest level with at most `most_voxels` voxels; the coarsest if all have more."""
    fitting = [k for k, level in enumerate(scan.levels) if np.prod(level.shape_zyx) <= most_voxels]
    return fitting[0] if fitting else scan.num_levels - 1


MOST_VOXELS_IN_PAGE = 2_000_000
"""Most voxels of a scan inside a page (about 3 MB); larger ones are shown at a coarser level."""


def packs_within(store: Store, ids: Sequence[str], most_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield the packs of the first scans that fit into `most_bytes` together.

    A scan that does not fit is tried at coarser levels; the first that fits at none ends the list.
    """
    left = most_bytes
    for scan_id in ids:
        scan = store.scan(scan_id)
        for level in range(level_within(scan, MOST_VOXELS_IN_PAGE), scan.num_levels):
            pack = pack_of(scan, level, small=True)
            if len(pack) <= left:
                break
        else:
            return
        left -= len(pack)
        yield scan_id, pack
