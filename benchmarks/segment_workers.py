"""Time of `mass segment --workers N`, and whether its results are the same bytes.

    python benchmarks/segment_workers.py OUT --reference REF --mask MASK --targets SCANS --workers 1 2

Registers the reference to all targets (`none`), once for each number of workers, into folders of its own
below OUT, which are removed first. Prints a table and writes OUT/workers.json: seconds, targets a minute, the
ratio to the first row, the largest process, and whether all label maps are those of the first row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("out", type=Path, metavar="OUT")
    options.add_argument("--reference", type=Path, required=True)
    options.add_argument("--mask", type=Path, required=True)
    options.add_argument("--targets", type=Path, nargs="+", required=True)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--spacing", default="1.5")
    arguments = options.parse_args()
    rows = [measure(arguments, workers) for workers in arguments.workers]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "workers.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table_of(rows))


def measure(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Run the command with so many workers."""
    out = arguments.out / str(workers)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "commands", "segment", "none", *arguments.targets, "--out", out]
    command += ["--reference-image", arguments.reference, "--reference-mask", arguments.mask]
    command += ["--spacing", arguments.spacing, "--workers", workers]
    began = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    digest = hashlib.sha256()
    labels = [path for path in sorted(out.glob("*_seg.*")) if path.suffix != ".png"]
    for path in labels:
        digest.update(path.name.encode() + path.read_bytes())
    return {
        "workers": workers,
        "targets": len(labels),
        "seconds": seconds,
        "labels": digest.hexdigest(),
        "largest_process_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }


def table_of(rows: list[dict[str, Any]]) -> str:
    """One row for each number of workers; the first is what the others are compared with."""
    lines = [
        "| workers | targets | seconds | a minute | times as fast | same bytes | largest process, GiB |",
        "|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        same = "yes" if row["labels"] == rows[0]["labels"] else "NO"
        lines.append(
            f"| {row['workers']} | {row['targets']} | {row['seconds']:.1f} "
            f"| {60 * row['targets'] / row['seconds']:.1f} | {rows[0]['seconds'] / row['seconds']:.2f} "
            f"| {same} | {row['largest_process_gib']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
