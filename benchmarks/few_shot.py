"""How many labels does pretraining save? Dice on unseen scans after fine-tuning on 1 to 200 labelled ones.

    python benchmarks/few_shot.py OUT                                the table: at most two hours on two cores
    python benchmarks/few_shot.py OUT --steps 50 --folder few_shot-50   the same after so many steps
    python benchmarks/few_shot.py OUT --steps 20 --counts 1 5        a quick look
    python benchmarks/few_shot.py OUT --checkpoint ours=A.safetensors slic=B.safetensors

OUT is the folder in which `benchmarks/teaching.py` has prepared its stores, drawn its split, and
pretrained one network on our masks and one on flat SLIC masks. For every number of labelled scans (more than
there are become all of them) and every arm, `mass finetune` trains on the same scans, for the same steps,
with the same settings: from random weights ("scratch"), from the network of SLIC masks, from ours. Then it
segments the targets of the split; none of them, nor the references, is trained on. Beside it: both networks
without any training on labels, shown one reference (each of the split's in turn) or all five.

Everything is kept in OUT/few_shot, or the folder that is named. The same command goes on where it stopped:
finished cells are kept, a running one is resumed. Written: results.json, results.md, curves.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curves import draw_curves
from benchmarks.teaching import Split, final_scores, mass, write_json
from storage import open_store
from training.engine.monitoring import METRICS, read_metrics
from training.engine.run_folder import RECORD, to_toml
from training.evaluation.in_context import Evaluation, EvaluationConfig
from training.finetuning.config import FinetuneConfig, finetune_recipe
from training.pretraining.config import small

ARMS = {
    "scratch": "from scratch",
    "slic": "pretrained on flat SLIC",
    "first": "pretrained on the first version's masks",
    "ours": "pretrained on our masks",
}
DEFAULT_ARMS = ("scratch", "slic", "ours")
PRETRAINED = ("slic", "first", "ours")
COUNTS = (1, 5, 10, 20, 50, 100, 200)
SHOTS = (1, 5)
CALIBRATION_STEPS = 20
RESERVE_FRACTION = 0.3
"""Of the time of a cell, for the start, the first tokens and the report."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fine-tuning of the table."""

    arm: str
    count: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder, and its key in the results."""
        return f"{self.arm}-{self.count:03d}-seed{self.seed}"


def cell_config(base: FinetuneConfig, split: Split, cell: Cell, num_steps: int) -> FinetuneConfig:
    """The recipe, on so many scans that are in no part of the split, reported on the targets."""
    return replace(
        base,
        finetune=replace(
            base.finetune,
            from_scratch=cell.arm == "scratch",
            num_scans=cell.count,
            scan_seed=cell.seed,
            exclude=(*split.references, *split.validation),
            held_out=split.targets,
            num_validation=0,
            max_reported=len(split.targets),
        ),
        optimisation=replace(base.optimisation, num_steps=num_steps, seed=cell.seed),
        run=replace(base.run, evaluate_every=0, draw_every=0, keep_last=1),
    )


def checkpoints(out: Path, given: Sequence[str], seed: int) -> dict[str, Path]:
    """The network that each arm starts from; from scratch, the one whose widths are taken."""
    found = {arm: out / "cells" / f"{arm}-seed{seed}" / "run" / "weights.safetensors" for arm in PRETRAINED}
    found |= {arm: Path(path) for arm, _, path in (text.partition("=") for text in given)}
    return found | {"scratch": found["ours"]}


def counts_of(wanted: Sequence[int], num_scans: int) -> tuple[int, ...]:
    """Numbers of labelled scans, rising; what exceeds the scans that there are becomes their number."""
    return tuple(sorted({min(count, num_scans) for count in wanted}))


def train(store: Path, checkpoint: Path, folder: Path, config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune a cell, or the rest of it; returns its report, and the minutes it took so far."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, clock, run, report = (
        folder / name for name in ("config.toml", "minutes.json", "run", "report.json")
    )
    settings.write_text(to_toml(config.values()), encoding="utf-8")
    spent = json.loads(clock.read_text()) if clock.exists() else 0.0
    began = time.monotonic()
    options = ["--resume"] if (run / RECORD).exists() else []
    try:
        mass(
            *("finetune", checkpoint, store, run, "--config", settings, "--recipe", "small"),
            *("--json", report, *options),
        )
    finally:
        spent += (time.monotonic() - began) / 60
        clock.write_text(json.dumps(spent))
    return {**json.loads(report.read_text()), "minutes": spent}


def steps_in(
    minutes: float, store: Path, checkpoint: Path, out: Path, base: FinetuneConfig, split: Split
) -> int:
    """How many steps a cell of so many minutes has room for: measured on a short one."""
    config = cell_config(base, split, Cell(arm="ours", count=1, seed=0), CALIBRATION_STEPS)
    config = replace(config, finetune=replace(config.finetune, max_reported=1))
    config = replace(config, run=replace(config.run, log_every=CALIBRATION_STEPS))
    train(store, checkpoint, out / "calibration", config)
    lines = read_metrics(out / "calibration" / "run" / METRICS)
    (pace,) = [line["samples_per_second"] for line in lines if line["kind"] == "train"]
    return max(1, int(60 * minutes * (1 - RESERVE_FRACTION) * pace / base.optimisation.batch_size))


def run_cells(arguments: argparse.Namespace, base: FinetuneConfig) -> dict[str, Any]:
    """Train and measure what is not finished; the results of all cells."""
    store = arguments.out / "ours"
    scan_ids = open_store(store).scan_ids
    split = Split.of(scan_ids)
    out: Path = arguments.out / arguments.folder
    path = out / "results.json"
    results: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"cells": {}, "training_free": {}}
    )
    networks = {seed: checkpoints(arguments.out, arguments.checkpoint, seed) for seed in arguments.seeds}
    if "num_steps" not in results:
        out.mkdir(parents=True, exist_ok=True)
        first = networks[arguments.seeds[0]]["ours"]
        steps = arguments.steps or steps_in(arguments.minutes, store, first, out, base, split)
        results |= {"num_steps": steps, "split": asdict(split), "recipe": base.values()}
        write_json(path, results)
    for seed, arm, shots in itertools.product(arguments.seeds, PRETRAINED, SHOTS):
        name = f"{arm}-{shots}-seed{seed}"
        if arm in arguments.arms and name not in results["training_free"]:
            print(f"== {name}, without training on labels", flush=True)
            config = free_config(split, shots)
            evaluation = final_scores(store, networks[seed][arm], config)
            found = {"arm": arm, "shots": shots, "seed": seed, "dice": means(cases_of(evaluation))}
            results["training_free"][name] = found
            write_json(path, results)
    counts = counts_of(arguments.counts, len(scan_ids) - len(split.held_out))
    for seed, count, arm in itertools.product(arguments.seeds, counts, arguments.arms):
        cell = Cell(arm=arm, count=count, seed=seed)
        if cell.name in results["cells"]:
            continue
        print(f"== {cell.name}: {results['num_steps']} steps", flush=True)
        config = cell_config(base, split, cell, results["num_steps"])
        done = train(store, networks[seed][arm], out / "cells" / cell.name, config)
        cases = dice_by_structure(done["report"]["cases"])
        results["cells"][cell.name] = {
            **asdict(cell),
            "minutes": done["minutes"],
            "dice": means(cases),
            "dice_of_target": cases,
        }
        write_json(path, results)
    return results


def free_config(split: Split, shots: int) -> EvaluationConfig:
    """In context: prompts of so many of the split's references, put to every target."""
    base = small().evaluation
    return replace(
        base,
        targets=split.targets,
        references=split.references,
        num_prompts=max(1, len(split.references) // shots),
        shots=min(shots, len(split.references)),
        whole=False,
    )


def cases_of(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """For each structure the Dice of each target, averaged over prompts."""
    rows = [
        {"scan": score.target, "structure": score.structure, "dice": score.dice}
        for score in evaluation.scores
        if score.expected_voxels
    ]
    return dice_by_structure(rows)


def dice_by_structure(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each structure, the mean Dice of each target that has it."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        if case["dice"] is not None:
            found.setdefault(case["structure"], {}).setdefault(case["scan"], []).append(case["dice"])
    return {
        structure: {scan: float(np.mean(values)) for scan, values in scans.items()}
        for structure, scans in found.items()
    }


def means(cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean Dice of each structure, and "mean" over structures."""
    each = {structure: float(np.mean(list(scans.values()))) for structure, scans in cases.items()}
    return {**each, "mean": float(np.mean(list(each.values())))}


# ------------------------------------------------------------------------------------------------ tables


def report(results: Mapping[str, Any], out: Path) -> str:
    """Write the curves; the tables and what they say, as Markdown."""
    cells = list(results["cells"].values())
    arms = [arm for arm in ARMS if any(cell["arm"] == arm for cell in cells)]
    counts = sorted({cell["count"] for cell in cells})
    seeds = sorted({cell["seed"] for cell in cells})
    lines = [
        f"Dice on {len(results['split']['targets'])} scans never trained on, mean over structures and "
        f"{len(seeds)} seed(s), after {results['num_steps']:,} steps of fine-tuning on n labelled scans; "
        "in brackets 95 % over targets (bootstrap).",
        "",
        "| n | " + " | ".join(ARMS[arm] for arm in arms) + " | ours less scratch |",
        "| ---: " + "| --- " * (len(arms) + 1) + "|",
    ]
    for count in counts:
        row = [_cell_text(cells, arm, count) for arm in arms]
        lines.append(f"| {count} | " + " | ".join([*row, _difference(cells, count)]) + " |")
    free = list(results["training_free"].values())
    lines += ["", "Without any training on labels, in context:", "", "| shots | " + _free_head(arms) + " |"]
    lines.append("| ---: " + "| --- " * sum(arm in PRETRAINED for arm in arms) + "|")
    for shots in sorted({row["shots"] for row in free}):
        found = [_free_text(free, arm, shots) for arm in arms if arm in PRETRAINED]
        lines.append(f"| {shots} | " + " | ".join(found) + " |")
    lines += ["", *verdicts(cells, counts)]
    panels = {
        "Dice after fine-tuning": {
            ARMS[arm]: [
                [
                    (cell["count"], cell["dice"]["mean"])
                    for cell in sorted(cells, key=lambda cell: cell["count"])
                    if (cell["arm"], cell["seed"]) == (arm, seed)
                ]
                for seed in seeds
            ]
            for arm in arms
        }
    }
    draw_curves(out / "curves.png", panels, x_label="labelled scans", y_top=1.0)
    return "\n".join(lines)


def verdicts(cells: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> list[str]:
    """What issue and paper ask: labels saved, and points gained with one label."""
    lines = []
    most = counts[-1]
    fifth = min(counts, key=lambda count: abs(count - most / 5))
    saved, full = _mean(cells, "ours", fifth), _mean(cells, "scratch", most)
    if saved is not None and full is not None and fifth < most:
        word = "at least" if saved >= full else "below"
        lines.append(
            f"Pretrained on our masks, {fifth} labelled scans reach {saved:.3f}: {word} scratch with {most} "
            f"({full:.3f})."
        )
    one, none = _mean(cells, "ours", counts[0]), _mean(cells, "scratch", counts[0])
    if one is not None and none is not None:
        lines.append(f"With {counts[0]}: {100 * (one - none):+.1f} points of Dice over scratch.")
    return lines


def _of(cells: Sequence[Mapping[str, Any]], arm: str, count: int) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if (cell["arm"], cell["count"]) == (arm, count)]


def _mean(cells: Sequence[Mapping[str, Any]], arm: str, count: int) -> float | None:
    some = _of(cells, arm, count)
    return float(np.mean([cell["dice"]["mean"] for cell in some])) if some else None


def _of_targets(cells: Sequence[Mapping[str, Any]], arm: str, count: int) -> dict[str, float]:
    """The Dice of each target, the mean over structures and seeds."""
    found: dict[str, list[float]] = {}
    for cell in _of(cells, arm, count):
        for scans in cell["dice_of_target"].values():
            for scan, dice in scans.items():
                found.setdefault(scan, []).append(dice)
    return {scan: float(np.mean(values)) for scan, values in sorted(found.items())}


def _interval(values: Sequence[float]) -> str:
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.percentile(np.array(values)[draws].mean(axis=1), (2.5, 97.5))
    return f"({low:.3f} to {high:.3f})"


def _cell_text(cells: Sequence[Mapping[str, Any]], arm: str, count: int) -> str:
    targets = list(_of_targets(cells, arm, count).values())
    return f"{np.mean(targets):.3f} {_interval(targets)}" if targets else ""


def _difference(cells: Sequence[Mapping[str, Any]], count: int) -> str:
    ours, scratch = (_of_targets(cells, arm, count) for arm in ("ours", "scratch"))
    ahead = [ours[scan] - scratch[scan] for scan in ours if scan in scratch]
    return f"{np.mean(ahead):+.3f} {_interval(ahead)}" if ahead else ""


def _free_head(arms: Sequence[str]) -> str:
    return " | ".join(ARMS[arm] for arm in arms if arm in PRETRAINED)


def _free_text(free: Sequence[Mapping[str, Any]], arm: str, shots: int) -> str:
    some = [row["dice"]["mean"] for row in free if (row["arm"], row["shots"]) == (arm, shots)]
    return f"{np.mean(some):.3f}" if some else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=lambda text: Path(text).resolve(), metavar="OUT")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=DEFAULT_ARMS)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=4.5, help="of a cell, measured first")
    parser.add_argument("--steps", type=int, help="in place of --minutes")
    parser.add_argument("--folder", default="few_shot", help="of OUT, for the cells and the table")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="ARM=FILE", help="in place of those in OUT/cells"
    )
    arguments = parser.parse_args()
    for arm, path in checkpoints(arguments.out, arguments.checkpoint, arguments.seeds[0]).items():
        if arm in arguments.arms and not path.is_file():
            parser.error(f"{path}: no network. Run benchmarks/teaching.py, or name one (--checkpoint)")
    text = report(run_cells(arguments, finetune_recipe("small")), arguments.out / arguments.folder)
    (arguments.out / arguments.folder / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
