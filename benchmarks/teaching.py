"""Do our masks teach more than flat SLIC masks? One-shot Dice, training-free, on scans never trained on.

    python benchmarks/teaching.py MANIFEST OUT                              both arms, two seeds, 25 min each
    python benchmarks/teaching.py MANIFEST OUT --steps 300 --seeds 0        a quick look
    python benchmarks/teaching.py MANIFEST OUT --arms ours first slic       the first version's masks too
    python benchmarks/teaching.py MANIFEST OUT --dataset sts_sarcoma_pet --spacing 4
    python benchmarks/teaching.py MANIFEST OUT --steps 800 --search optimisation.peak_rate=3e-4,1e-3

MANIFEST lists the scans (those of the data set are taken, hippocampus if none is named), or is a folder of
them. What happens: `mass prepare`; further stores with SLIC segments for masks (slic_store.py), or with the
first version's proposals (first_version.py); for every arm and seed `mass pretrain --recipe small`, the same
steps and settings, without any label; every so often, and at the end, the averaged network is shown one
labelled scan and asked to segment the targets. Of 200 scans, drawn once for all, 40 are targets, 5 are
references, 10 serve the search; of few, a third and a sixth. None of them is trained on.

Everything is kept in OUT. Run the same command again to go on where it stopped: finished cells are kept, a
running one is resumed. Written: OUT/results.json, OUT/results.md, OUT/curves.png (and OUT/search.json).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curves import draw_curves
from benchmarks.first_version import working_tree
from benchmarks.slic_store import make_slic_store
from pipeline.quality.slic_baseline import SlicConfig
from storage import open_store
from training.engine.monitoring import METRICS, read_metrics
from training.engine.run_folder import RECORD, to_toml
from training.evaluation.in_context import Evaluation, EvaluationConfig, evaluate_in_context
from training.network.weights import load_checkpoint
from training.pretraining.config import PretrainConfig, small

ROOT = Path(__file__).resolve().parent.parent
ARMS = {
    "ours": "our masks",
    "first": "the first version's masks",
    "slic": "flat SLIC masks",
    "slic-coarse": "flat SLIC masks, coarser",
}
SLIC_SEGMENTS = {"slic": SlicConfig().segments, "slic-coarse": (12, 25, 50, 100, 200, 400)}
TITLES = {("hippocampus", "1"): "anterior", ("hippocampus", "2"): "posterior"}
"""What structures are called that data sets only number."""
NUM_CURVE_POINTS = 12
CURVE_REFERENCES = 2
"""Of the references, used for the curve: it costs training time. The table takes all of them."""
CALIBRATION_STEPS = 40
FEW_SCANS = 40
"""With fewer, none is set aside for the search."""
RESERVE_FRACTION = 0.15
"""Of the time of a cell, for the start and the evaluations."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Scans that nothing is trained on."""

    targets: tuple[str, ...]
    references: tuple[str, ...]
    validation: tuple[str, ...]

    @classmethod
    def of(cls, scan_ids: Sequence[str]) -> Split:
        """Draw a fifth, a fortieth, a twentieth, the same every time; of few scans relatively more."""
        count = len(scan_ids)
        shuffled = [scan_ids[k] for k in np.random.default_rng(0).permutation(count)]
        first = max(count // 5, min(4, count // 3))
        second = first + max(count // 40, min(2, count // 6))
        third = second + (count // 20 if count >= FEW_SCANS else 0)
        return cls(
            targets=tuple(sorted(shuffled[:first])),
            references=tuple(sorted(shuffled[first:second])),
            validation=tuple(sorted(shuffled[second:third])),
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.targets, *self.references, *self.validation)


# ------------------------------------------------------------------------------------------------ stores


def mass(*arguments: object, tree: Path = ROOT) -> None:
    """Run a `mass` command, this checkout's or that of another tree; its failure ends this script."""
    command = [sys.executable, "-m", "commands", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    code = subprocess.run(command, cwd=tree, env=environment, check=False).returncode
    if code:
        sys.exit(f"mass {arguments[0]} ended with code {code}: run this script again to go on")


def prepare_stores(
    raw: Path, out: Path, arms: Sequence[str], *, dataset: str, spacing_mm: float, workers: int
) -> None:
    """Make the stores of the arms, or what is missing of them."""
    out.mkdir(parents=True, exist_ok=True)
    if raw.is_file():
        raw = manifest_of(dataset, raw, out / "manifest.csv")
    settings = out / "prepare.toml"
    settings.write_text(f"[ingest]\nspacing_mm = {spacing_mm}\n")
    options = ("--config", settings, "--workers", workers)
    mass("prepare", raw, out / "ours", *options)
    if "first" in arms and not is_whole(out / "first", open_store(out / "ours").scan_ids):
        with working_tree(out / "first-tree") as tree:
            mass("prepare", raw, out / "first", *options, tree=tree)
    for arm in arms:
        if arm in SLIC_SEGMENTS:
            make_slic_store(out / "ours", out / arm, slic=SlicConfig(segments=SLIC_SEGMENTS[arm]))
            mass("verify", out / arm)


def is_whole(path: Path, scan_ids: Sequence[str]) -> bool:
    """Whether a store has all of these scans."""
    return path.exists() and set(open_store(path).scan_ids) >= set(scan_ids)


def manifest_of(dataset: str, manifest: Path, copy: Path) -> Path:
    """Write the lines of one data set, with absolute paths."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("dataset") == dataset]
    if not rows:
        sys.exit(f"{manifest} has no scan of the data set {dataset!r}")
    return with_absolute_paths(rows, manifest, copy)


def with_absolute_paths(rows: Sequence[dict[str, str]], manifest: Path, copy: Path) -> Path:
    """Write lines of a manifest, with absolute paths."""
    where = manifest.parent.resolve()
    rows = [row | {name: str(where / row[name]) for name in ("image", "label") if row[name]} for row in rows]
    with copy.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return copy


# ------------------------------------------------------------------------------------------------ cells


def cell_config(
    base: PretrainConfig, split: Split, *, num_steps: int, seed: int, search: bool
) -> PretrainConfig:
    """The recipe on the training scans, evaluated on the targets (or, to search, the validation scans)."""
    every = max(1, num_steps // NUM_CURVE_POINTS)
    return replace(
        base,
        data=replace(base.data, exclude=split.held_out, holdout_fraction=0.0),
        optimisation=replace(base.optimisation, num_steps=num_steps, seed=seed),
        evaluation=evaluation_config(base.evaluation, split, CURVE_REFERENCES, search=search),
        run=replace(base.run, evaluate_every=every, checkpoint_every=every, draw_every=every, keep_last=1),
    )


def evaluation_config(
    base: EvaluationConfig, split: Split, num_references: int, *, search: bool = False
) -> EvaluationConfig:
    """One shot: each of some references by itself, put to every target."""
    return replace(
        base,
        targets=split.validation if search else split.targets,
        references=split.references,
        num_prompts=num_references,
        shots=1,
    )


def train(store: Path, folder: Path, config: PretrainConfig) -> float:
    """Train a cell, or the rest of it; returns the minutes it took so far, evaluations included."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, clock, run = folder / "config.toml", folder / "minutes.json", folder / "run"
    settings.write_text(to_toml(config.values()), encoding="utf-8")
    spent = json.loads(clock.read_text()) if clock.exists() else 0.0
    began = time.monotonic()
    options = ["--resume"] if (run / RECORD).exists() else []
    try:
        mass("pretrain", store, run, "--config", settings, "--recipe", "small", *options)
    finally:
        spent += (time.monotonic() - began) / 60
        clock.write_text(json.dumps(spent))
    return spent


def curve_of(run: Path) -> list[dict[str, float]]:
    """Dice of each structure at each evaluation of a run."""
    points = []
    for line in read_metrics(run / METRICS):
        if line["kind"] == "evaluation":
            dice = {name.rsplit("/", 1)[1]: value for name, value in line.items() if name.startswith("dice/")}
            points.append({"step": line["step"], **dice})
    return points


def seconds_a_step(store: Path, out: Path, base: PretrainConfig, split: Split) -> float:
    """Measure a short training."""
    config = cell_config(base, split, num_steps=CALIBRATION_STEPS, seed=0, search=True)
    config = replace(
        config, run=replace(config.run, evaluate_every=0, draw_every=0, log_every=CALIBRATION_STEPS)
    )
    folder = out / "calibration"
    train(store, folder, config)
    (line,) = [line for line in read_metrics(folder / "run" / METRICS) if line["kind"] == "train"]
    return float(config.optimisation.batch_size / line["samples_per_second"])


def final_scores(store: Path, weights: Path, config: EvaluationConfig) -> Evaluation:
    """Every score of the exported network."""
    return evaluate_in_context(load_checkpoint(weights), open_store(store), config)


def run_cells(arguments: argparse.Namespace, base: PretrainConfig, split: Split) -> dict[str, Any]:
    """Train and evaluate what is not finished; the results of all cells."""
    out: Path = arguments.out
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    if "num_steps" not in results:
        steps = arguments.steps
        if not steps:
            pace = seconds_a_step(out / "ours", out, base, split)
            steps = max(1, int(60 * arguments.minutes * (1 - RESERVE_FRACTION) / pace))
        results |= {"num_steps": steps, "split": asdict(split), "recipe": base.values()}
        write_json(path, results)
    for seed, arm in itertools.product(arguments.seeds, arguments.arms):
        name = f"{arm}-seed{seed}"
        if name in results["cells"]:
            continue
        print(f"== {name}: {results['num_steps']} steps", flush=True)
        config = cell_config(base, split, num_steps=results["num_steps"], seed=seed, search=False)
        minutes = train(out / arm, out / "cells" / name, config)
        run = out / "cells" / name / "run"
        every_reference = evaluation_config(config.evaluation, split, len(split.references))
        evaluation = final_scores(out / arm, run / "weights.safetensors", every_reference)
        results["cells"][name] = {
            "arm": arm,
            "seed": seed,
            "minutes": minutes,
            "curve": curve_of(run),
            "final": evaluation.to_json(),
            "dice_of_target": dice_of_targets(evaluation),
        }
        write_json(path, results)
    return results


def dice_of_targets(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """For each structure, the Dice of each target, averaged over references."""
    found: dict[str, dict[str, list[float]]] = {}
    for score in evaluation.scores:
        found.setdefault(score.structure, {}).setdefault(score.target, []).append(score.dice)
    return {
        structure: {target: float(np.mean(values)) for target, values in targets.items()}
        for structure, targets in found.items()
    }


def write_json(path: Path, value: object) -> None:
    """Replace a file in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    temporary.replace(path)


# ------------------------------------------------------------------------------------------------ tables


def report(results: Mapping[str, Any], out: Path) -> str:
    """Write the curves; the table as Markdown."""
    cells = list(results["cells"].values())
    arms = [arm for arm in ARMS if any(cell["arm"] == arm for cell in cells)]
    structures = structures_of(cells)
    panels = {
        title: {
            ARMS[arm]: [
                [(point["step"], point.get(name, 0.0)) for point in cell["curve"]]
                for cell in cells
                if cell["arm"] == arm
            ]
            for arm in arms
        }
        for name, title in structures.items()
    }
    label = f"steps of pretraining ({CURVE_REFERENCES} references)"
    draw_curves(out / "curves.png", panels, x_label=label)
    lines = [
        f"One-shot Dice without training on labels, {len(results['split']['targets'])} scans kept out of "
        f"training x {len(results['split']['references'])} references, after {results['num_steps']:,} steps:",
        "",
        "| masks | seed | minutes | " + " | ".join(structures.values()) + " |",
        "| --- " * (3 + len(structures)) + "|",
    ]
    for cell in sorted(cells, key=lambda cell: (arms.index(cell["arm"]), cell["seed"])):
        dice = {part["structure"]: part["dice"] for part in cell["final"]["structures"]}
        numbers = " | ".join(f"{dice.get(name, float('nan')):.3f}" for name in structures)
        lines.append(f"| {ARMS[cell['arm']]} | {cell['seed']} | {cell['minutes']:.1f} | {numbers} |")
    lines += ["", *(difference(cells, "ours", arm) for arm in arms if arm != "ours")]
    return "\n".join(lines)


def structures_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The structures that every cell was scored on, and what they are called."""
    first = cells[0]["final"]["structures"]
    return {
        part["structure"]: TITLES.get((part["dataset"], part["structure"]), part["structure"])
        for part in first
        if all(part["structure"] in cell["dice_of_target"] for cell in cells)
    }


def difference(cells: Sequence[Mapping[str, Any]], first: str, second: str) -> str:
    """By how much one arm is ahead, with an interval over the targets (bootstrap, same targets in both)."""
    structures = structures_of(cells)
    names = list(structures)
    tables = {
        arm: [
            [list(cell["dice_of_target"][name].values()) for name in names]
            for cell in cells
            if cell["arm"] == arm
        ]
        for arm in (first, second)
    }
    if not all(tables.values()):
        return ""
    ahead = np.mean(tables[first], axis=0) - np.mean(tables[second], axis=0)  # (structures, targets)
    draws = np.random.default_rng(0).integers(ahead.shape[1], size=(2000, ahead.shape[1]))
    low, high = np.percentile(ahead[:, draws].mean(axis=2), (2.5, 97.5), axis=1)
    parts = [
        f"{structures[name]} {ahead[k].mean():+.3f} ({low[k]:+.3f} to {high[k]:+.3f})"
        for k, name in enumerate(names)
    ]
    return f"{ARMS[first]} less {ARMS[second]}, 95 % over targets: " + ", ".join(parts) + "."


# ------------------------------------------------------------------------------------------------ search


def run_search(arguments: argparse.Namespace, base: PretrainConfig, split: Split) -> None:
    """Short runs over a grid of settings on our masks, evaluated on the validation scans."""
    names = [text.partition("=")[0] for text in arguments.search]
    grid = [json.loads(f"[{text.partition('=')[2]}]") for text in arguments.search]
    path = arguments.out / "search.json"
    trials: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for values, seed, arm in itertools.product(itertools.product(*grid), arguments.seeds, arguments.arms):
        chosen = dict(zip(names, values, strict=True))
        label = ",".join(f"{name}={json.dumps(value).replace(' ', '')}" for name, value in chosen.items())
        name = f"{label},steps={arguments.steps},seed={seed},{arm}"
        if name not in trials:
            print(f"== {name}", flush=True)
            config = cell_config(
                with_settings(base, chosen), split, num_steps=arguments.steps, seed=seed, search=True
            )
            folder = arguments.out / "search" / name.replace("/", "_")
            minutes = train(arguments.out / arm, folder, config)
            trials[name] = {**chosen, "seed": seed, "arm": arm, "steps": arguments.steps, "minutes": minutes}
            trials[name]["curve"] = curve_of(folder / "run")
            write_json(path, trials)
    print("| settings | minutes | Dice of the whole at each evaluation |\n| --- | --- | --- |")
    for name, trial in sorted(trials.items(), key=lambda item: -item[1]["curve"][-1].get("whole", 0)):
        dice = " ".join(f"{point.get('whole', 0):.2f}" for point in trial["curve"])
        print(f"| {name} | {trial['minutes']:.1f} | {dice} |")


def with_settings(base: PretrainConfig, chosen: Mapping[str, Any]) -> PretrainConfig:
    """The config with settings replaced; names as in the TOML file, `table.setting`."""
    for name, value in chosen.items():
        base = with_setting(base, name.split("."), tuple(value) if isinstance(value, list) else value)
    return base


def with_setting(part: Any, path: Sequence[str], value: object) -> Any:
    """A copy of a dataclass in which the field at the end of the path has the value."""
    name, *rest = path
    if not hasattr(part, name):
        sys.exit(f"--search: {type(part).__name__} has no setting {name!r}")
    return replace(part, **{name: with_setting(getattr(part, name), rest, value) if rest else value})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("raw", type=lambda text: Path(text).resolve(), metavar="MANIFEST")
    parser.add_argument("out", type=lambda text: Path(text).resolve(), metavar="OUT")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=None, help="default: ours slic")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=25.0, help="of training a cell, measured first")
    parser.add_argument("--steps", type=int, help="in place of --minutes; needed with --search")
    parser.add_argument("--workers", type=int, default=2, help="of `mass prepare`")
    parser.add_argument("--dataset", default="hippocampus", help="of the manifest")
    parser.add_argument("--spacing", type=float, default=1.5, help="of the stores, mm")
    parser.add_argument("--search", nargs="+", metavar="SETTING=A,B,...", help="JSON values")
    arguments = parser.parse_args()
    arguments.arms = arguments.arms or (["ours"] if arguments.search else ["ours", "slic"])
    if arguments.search and not arguments.steps:
        parser.error("--search needs --steps")
    prepare_stores(
        arguments.raw,
        arguments.out,
        arguments.arms,
        dataset=arguments.dataset,
        spacing_mm=arguments.spacing,
        workers=arguments.workers,
    )
    split = Split.of(open_store(arguments.out / "ours").scan_ids)
    if arguments.search:
        run_search(arguments, small(), split)
        return
    text = report(run_cells(arguments, small(), split), arguments.out)
    (arguments.out / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
