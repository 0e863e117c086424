"""Writes a tiny store and what is in it, for later versions to read. Done once for a format version.

python -m tests.storage.make_fixture tests/storage/fixtures/v2
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from storage import LedgerEntry, LedgerFile, Scan, commit_scan, create_store, finish, open_store, write_ledger
from tests.storage.drawn_record import draw_record

LONG = (8, 25, 71)
"""Longer than a window along one axis: two levels."""


def describe(scan: Scan, *, levels: bool = False) -> dict[str, object]:
    """Return digests of everything that can be read of a scan, and a few plain values."""
    region = (slice(1, 7), slice(3, 22), slice(10, 41))
    arrays = {
        "image": scan.image(),
        "image_z": np.round(scan.image(region, normalize=True), 3),
        "image_codes": scan.image_codes(region),
        "atoms_0": scan.atoms(0, region),
        "atoms_1": scan.atoms(1),
        "organs": scan.labels("organs"),
        "orders_0": np.concatenate(scan.orders(0)),
        "orders_1": np.concatenate(scan.orders(1)),
        "table": scan.proposals.table,
        "scores": scan.proposals.scores,
        "words": scan.words([0, 1, 2, 3, 4, 5, 6], region),
        "masks": scan.masks([6, 2]),
    }
    if levels:
        arrays |= {"level_voxels": scan.level_voxels}
        for level in (1, scan.level_for((4, 16, 16))):
            name = level if isinstance(level, int) else "window"
            arrays |= {
                f"image_codes_at_{name}": scan.image_codes(level=level),
                f"atoms_0_at_{name}": scan.atoms(0, level=level),
                f"atoms_1_at_{name}": scan.atoms(1, level=level),
                f"organs_at_{name}": scan.labels("organs", level=level),
                f"masks_at_{name}": scan.masks(range(7), level=level),
            }
    digests = {
        name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in arrays.items()
    }
    return {
        "arrays": digests,
        "shape": list(scan.shape),
        "spacing_zyx_mm": list(scan.spacing_zyx_mm),
        "label_values": {str(value): name for value, name in scan.label_values("organs").items()},
        "sources": list(scan.sources),
        "attributes": dict(scan.attributes),
        "digests": dict(scan.digests),
        "voxels": scan.proposals.voxels.tolist(),
        "masks_voxels": scan.masks(range(7)).sum(axis=(1, 2, 3)).tolist(),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    store = create_store(folder / "store", spacing_mm=1.5, config={"max_atoms": 100}, exist_ok=False).path
    for scan_id in ("case-2", "case-1"):
        commit_scan(store, draw_record(scan_id, shape=LONG, seed=int(scan_id[-1])))
    files = (LedgerFile(location="raw/case-1.nii", size=123, mtime_ns=456),)
    good = LedgerEntry(
        scan_id="case-1", location="raw/case-1.nii", state="committed", source_digest="aa", files=files
    )
    bad = LedgerEntry(
        scan_id="case-3",
        location="raw/case-3.nii",
        state="failed",
        kind="NotFinite",
        reason="NaN",
        remedy="mend",
    )
    write_ledger(store, [good, bad])
    finish(store)
    expected = {
        scan_id: describe(open_store(store).scan(scan_id), levels=True) for scan_id in ("case-1", "case-2")
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
