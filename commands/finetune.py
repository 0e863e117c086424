"""`mass finetune`: settings from options, a recipe and a file; a training with its progress; its report."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from shlex import quote
from typing import Any

from commands.pages.run import watched_run
from commands.pretrain import say_where_to_look
from commands.progress import Progress
from commands.terminal import CommandError, State, decimals, json_number, print_precision, print_table, shown
from pipeline.toml_settings import parse_config, read_tables
from training.engine import CONFIG, Callbacks, ChosenPrecision
from training.evaluation import NARROW_COLUMNS, Evaluation, Table
from training.finetuning import (
    FinetuneConfig,
    FinetuneRecipe,
    Finetuning,
    finetune,
    finetune_recipe,
    report_document,
)
from training.network import load_checkpoint

_LISTED = 6
"""Most scans that one line of the terminal names."""


def run_finetune(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass finetune`; return the exit code and the results for --json."""
    config = read_finetune_settings(
        arguments.config,
        arguments.recipe or _recipe_for(arguments),
        options(arguments),
        resumed=arguments.run_folder if arguments.resume else None,
    )
    if arguments.seed is not None:
        config = replace(config, optimisation=replace(config.optimisation, seed=arguments.seed))
    if arguments.workers is not None:
        config = replace(config, run=replace(config.run, num_workers=arguments.workers))
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        print(f"warning: {text}")

    def begun(precision: ChosenPrecision) -> None:
        say_where_to_look(arguments.run_folder)
        print_precision(precision)

    with watched_run(arguments.run_folder, arguments.watch) as page, FinetuneProgress(page) as show:
        done = finetune(
            arguments.checkpoint,
            arguments.store,
            arguments.run_folder,
            config,
            resume=arguments.resume,
            device=arguments.device,
            callbacks=Callbacks(progress=show.steps, scan=show.scans, warning=warn, precision=begun),
        )
    if done.is_first:
        print_result(config, done)
        if done.weights and not done.report:
            keep = "mass carry --held-out" if done.scans.carried else "--num, --held-out"
            print(f"no labelled scan is kept out: nothing to report on ({keep})")
        if done.weights:
            print(f"next: mass segment {quote(str(arguments.run_folder))} --finetuned SCANS --out RESULTS")
    else:
        arguments.json = None  # the first process writes it
    signal_number = done.result.signal_number
    document = {**to_document(arguments.run_folder, config, done), "warnings": warnings}
    return 128 + signal_number if signal_number else 0, document


def _recipe_for(arguments: Namespace) -> FinetuneRecipe | None:
    """Return the named recipe; without one, "whole" for a checkpoint that was trained on whole scans."""
    if arguments.resume and not arguments.config:
        return None
    whole_scans = load_checkpoint(arguments.checkpoint).trained_on.whole_scans
    if whole_scans and os.environ.get("RANK", "0") == "0":
        print("the checkpoint was trained on whole scans: recipe whole (--recipe names another)")
    return "whole" if whole_scans else None


def options(arguments: Namespace) -> dict[str, Any]:
    """Return the settings of the table [finetune] that options give; the others are left out."""
    given = {
        "label": arguments.label,
        "carried": str(arguments.carried) if arguments.carried else None,
        "datasets": arguments.dataset,
        "scans": arguments.scans,
        "num_scans": arguments.num,
        "held_out": arguments.held_out,
        "scan_seed": arguments.seed,
        "mode": arguments.mode,
        "from_scratch": arguments.from_scratch or None,
    }
    if arguments.num is not None and arguments.num < 1:
        raise CommandError(f"--num must be at least 1, got {arguments.num}")
    return {name: value for name, value in given.items() if value is not None}


def read_finetune_settings(
    path: Path | None,
    name: FinetuneRecipe | None,
    given: Mapping[str, Any],
    *,
    resumed: Path | None = None,
) -> FinetuneConfig:
    """Return a recipe (by default the published one), changed by a TOML file, then by the options.

    Args:
        path: The file, if there is one.
        name: The recipe, if there is one.
        given: Settings of the table [finetune] from the command line.
        resumed: Folder of a run that is resumed; its own settings are used if no others are named.
    """
    if resumed and not (resumed / CONFIG).exists():
        raise CommandError(f"{resumed}: no run here to go on with. Leave out --resume to begin one")
    if resumed and not path and not name:
        path = resumed / CONFIG
    tables = read_tables(path, [table.name for table in fields(FinetuneConfig)]) if path else {}
    own = {**tables.get("finetune", {}), **given}
    # The mode decides the learning rate, so it is read before the rest.
    mode = own.get("mode", "full")
    base = finetune_recipe(name or "published", mode if mode in ("full", "decoder", "tokens") else "full")
    parts: dict[str, Any] = {
        table: parse_config(values, type(getattr(base, table)), where=f"[{table}]", base=getattr(base, table))
        for table, values in {**tables, "finetune": own}.items()
    }
    return replace(base, **parts)


class FinetuneProgress:
    """Shows the progress of a fine-tuning: scans encoded, then steps, then scans evaluated."""

    def __init__(self, watch: Callable[[State], None] | None = None) -> None:
        """Keep the function that also gets every state, if there is one (`commands.terminal.shown`)."""
        self._watch = watch

    def __enter__(self) -> FinetuneProgress:
        self._stack = ExitStack()
        self._title = ""
        self._show: Callable[[State], None] | None = None
        self._began = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def steps(self, state: State) -> None:
        """Show the progress of the training."""
        self._turn_to("finetune")(state)

    def scans(self, what: str, done: int, total: int) -> None:
        """Show the progress of the work on scans."""
        show = self._turn_to(what)
        show(Progress.of_equals(done, total, time.monotonic() - self._began))

    def _turn_to(self, title: str) -> Callable[[State], None]:
        if self._show is None or title != self._title:
            self._stack.close()
            self._title, self._began = title, time.monotonic()
            self._show = self._stack.enter_context(shown(title, self._watch))
        return self._show


def print_result(
    config: FinetuneConfig, done: Finetuning, again: str = "the same command with --resume"
) -> None:
    """Print the results of a fine-tuning; `again` names the command that resumes it."""
    result, scans = done.result, done.scans
    print(f"label {scans.label}: {', '.join(f'{part.values[0]} {part.name}' for part in scans.structures)}")
    print(f"trained on {len(scans.training)} scans: {_listed(scans.training)}")
    if scans.carried:
        print(f"and, with carried labels, on {len(scans.carried)}: {_listed(scans.carried)}")
    columns = ("mode", "steps", "loss, first tenth", "loss, last tenth", "samples/s", "waiting for data")
    row = (
        "from scratch" if config.finetune.from_scratch else config.finetune.mode,
        f"{result.step}/{config.optimisation.num_steps}",
        decimals(result.first_loss),
        decimals(result.last_loss),
        f"{result.samples_per_second:.2f}",
        f"{100 * result.data_wait_fraction:.1f} %",
    )
    print_table("fine-tuned", columns, [row])
    if not done.weights:
        print(f"stopped and saved at step {result.step}; {again} goes on from here")
        return
    if done.report:
        print_report(done.report, len(scans.held_out))
    print(f"weights: {done.weights}")


def print_report(report: Evaluation, num_scans: int) -> None:
    """Print Dice, HD95 and ASD of each structure on scans that were not trained on."""
    print_table(f"on {num_scans} scans not trained on", NARROW_COLUMNS, Table.of(report).narrow_rows())


def to_document(folder: Path, config: FinetuneConfig, done: Finetuning) -> dict[str, Any]:
    """Return the results of a fine-tuning, for --json."""
    result, scans = done.result, done.scans
    return {
        "run": str(folder),
        "mode": config.finetune.mode,
        "from_scratch": config.finetune.from_scratch,
        "label": scans.label,
        "structures": [{"value": part.values[0], "name": part.name} for part in scans.structures],
        "training_scans": list(scans.training),
        "carried_scans": list(scans.carried),
        "stale_carried_scans": list(scans.stale),
        "held_out_scans": list(scans.held_out),
        "resumed": done.resumed,
        "step": result.step,
        "complete": result.complete,
        "first_loss": json_number(result.first_loss),
        "last_loss": json_number(result.last_loss),
        "seconds": result.seconds,
        "samples_per_second": result.samples_per_second,
        "weights": str(done.weights) if done.weights else None,
        "report": report_document(done.report) if done.report else None,
    }


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return ", ".join(ids[:_LISTED]) + more
