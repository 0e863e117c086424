"""`mass pair`: the same regions in two patients, found by registration, for `mass pretrain`."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commands.progress import Progress
from commands.terminal import print_table, shown
from storage import StorePath, open_store
from training.errors import DataError
from training.pretraining import MOST_PAIRS, PARTNERS, PairedScans, choose_pairs, make_pairs

_SHOWN_ERRORS = 5


def run_pair(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass pair`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    partners = PARTNERS if arguments.partners is None else arguments.partners
    most = MOST_PAIRS if arguments.most is None else arguments.most
    pairs = choose_pairs(store.entries, partners, most)
    if not pairs:
        raise DataError(
            f"{arguments.store}: no two scans of one data set and modality are of different cases, so "
            "there is nothing to pair"
        )
    folder: Path = arguments.pairs_folder
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: there is a file of this name. Name a new folder")
    made = _make(arguments.store, folder, pairs, arguments.workers)
    _print_result(folder, made)
    failed = [one for one in made if one.error]
    return int(bool(failed)), {
        "store": str(arguments.store),
        "pairs": [asdict(one) for one in made],
        "num_regions": sum(one.num_regions for one in made if one.is_used),
    }


def _make(store: StorePath, folder: Path, pairs: list[tuple[str, str]], workers: int) -> list[PairedScans]:
    """Make all pairs, with progress shown."""
    began = time.monotonic()
    made: list[PairedScans] = []
    with shown("pair") as show:
        show(Progress.of_equals(0, len(pairs), 0.0, unit="pair"))
        for one in make_pairs(store, folder, pairs, workers=workers):
            made.append(one)
            failed = sum(bool(each.error) for each in made)
            seconds = time.monotonic() - began
            show(Progress.of_equals(len(made), len(pairs), seconds, failed=failed, unit="pair"))
    return sorted(made, key=lambda one: (one.reference, one.target))


def _print_result(folder: Path, made: list[PairedScans]) -> None:
    """Print the results, and the next command."""
    used = [one for one in made if one.is_used]
    failed = [one for one in made if one.error]
    agreements = sorted(one.agreement for one in used)
    rows = [
        ("pairs of scans", len(made)),
        ("of them from before", sum(one.kept for one in made)),
        ("with enough regions to draw from", len(used)),
        ("paired regions in these", sum(one.num_regions for one in used)),
        ("median correlation of their images", f"{agreements[len(agreements) // 2]:.2f}" if used else "none"),
        ("failed", len(failed)),
    ]
    print_table(f"{folder}: regions that are the same in two patients", ("what", "value"), rows)
    for one in failed[:_SHOWN_ERRORS]:
        print(f"failed: {one.reference} with {one.target}: {one.error}")
    if len(failed) > _SHOWN_ERRORS:
        print(f"and {len(failed) - _SHOWN_ERRORS} more (--json FILE lists them)")
    if used:
        print(f"next: mass pretrain STORE RUN --recipe whole --pairs {folder}")
    else:
        print("no two scans look alike enough, so these pairs teach nothing: pretrain without --pairs")
