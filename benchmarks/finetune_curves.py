"""Does pretraining save labels on whole scans? Fine-tuning on 1 to 8 labelled patients, beside registration.

    python benchmarks/finetune_curves.py STORE OUT --checkpoint RUN
    python benchmarks/finetune_curves.py STORE OUT --checkpoint RUN --counts 1 4 --steps 150 --seeds 0 1 2
    python benchmarks/finetune_curves.py STORE OUT --checkpoint RUN --targets-from ids.txt --variants stored

RUN is a network of `mass pretrain --recipe whole`. Two arms have the same recipe (`mass finetune --recipe
whole`), the same labelled scans, samples and steps: from RUN ("pretrained"), and the same network from random
weights ("scratch"). Patients are those of `benchmarks/rivals.py`, whose scores these are; targets are of
patients of which no scan was pretrained on, and labelled scans are of other patients: the first scan of each,
drawn by the seed; fewer are a part of more. Beside them: the labels of the first labelled scan copied, and
carried over by the registration of `mass segment`, to the same targets.

A cell is one fine-tuning, or one rival with one reference, on all targets: kept in OUT/cells.jsonl with its
run in OUT/runs, and not made again; a run that was stopped goes on. Written: OUT/results.md. With windows of
16 x 64 x 64, 150 steps take about two minutes of one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.registration import METHODS, Image, Labels, Method, Shown
from benchmarks.rivals import WHOLE, Pairs, interval, patient_of, scored, structures_of
from commands.finetune import read_finetune_settings
from storage import Store, open_store
from training.engine import CHECKPOINTS, RECORD
from training.finetuning import FinetuneConfig, finetune
from training.inference import load_finetuned, predict_labels
from training.network import weights_file

ARMS = ("scratch", "pretrained")
RIVALS = {"copied": METHODS["copied"], "registration": METHODS["located + demons + refined"]}
TITLES = {
    "scratch": "fine-tuned from scratch",
    "pretrained": "fine-tuned from the pretrained network",
    "copied": "*copied*",
    "registration": "*registration*",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fine-tuning, or a rival with one reference."""

    method: str
    count: int
    """Labelled patients; of a rival 1."""
    steps: int
    """Of training; of a rival 0."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder, and its key in the file of cells."""
        return f"{self.method}-{self.count}-{self.steps}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells share."""

    store: Store
    checkpoint: Path
    out: Path
    targets: tuple[str, ...]
    structures: dict[str, tuple[int, ...]]
    variants: tuple[str, ...]
    recipe: FinetuneConfig

    def labelled(self, seed: int, count: int) -> tuple[str, ...]:
        """The first scan of so many patients that no target is of."""
        taken = {patient_of(scan_id) for scan_id in self.targets}
        ids = sorted(scan_id for scan_id, entry in self.store.entries.items() if entry.labels)
        patients = sorted({patient_of(scan_id) for scan_id in ids} - taken)
        if count > len(patients):
            raise SystemExit(f"{self.store.path}: {count} labelled patients asked for, {len(patients)} there")
        order = np.random.default_rng(seed).permutation(len(patients))[:count]
        return tuple(
            next(scan_id for scan_id in ids if patient_of(scan_id) == patients[k]) for k in order.tolist()
        )

    def score(self, cell: Cell) -> dict[str, Any]:
        """Train if it is a fine-tuning, and score every target; the cell as it is kept."""
        began = time.monotonic()
        ids = self.labelled(cell.seed, cell.count)
        if cell.method in RIVALS:
            method, shown = RIVALS[cell.method], ids
        else:
            method, shown = self.tuned(cell, ids), ()
        trained = time.monotonic() - began
        scores = {
            variant: {
                target: scored(self.store, method, variant, target, shown, self.structures)
                for target in self.targets
            }
            for variant in self.variants
        }
        seconds = {"training": trained, "all": time.monotonic() - began}
        return {**asdict(cell), "name": cell.name, "labelled": ids, "seconds": seconds, "scores": scores}

    def tuned(self, cell: Cell, ids: Sequence[str]) -> Method:
        """Fine-tune, or go on with it; the network as a method that needs no reference."""
        run, base = self.out / "runs" / cell.name, self.recipe
        config = replace(
            base,
            finetune=replace(
                base.finetune,
                from_scratch=cell.method == "scratch",
                scans=tuple(ids),
                held_out=self.targets[:1],
                num_validation=0,
            ),
            optimisation=replace(base.optimisation, num_steps=cell.steps, seed=cell.seed),
            run=replace(base.run, num_workers=0, evaluate_every=0, draw_every=0, keep_last=1),
        )
        weights = run / "weights.safetensors"
        if not weights.exists():
            begun = (run / RECORD).exists()
            done = finetune(self.checkpoint, self.store.path, run, config, resume=begun)
            if not done.weights:
                raise SystemExit(f"{cell.name}: stopped; the same command goes on")
            shutil.rmtree(run / CHECKPOINTS)
        tuned = load_finetuned(weights)
        inference = tuned.inference()
        prompt = tuned.prompt(inference)
        values = np.array([0, *tuned.values], np.uint16)

        def method(shown: Sequence[Shown], target: Image) -> Labels:
            return values[predict_labels(tuned.net, target, prompt, inference)]

        return method


def main() -> None:
    options = parse()
    store = open_store(options.store)
    targets = choose_targets(store, options)
    bench = Bench(
        store=store,
        checkpoint=options.checkpoint,
        out=options.out,
        targets=targets,
        structures=structures_of(store, Pairs(targets=targets, references=()), options.structures),
        variants=tuple(options.variants),
        recipe=read_finetune_settings(options.config, "whole", {}),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cells.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = {cell["name"]: cell for cell in map(json.loads, kept)}
    check_kept(list(cells.values()), bench)
    for cell in cells_of(options):
        if cell.name not in cells:
            cells[cell.name] = bench.score(cell)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cells[cell.name]) + "\n")
            print(f"{cell.name}: {cells[cell.name]['seconds']['all']:.0f} s", file=sys.stderr, flush=True)
        (options.out / "results.md").write_text(to_markdown(list(cells.values()), bench), encoding="utf-8")
    print(to_markdown(list(cells.values()), bench), end="")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN", help="or a checkpoint's file"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="labelled patients")
    parser.add_argument("--steps", type=int, nargs="+", default=[150, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--variants", nargs="+", choices=("stored", "border"), default=["stored", "border"])
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--targets-from", type=Path, metavar="FILE", help="ids of targets, one a line")
    parser.add_argument("--structures", type=int, default=10, help="the largest so many")
    parser.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings that differ from the recipe's"
    )
    return parser.parse_args()


def choose_targets(store: Store, options: argparse.Namespace) -> tuple[str, ...]:
    """Labelled scans of patients of which no scan was pretrained on, or those of a file."""
    ids = sorted(scan_id for scan_id, entry in store.entries.items() if entry.labels)
    if options.targets_from:
        wanted = set(options.targets_from.read_text(encoding="utf-8").split())
    else:
        folders = (options.checkpoint, *options.checkpoint.parents[:2])
        record = next((path / RECORD for path in folders if (path / RECORD).exists()), None)
        if record is None:
            raise SystemExit(
                f"{options.checkpoint}: no {RECORD} tells its scans. Name targets (--targets-from)"
            )
        seen = {patient_of(scan_id) for scan_id in json.loads(record.read_text())["scans"]}
        wanted = {scan_id for scan_id in ids if patient_of(scan_id) not in seen}
    targets = [scan_id for scan_id in ids if scan_id in wanted][: options.targets]
    if not targets:
        raise SystemExit(f"{store.path}: no labelled scan is of another patient than those pretrained on")
    return tuple(targets)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, the cheapest and the most telling first."""
    for steps in options.steps:
        for seed in options.seeds:
            for count in options.counts:
                for arm in options.arms:
                    yield Cell(method=arm, count=count, steps=steps, seed=seed)
        for seed in options.seeds if steps == options.steps[0] else ():
            for rival in options.rivals:
                yield Cell(method=rival, count=1, steps=0, seed=seed)


def check_kept(cells: Sequence[dict[str, Any]], bench: Bench) -> None:
    """End the program where kept cells are of other targets or scans."""
    same = all(
        tuple(cell["labelled"]) == bench.labelled(cell["seed"], cell["count"])
        and all(tuple(cell["scores"].get(variant, ())) == bench.targets for variant in bench.variants)
        for cell in cells
    )
    settings = json.dumps(bench.recipe.values()).encode()
    mark = hashlib.sha256(settings + weights_file(bench.checkpoint).read_bytes()).hexdigest()
    told = bench.out / "settings.sha256"
    if not same or (told.exists() and told.read_text() != mark):
        raise SystemExit(f"{bench.out}: holds cells of other settings, targets or checkpoints. Name another")
    told.write_text(mark)


def to_markdown(cells: Sequence[dict[str, Any]], bench: Bench) -> str:
    """Rows: methods, patients, steps; columns: Dice as stored and at the border, with its interval."""
    parts = [name for name in bench.structures if name != WHOLE]
    names = list(bench.structures)
    head = [
        f"{name}{'' if variant == 'stored' else ', border'}"
        for variant in bench.variants
        for name in ("mean of parts", *names)
    ]
    lines = [
        "| | labelled patients | steps | seeds | " + " | ".join(head) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(head),
    ]
    rows = dict.fromkeys((cell["steps"], cell["count"], cell["method"]) for cell in cells)
    order = [*RIVALS, *ARMS]
    for steps, count, method in sorted(rows, key=lambda row: (*row[:2], order.index(row[2]))):
        own = [
            cell for cell in cells if (cell["steps"], cell["count"], cell["method"]) == (steps, count, method)
        ]
        values = []
        for variant in bench.variants:
            scores = [item for cell in own for item in cell["scores"][variant].items()]
            values.append(
                interval([(patient_of(t), float(np.mean([s[n]["dice"] for n in parts]))) for t, s in scores])
            )
            values += [f"{np.mean([s[name]['dice'] for _, s in scores]):.2f}" for name in names]
        lines.append(
            f"| {TITLES[method]} | {count} | {steps or ''} | {len(own)} | " + " | ".join(values) + " |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
