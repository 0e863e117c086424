"""Confidences of `mass segment` beside the Dice, structures that are not there, seconds a pair.

    python benchmarks/confidence.py STORE OUT --targets 8 --references 3
    python benchmarks/confidence.py STORE OUT --absent OTHER --targets 4 --references 2

Pairs of different patients, drawn as by `rivals.py`; structures carried over by registration, without a
network. With --absent the targets are scans of another store (another organ), so that nothing of what is
asked for is there. A cell is one pair: kept in OUT/confidence.jsonl, not made again. Written:
OUT/confidence.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import spearmanr

from benchmarks.rivals import Image, Labels, draw_pairs, read, structures_of
from storage import Store, open_store
from training.inference import Reference, Structure
from training.inference.registration import LOW_CONFIDENCE, THRESHOLD, carry_structures

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    options = parse()
    store, others = open_store(options.store), options.absent and open_store(options.absent)
    pairs = draw_pairs(store, options)
    structures = {
        name: ids for name, ids in structures_of(store, pairs, options.structures).items() if len(ids) == 1
    }
    targets = absent_targets(others, options) if others else list(pairs.targets)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "confidence.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = {(cell["target"], cell["reference"]): cell for cell in map(json.loads, lines)}
    asked = []
    for target in targets:
        for (reference,) in pairs.references if others else pairs.of(target):
            if (target, reference) not in cells:
                cell = measured(store, others or store, reference, target, structures)
                cells[target, reference] = cell
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(cell) + "\n")
            asked.append(cells[target, reference])
        print(f"{target}: done", file=sys.stderr, flush=True)
    table = to_markdown(asked)
    (options.out / "confidence.md").write_text(table, encoding="utf-8")
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--absent", type=Path, metavar="OTHER", help="store of scans that lack the structures"
    )
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--references", type=int, default=3, help="a target")
    parser.add_argument("--structures", type=int, default=10, help="the largest so many")
    parser.add_argument("--keep-out", type=Path, metavar="FILE", help="ids that targets are drawn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(shots=1)
    return parser.parse_args()


def absent_targets(others: Store, options: argparse.Namespace) -> list[str]:
    """Scans of another store, drawn."""
    ids = sorted(others.entries)
    return [ids[k] for k in np.random.default_rng(options.seed).permutation(len(ids))[: options.targets]]


def measured(
    store: Store, others: Store, reference: str, target: str, structures: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The cell of a pair: Dice (0 where the structure is not there), confidence, seconds."""
    image, labels = read(store, reference, structures)
    where, truth = (
        read(store, target, structures)
        if others is store
        else (others.scan(target).image(normalize=True), None)
    )
    shown = [
        Structure(name=name, values=(value,))
        for name, (value,) in structures.items()
        if (labels == value).any()
    ]
    began = time.monotonic()
    found = carry_structures([Reference(image=image, labels=labels)], shown, where)
    seconds = time.monotonic() - began
    scores = {}
    for k, structure in enumerate(shown):
        drawn = found.probabilities[k] >= THRESHOLD
        scores[structure.name] = {
            "dice": dice(drawn, truth, structure.values[0]),
            "confidence": found.confidences[k],
            "there": truth is not None and bool((truth == structure.values[0]).any()),
        }
    return {"target": target, "reference": reference, "seconds": round(seconds, 2), "scores": scores}


def dice(drawn: Image, truth: Labels | None, value: int) -> float:
    """Dice of what is drawn with a label, 0 where there is no such label."""
    if truth is None:
        return 0.0
    expected = truth == value
    return 2 * float((drawn & expected).sum()) / max(float(drawn.sum() + expected.sum()), 1.0)


def to_markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Mean Dice by confidence, their rank correlation, how many absent structures are called low, seconds."""
    scores = [score for cell in cells for score in cell["scores"].values()]
    there = [score for score in scores if score["there"]]
    absent = [score["confidence"] for score in scores if not score["there"]]
    lines = []
    if there:
        lines += ["| confidence | structures | mean Dice |", "|---|--:|--:|", *binned(there)]
        ranks = spearmanr([s["confidence"] for s in there], [s["dice"] for s in there]).statistic
        lines += ["", f"{len(there)} structures, Spearman {ranks:.2f}"]
    if absent:
        low = sum(value < LOW_CONFIDENCE for value in absent)
        lines += [
            "",
            f"{len(absent)} structures that are not there: {low} called low, median {np.median(absent):.2f}",
        ]
    seconds = [cell["seconds"] for cell in cells]
    lines += ["", f"a pair: {np.median(seconds):.1f} s (median), at most {max(seconds):.1f} s"]
    return "\n".join(lines).lstrip() + "\n"


def binned(scores: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A row a range of confidences."""
    for low, high in pairwise(BINS):
        own = [
            s["dice"] for s in scores if low <= s["confidence"] < high or s["confidence"] == high == BINS[-1]
        ]
        if own:
            yield f"| {low:.1f} to {high:.1f} | {len(own)} | {np.mean(own):.2f} |"


if __name__ == "__main__":
    main()
