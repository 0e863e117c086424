"""Processor time of reading a store on disk: opening scans, and crops as a training step reads them.

    python benchmarks/read_cost.py STORE
    python benchmarks/read_cost.py STORE --against OLD-CHECKOUT     # this code and another, in turn

Processor time, not seconds: it says nearly the same on a busy machine. The two are measured in turn, each in
processes of its own, after one that warms the disk's cache; the median of the rounds counts, and the ratio is
this / other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MEASURE = """
import json, sys, time
import numpy as np
from storage import open_store

store = open_store(sys.argv[1])
generator = np.random.default_rng(0)
began = time.process_time()
for _ in range(20):
    for scan_id in store.scan_ids:
        open_store(sys.argv[1]).scan(scan_id).proposals
opened = time.process_time()
scans = [store.scan(scan_id) for scan_id in store.scan_ids]
for scan in scans:
    scan.crop([0], None)
warm = time.process_time()
for step in range(300):
    scan = scans[step % len(scans)]
    corner = [int(generator.integers(0, max(1, size - 31))) for size in scan.shape]
    ids = generator.choice(len(scan.proposals), 13, replace=False)
    scan.crop(ids, tuple(slice(k, min(k + 32, size)) for k, size in zip(corner, scan.shape)))
ended = time.process_time()
print(json.dumps({"open": (opened - began) / 20 / len(scans), "crop": (ended - warm) / 300}))
"""
"""Milliseconds of opening a scan with its table, and of a crop of 32 voxels with 13 masks."""


def measure(store: Path, checkout: Path) -> dict[str, float]:
    """Return processor seconds of a scan opened and of a crop, with the code of a checkout."""
    command = [sys.executable, "-c", MEASURE, str(store.absolute())]
    environment = os.environ | {"PYTHONPATH": str(checkout.absolute()), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(out.stdout)
    return found


def main() -> None:
    """Print one line per kind of reading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    checkouts = [here, *([options.against] if options.against else [])]
    measure(options.store, here)
    rounds = [[measure(options.store, checkout) for checkout in checkouts] for _ in range(options.rounds)]
    for kind in ("open", "crop"):
        medians = [
            1e3 * statistics.median(one[number][kind] for one in rounds) for number in range(len(checkouts))
        ]
        ratio = f", ratio {medians[0] / medians[-1]:.2f}" if options.against else ""
        print(f"{kind}: {' against '.join(f'{value:.2f}' for value in medians)} ms{ratio}")


if __name__ == "__main__":
    main()
