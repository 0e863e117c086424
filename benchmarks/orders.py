"""Bytes of the orders of scans in several representations, zstd level 9 in one block.

    python benchmarks/orders.py STORE [--id ID ...]

From a store of format version 1 the first row is what it has: every atom in every row. Version 2 keeps only
what proposals need, sorted within segments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage import Scan, open_store
from storage.reading.shards import single_threaded_blosc
from storage.records.orders import pack_orders, unpack_orders


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--id", action="append", help="scans; all without it")
    options = parser.parse_args()
    store = open_store(options.store)
    for scan_id in options.id or store.scan_ids:
        print(scan_id)
        for name, arrays in representations(store.scan(scan_id)).items():
            print(f"  {name:<48}{sum(compressed(array) for array in arrays):>12,}")


def representations(scan: Scan) -> dict[str, list[NDArray[np.generic]]]:
    layers = range(scan.num_layers)
    orders = [scan.orders(layer) for layer in layers]
    packed, _ = pack_orders(orders, [scan.num_atoms(layer) for layer in layers], scan.proposals.table)
    rows = [np.concatenate(unpack_orders(segments)) for segments in packed]
    return {
        "rows as they are read": [np.concatenate(some) for some in orders],
        "atoms of proposals, sorted within segments": list(rows),
        "the same, delta coded": [np.diff(row, prepend=np.uint16(0)) for row in rows],
        "segment of each atom, tree by tree": [np.ascontiguousarray(segments.T) for segments in packed],
        "segment of each atom, trees side by side": list(packed),
    }


def compressed(array: NDArray[np.generic]) -> int:
    blosc = single_threaded_blosc()
    array = np.ascontiguousarray(array)
    return len(blosc.compress(array, b"zstd", 9, blosc.SHUFFLE, array.nbytes)) if array.size else 0


if __name__ == "__main__":
    main()
