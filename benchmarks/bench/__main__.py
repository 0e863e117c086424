"""The command line of the bench: `python -m benchmarks.bench OUT`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bench import report
from benchmarks.bench.arms import ARMS
from benchmarks.bench.plan import ALL, FULL, QUICK, Form, cells_of, chosen, seconds_of
from benchmarks.bench.run import CELLS, Bench, run_cells
from benchmarks.bench.sets import SETS, SetDescription, Sources, open_set

ABOUT = """Does pretraining teach, on which anatomies, and more than what users would take instead?

    python -m benchmarks.bench OUT --quick                                  drawn shapes alone
    python -m benchmarks.bench OUT --manifest M.csv --dry-run               the cells, and how long they take
    python -m benchmarks.bench OUT --manifest M.csv --only hippocampus      one set
    python -m benchmarks.bench OUT --stores acdc=STORE --only acdc/mae acdc/ours/finetune-5-*

Cells are kept in OUT; the same command goes on where it stopped. In two shells it uses two cores.
Written: OUT/results.md, OUT/results.json, OUT/results.png. docs/bench.md says what is compared."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the bench, or print its cells."""
    options = parser().parse_args(argv)
    form, sources = form_of(options), sources_of(options)
    about = sets_of(options, form, sources)
    if options.dry_run:
        print(dry_run(form, about, sources, options.only))
        return
    sources.out.mkdir(parents=True, exist_ok=True)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    sets = {name: open_set(each, sources.store(each)) for name, each in about.items()}
    bench = Bench(out=sources.out, sources=sources, form=form, sets=sets)
    pools = {name: len(each.split.pool) for name, each in sets.items()}
    cells = chosen(cells_of(form, about, pools), options.only)
    done = run_cells(bench, cells)
    print(write(done, about, pools, form, sources.out))
    if len(done) < len(cells):
        missing = len(cells) - len(done)
        raise SystemExit(
            f"{missing} of {len(cells)} cells failed (see above). The same command tries them again"
        )


def write(
    cells: Sequence[dict[str, Any]],
    about: dict[str, SetDescription],
    pools: dict[str, int],
    form: Form,
    out: Path,
) -> str:
    """Write table, values and plot; return the table."""
    text = report.to_markdown(cells, about)
    values = {
        "pretraining_steps": form.pretraining_steps,
        "window_voxels": form.window_voxels,
        "early_fraction": form.early_fraction,
        "seeds": form.seeds,
        "cells": list(cells),
    }
    (out / "results.md").write_text(text, encoding="utf-8")
    (out / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    report.draw(cells, about, pools, out / "results.png")
    return text


def dry_run(form: Form, about: dict[str, SetDescription], sources: Sources, only: Sequence[str]) -> str:
    """The list of cells with estimated seconds of one core; makes no store."""
    path = sources.out / CELLS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for cell in map(json.loads, lines):
        seconds.setdefault((cell["set"], cell["arm"], cell["use"]), []).append(cell["seconds"])
    measured = {key: sum(values) / len(values) for key, values in seconds.items()}
    sizes = {name: expected_sizes(each) for name, each in about.items()}
    pools = {name: pool for name, (_, pool) in sizes.items()}
    rows, total = [], 0.0
    for cell in chosen(cells_of(form, about, pools), only):
        targets, pool = sizes[cell.set]
        cost = seconds_of(cell, form, targets=targets, pool=pool, measured=measured)
        total += cost
        rows.append(f"{cell.name:60s} {cost:8,.0f} s")
    done = f", {len(measured)} kinds of them measured here" if measured else ""
    return "\n".join(
        [
            *rows,
            f"{len(rows)} cells{done}; about {total / 3600:.1f} hours of one core, "
            f"{total / 7200:.1f} of two (the same command in two shells). Preparing the stores comes first.",
        ]
    )


def expected_sizes(about: SetDescription) -> tuple[int, int]:
    """Targets and labelled scans, where the store is not there yet: for estimates."""
    if about.drawn:
        return about.drawn.targets, about.drawn.labelled
    scans = about.most_scans or {"acdc": 20, "synthseg": 14, "spinal_cord": 3}.get(about.name, 12)
    targets = min(about.targets, max(1, scans // 3))
    return targets, scans - targets


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("out", type=lambda text: Path(text).resolve(), metavar="OUT")
    made.add_argument("--quick", action="store_true", help="fewer sets, arms and steps, one seed")
    made.add_argument("--manifest", type=Path, nargs="+", default=[], metavar="CSV", help="of mass prepare")
    made.add_argument("--stores", nargs="+", default=[], metavar="SET=STORE", help="prepared before")
    made.add_argument("--classes", type=Path, metavar="SET.npz", help="of the set adrenal")
    made.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="SET/ARM/USE",
        help="parts may be left out, or have * in them",
    )
    made.add_argument("--dry-run", action="store_true", help="print the cells and their time, do nothing")
    made.add_argument("--seeds", type=int, nargs="+", help="default: those of the form")
    made.add_argument("--pretraining-steps", type=int, metavar="N")
    made.add_argument("--window-voxels", type=int, metavar="N", help="most voxels of a window")
    made.add_argument(
        "--early-fraction",
        type=float,
        metavar="F",
        help="of the pretrainings' steps, the first ones, in windows of a quarter of the voxels",
    )
    made.add_argument("--counts", nargs="+", metavar="N", help="labelled scans of fine-tunings, or `all`")
    made.add_argument("--steps", type=int, nargs="+", metavar="N", help="of fine-tunings")
    made.add_argument(
        "--carried",
        nargs="+",
        default=[],
        metavar="N",
        help="labelled scans of fine-tunings that are trained on carried labels, too (--steps; 400)",
    )
    made.add_argument(
        "--cross", action="store_true", help="every number of labels with every number of steps"
    )
    made.add_argument("--prompts", type=int, metavar="N", help="references, in turn, of one-shot answers")
    made.add_argument(
        "--subjects", type=int, nargs=3, metavar="N", help="drawn: pretraining, labelled, targets"
    )
    made.add_argument("--shape", type=int, nargs=3, metavar="N", help="voxels of a drawn subject")
    made.add_argument("--workers", type=int, default=2, help="of mass prepare")
    made.add_argument("--threads", type=int, default=0, help="of PyTorch; default: its own choice")
    return made


def form_of(options: argparse.Namespace) -> Form:
    """The form that is asked for."""
    form = QUICK if options.quick else FULL
    first = {pattern.split("/")[0] for pattern in options.only}
    named = tuple(name for name in SETS if name in first)
    arms = {pattern.split("/")[1] for pattern in options.only if "/" in pattern}
    form = replace(
        form,
        sets=named or form.sets,
        # An arm that is named is run, also where the form leaves it out.
        arms=tuple(arm for arm in ARMS if arm in form.arms or arm in arms),
        seeds=tuple(options.seeds or form.seeds),
        pretraining_steps=options.pretraining_steps or form.pretraining_steps,
        window_voxels=options.window_voxels or form.window_voxels,
        early_fraction=form.early_fraction if options.early_fraction is None else options.early_fraction,
        prompts=options.prompts or form.prompts,
    )
    if options.counts or options.steps or options.cross:
        counts = [ALL if text == "all" else int(text) for text in options.counts or []]
        form = form.crossed(counts, options.steps or [])
    if options.carried:
        steps = options.steps or [400]
        carried = tuple((int(text), number) for text in options.carried for number in steps)
        form = replace(form, carried=carried)
    return form


def sources_of(options: argparse.Namespace) -> Sources:
    """Where scans come from.

    Raises:
        SystemExit: A store is named for no set of the bench.
    """
    stores = {}
    for text in options.stores:
        name, _, path = text.partition("=")
        if name not in SETS or not path:
            raise SystemExit(f"--stores {text}: SET=STORE is expected, with a set of {', '.join(SETS)}")
        stores[name] = Path(path).resolve()
    return Sources(
        out=options.out,
        manifests=tuple(options.manifest),
        stores=stores,
        classes=options.classes,
        workers=options.workers,
    )


def sets_of(options: argparse.Namespace, form: Form, sources: Sources) -> dict[str, SetDescription]:
    """The sets of the form that there are scans of; all that are named, or an error later."""
    named = {pattern.split("/")[0] for pattern in options.only}
    found = {}
    for name in form.sets:
        about = SETS[name]
        if about.drawn and (options.subjects or options.shape):
            changes: dict[str, Any] = {}
            if options.subjects:
                changes |= dict(zip(("pretraining", "labelled", "targets"), options.subjects, strict=True))
            if options.shape:
                changes["shape_zyx"] = tuple(options.shape)
            about = replace(about, drawn=replace(about.drawn, **changes))
        if name in named or sources.has(about) or options.dry_run:
            found[name] = about
        else:
            print(f"set {name}: left out, no manifest or store has it", flush=True)
    return found


if __name__ == "__main__":
    main()
