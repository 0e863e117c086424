"""Which rule for label maps keeps more of the proposals at coarser levels?

    python benchmarks/levels.py STORE... [--proposals 200] [--window 32]

For each level until the scan fits the window: a proposal made coarse by itself (voxels of which at least half
lie in it) against the proposal as read there, the union of its coarse atoms. Mean Dice over proposals that
have at least 8 coarse voxels. Rules: the voxel beside the block's centre (nearest), the most frequent id of
the block (mode), the most frequent of the 2^3 voxels around its centre (central mode: what the store does).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage import Scan, open_store
from storage.records.levels import Triple, coarse_shape, downsample_labels, plan_levels

RULES = ("nearest", "mode", "central mode")
LEAST_VOXELS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    parser.add_argument("--proposals", type=int, default=200, help="drawn of each scan")
    parser.add_argument("--window", type=int, default=32, help="voxels")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in options.stores:
        store = open_store(path)
        for scan_id in store.scan_ids:
            scan = store.scan(scan_id)
            for factors in plan_levels(scan.shape, (options.window,) * 3)[1:]:
                for rule, dice in compare(scan, factors, options.proposals).items():
                    found[scan.dataset, max(factors)][rule].append(dice)
    rows = []
    print(f"{'data set':<20}{'halved':>8}{'scans':>7}" + "".join(f"{rule:>14}" for rule in RULES))
    for (dataset, factor), values in sorted(found.items()):
        means = {rule: float(np.mean(values[rule])) for rule in RULES}
        rows.append({"dataset": dataset, "factor": factor, "scans": len(values[RULES[0]])} | means)
        print(
            f"{dataset:<20}{factor:>8}{len(values[RULES[0]]):>7}"
            + "".join(f"{means[rule]:>14.3f}" for rule in RULES)
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(scan: Scan, factors: Triple, num_proposals: int) -> dict[str, float]:
    """Return the mean Dice of each rule at one level."""
    coarse = [make_coarse(scan.atoms(layer), factors) for layer in range(scan.num_layers)]
    generator = np.random.default_rng(0)
    dice: dict[str, list[float]] = {rule: [] for rule in RULES}
    for proposal in generator.permutation(len(scan.proposals))[:num_proposals]:
        alone = fraction(scan, int(proposal), factors) >= 0.5
        if alone.sum() < LEAST_VOXELS:
            continue
        lookup = np.zeros(65_536, dtype=np.bool_)
        lookup[scan.atom_ids(int(proposal))] = True
        for rule, atoms in coarse[scan.proposals.layer[proposal]].items():
            read = lookup[atoms]
            dice[rule].append(2 * float((read & alone).sum()) / float(read.sum() + alone.sum()))
    return {rule: float(np.mean(values)) for rule, values in dice.items()}


def make_coarse(atoms: NDArray[np.uint16], factors: Triple) -> dict[str, NDArray[np.uint16]]:
    centre = tuple(
        np.minimum(np.arange(n) * f + f // 2, size - 1)
        for n, f, size in zip(coarse_shape(atoms.shape, factors), factors, atoms.shape, strict=True)
    )
    return {
        "nearest": atoms[np.ix_(*centre)],
        "mode": mode_of_block(atoms, factors),
        "central mode": downsample_labels(atoms, factors),
    }


def mode_of_block(atoms: NDArray[np.uint16], factors: Triple) -> NDArray[np.uint16]:
    ordered = np.sort(blocks(atoms, factors, mode="edge"), axis=1)
    best, votes = ordered[:, 0].copy(), np.zeros(len(ordered), dtype=np.int32)
    run = np.zeros(len(ordered), dtype=np.int32)
    for k in range(ordered.shape[1]):
        run = np.where(ordered[:, k] == ordered[:, k - 1], run + 1, 1) if k else run + 1
        more = run > votes
        best[more], votes[more] = ordered[more, k], run[more]
    return best.reshape(coarse_shape(atoms.shape, factors))


def fraction(scan: Scan, proposal: int, factors: Triple) -> NDArray[np.float64]:
    """Return how much of each coarse voxel a proposal covers, of what lies in the scan."""
    mask = scan.masks([proposal])[0]
    covered = blocks(mask, factors, mode="constant").sum(axis=1)
    there = blocks(np.ones_like(mask), factors, mode="constant").sum(axis=1)
    share: NDArray[np.float64] = (covered / there).reshape(coarse_shape(scan.shape, factors))
    return share


def blocks(array: NDArray, factors: Triple, *, mode: str) -> NDArray:  # type: ignore[type-arg]
    """Return the voxels of each block, (coarse voxels, voxels a block)."""
    padded = np.pad(array, [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)], mode=mode)
    split = [part for n, f in zip(padded.shape, factors, strict=True) for part in (n // f, f)]
    return padded.reshape(split).transpose(0, 2, 4, 1, 3, 5).reshape(-1, int(np.prod(factors)))


if __name__ == "__main__":
    main()
