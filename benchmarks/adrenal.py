"""Does a frozen encoder spare labels? AdrenalMNIST3D: frozen against all weights, from few labels to all.

    python benchmarks/adrenal.py SET.npz CHECKPOINT OUT              the table, about two hours on two cores
    python benchmarks/adrenal.py SET.npz CHECKPOINT OUT --scans 40 --fractions 100 --seeds 0 --steps 5

SET.npz is a MedMNIST 3D set with train and val images (test too, where it has them), 64 voxels a side.
CHECKPOINT is a pretrained network. What happens: `mass prepare` at twice the set's voxel edge, with few
proposals, for nothing here reads them; every scan encoded once, by the checkpoint and by the same network
with drawn weights; then a cell for each arm, part of the labels and seed: the part is drawn from each class
of the training scans with the seed, the same for all arms. Tested are the scans of the set's test part, or,
where it has none, of its val part, with which then nothing is chosen.

Finished cells are kept in OUT/cells; the same command goes on where it stopped, a running cell is resumed.
Written: OUT/results.json, OUT/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage import Store, open_store
from training.classification.config import ClassifyConfig, Mode, classify_config
from training.classification.embedding import EmbeddingConfig, ScanFeatures, encode_store
from training.classification.labels import ClassSplit, ClassTable, split_classes, table_of_store
from training.classification.run import RESULTS, ClassScans, classify
from training.engine.run_folder import RECORD
from training.network.iris import Iris
from training.network.sealing import weights_digest
from training.network.weights import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
FRACTIONS = (1.0, 5.0, 20.0, 100.0)
SEEDS = (0, 1, 2)
FULL_STEPS = 300
"""Of all weights: 2,400 samples of 32 voxels cubed a cell."""

PREPARE = """[ingest]
spacing_mm = 2.0
set_spacing_mm = 1.0
[proposals]
trees = ["fine-contrast-0.7mm"]
max_voxel_leaves = 1
component_percentiles = [50]
candidates_per_half_octave = 50
max_proposals = 50
"""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to classify."""

    title: str
    mode: Mode
    drawn: bool
    """Whether the encoder's weights are drawn anew, not the checkpoint's."""


ARMS = {
    "frozen-linear": Arm(title="frozen, logistic regression", mode="frozen-linear", drawn=False),
    "frozen-attention": Arm(title="frozen, attention pooling", mode="frozen-attention", drawn=False),
    "drawn-linear": Arm(title="drawn weights frozen, logistic regression", mode="frozen-linear", drawn=True),
    "full-scratch": Arm(title="all weights, from scratch", mode="full", drawn=True),
    "full": Arm(title="all weights, from the checkpoint", mode="full", drawn=False),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of the table, before it is averaged over seeds."""

    arm: str
    percent: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-{self.percent:g}-seed{self.seed}"


def prepare(raw: Path, out: Path, workers: int, scans: int | None) -> Store:
    """Make the store, or what is missing of it."""
    out.mkdir(parents=True, exist_ok=True)
    if scans:
        raw = cut_set(raw, out / "cut.npz", scans)
    settings = out / "prepare.toml"
    settings.write_text(PREPARE)
    command = [sys.executable, "-m", "commands", "prepare", str(raw), str(out / "store")]
    more = ["--config", str(settings), "--workers", str(workers)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if subprocess.run([*command, *more], check=False, env=os.environ | {"PYTHONPATH": paths}).returncode:
        sys.exit("mass prepare failed: run this script again to go on")
    return open_store(out / "store")


def cut_set(raw: Path, copy: Path, scans: int) -> Path:
    """Write the first scans of every part, for a quick look; the same file is not written again."""
    if not copy.exists():
        with np.load(raw, allow_pickle=False) as file:
            np.savez_compressed(copy, **{name: file[name][:scans] for name in file.files})
    return copy


def drawn_part(table: ClassTable, rows: Sequence[int], percent: float, seed: int) -> tuple[int, ...]:
    """Return a part of each class, two scans at least, in the table's order; larger parts hold smaller."""
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for name in range(len(table.classes)):
        members = [row for row in rows if table.targets[row, name]]
        shuffled = [members[k] for k in generator.permutation(len(members))]
        chosen += shuffled[: max(2, round(percent / 100 * len(members)))]
    return tuple(sorted(chosen))


def settings_of(arm: Arm, seed: int, steps: int) -> ClassifyConfig:
    """The settings of a cell: each mode's own, in float32; all weights for `steps` steps."""
    config = classify_config(arm.mode, from_scratch=arm.drawn)
    changes: dict[str, Any] = {"seed": seed, "precision": "float32"}
    if arm.mode == "full":
        changes["num_steps"] = steps
    run = replace(config.run, evaluate_every=0, checkpoint_every=50)
    return replace(config, optimisation=replace(config.optimisation, **changes), run=run)


def encode(net: Iris, store: Store, table: ClassTable, title: str) -> dict[str, ScanFeatures]:
    """Encode every scan."""
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        if done % 200 == 0 or done == total:
            print(f"{title}: {done}/{total} scans, {time.monotonic() - began:.0f} s", file=sys.stderr)

    return encode_store(net.encoder, store, table.ids, EmbeddingConfig(), progress=tell)


def drawn_net(like: Iris, seed: int) -> Iris:
    """The same network with the weights that `mass classify --from-scratch` draws from the seed."""
    torch.manual_seed(seed)
    return Iris(like.channels, like.num_tasks, position_std=0.02).eval()


def run_cell(
    cell: Cell,
    folder: Path,
    net: Iris,
    store: Store,
    table: ClassTable,
    split: ClassSplit,
    steps: int,
    features: Mapping[str, ScanFeatures] | None,
) -> dict[str, Any]:
    """Do a cell, or read what came of it."""
    done = folder / RESULTS
    if not done.exists():
        part = replace(split, train=drawn_part(table, split.train, cell.percent, cell.seed))
        classify(
            net,
            ClassScans(store=store, table=table, split=part, features=features),
            folder,
            settings_of(ARMS[cell.arm], cell.seed, steps),
            checkpoint=weights_digest(net.encoder)[:12],
            resume=(folder / RECORD).exists(),
        )
    if not done.exists():
        sys.exit("stopped: run this script again to go on")
    result: dict[str, Any] = json.loads(done.read_text())
    return result


def summarise(found: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds of each arm and part of the labels."""
    rows = []
    for arm, percent in dict.fromkeys((cell.arm, cell.percent) for cell in found):
        some = [result for cell, result in found.items() if (cell.arm, cell.percent) == (arm, percent)]
        row: dict[str, Any] = {"arm": arm, "percent": percent, "num_seeds": len(some)}
        row["num_train"] = some[0]["num_train"]
        for name in ("auc", "balanced_accuracy", "seconds"):
            values = [result[name] for result in some]
            row[name], row[f"{name}_std"] = float(np.mean(values)), float(np.std(values))
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The table: a row an arm, a column a part of the labels."""
    percents = list(dict.fromkeys(row["percent"] for row in rows))
    counts = {row["percent"]: row["num_train"] for row in rows}
    head = [f"{percent:g} % ({counts[percent]} scans)" for percent in percents]
    lines = [
        f"AUC (balanced accuracy) on {about['num_tested']} scans of the part {about['tested_on']}, mean over "
        f"seeds {', '.join(map(str, about['seeds']))} with the deviation of the AUC; "
        f"checkpoint {about['checkpoint']}, {about['steps']} steps of all weights.",
        "",
        "|  | " + " | ".join(head) + " |",
        "|---" * (len(head) + 1) + "|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for percent in percents:
            row = next((row for row in rows if (row["arm"], row["percent"]) == (arm, percent)), None)
            text = (
                ""
                if row is None
                else f"{row['auc']:.3f} ± {row['auc_std']:.3f} ({row['balanced_accuracy']:.3f})"
            )
            cells.append(text)
        lines.append(f"| {ARMS[arm].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_results(out: Path, found: Mapping[Cell, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Write what there is so far; returns the table."""
    rows = summarise(found)
    table = to_markdown(rows, about)
    cells = {cell.name: dict(result) for cell, result in found.items()}
    document = {"about": dict(about), "rows": rows, "cells": cells}
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(table)
    return table


def main(arguments: argparse.Namespace) -> None:
    out = arguments.out
    store = prepare(arguments.set, out, arguments.workers, arguments.scans)
    table = table_of_store(store)
    split = split_classes(table)
    net = load_checkpoint(arguments.checkpoint)
    # Seeds first: after any number of cells the table is as even as it can be.
    cells = [
        Cell(arm=arm, percent=percent, seed=seed)
        for seed in arguments.seeds
        for percent in arguments.fractions
        for arm in arguments.arms
    ]
    about = {
        "checkpoint": arguments.checkpoint.name,
        "tested_on": split.tested_on,
        "num_tested": len(split.test),
        "seeds": list(arguments.seeds),
        "steps": arguments.steps,
    }
    known: dict[object, dict[str, ScanFeatures]] = {}
    found: dict[Cell, dict[str, Any]] = {}
    for number, cell in enumerate(cells, start=1):
        arm, folder = ARMS[cell.arm], out / "cells" / cell.name
        features = None
        if arm.mode != "full" and not (folder / RESULTS).exists():
            key = cell.seed if arm.drawn else "checkpoint"
            if key not in known:
                encoder = drawn_net(net, cell.seed) if arm.drawn else net
                known[key] = encode(encoder, store, table, f"encode ({key})")
            features = known[key]
        found[cell] = run_cell(cell, folder, net, store, table, split, arguments.steps, features)
        print(f"{number}/{len(cells)} {cell.name}: AUC {found[cell]['auc']:.3f}", file=sys.stderr, flush=True)
        text = write_results(out, found, about)
    print(text)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", type=Path, metavar="SET.npz")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--fractions", nargs="+", type=float, default=FRACTIONS, help="of the labels, in percent"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=FULL_STEPS, help=f"of all weights ({FULL_STEPS})")
    parser.add_argument("--scans", type=int, help="of each part, for a quick look")
    parser.add_argument("--workers", type=int, default=2, help="of mass prepare")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
