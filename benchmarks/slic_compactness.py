"""How good flat multi-scale SLIC is at each compactness: the baseline gets the setting that suits it best.

    python benchmarks/slic_compactness.py STORE [--scans 3] [--compactness 0.01 0.03 0.1 0.3]

Prints the mean best IoU with the labels of a prepared store, a row a data set (the first scans of each), and
the mean over data sets. About 5 seconds a million voxels and setting on one core.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from pipeline.quality.score_tables import Summary, summarize
from pipeline.quality.scoring import ScoreConfig, score_scan
from pipeline.quality.slic_baseline import SlicConfig
from storage import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--scans", type=int, default=3, help="scans of each data set")
    parser.add_argument("--compactness", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    of_dataset: dict[str, list[str]] = defaultdict(list)
    for entry in store.entries.values():
        if entry.labels and len(of_dataset[entry.dataset]) < arguments.scans:
            of_dataset[entry.dataset].append(entry.scan_id)
    ids = [scan_id for members in of_dataset.values() for scan_id in members]
    columns: list[dict[str, Summary]] = []
    for compactness in arguments.compactness:
        config = ScoreConfig(slic=SlicConfig(compactness=compactness))
        score = summarize((score_scan(store.scan(i).record(), config=config, slic=True) for i in ids), config)
        columns.append({summary.group: summary for summary in (*score.datasets, score.overall) if summary})
    print("| data set | " + " | ".join(f"{c:g}" for c in arguments.compactness) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name].slic_iou:.3f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
