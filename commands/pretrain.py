"""`mass pretrain`: settings from a recipe and a file, a training with progress, its results."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from commands.pages.run import watched_run
from commands.terminal import CommandError, decimals, json_number, print_precision, print_table, shown
from pipeline.toml_settings import parse_config, read_tables
from storage import StorePath
from training.engine import CONFIG, RECORD, Callbacks, DeviceName
from training.pretraining import (
    DEFAULT_RECIPE,
    DryRun,
    PretrainConfig,
    Pretraining,
    Recipe,
    pretrain,
    recipe,
    rehearse_pretraining,
)

PAIR_FRACTION = 0.5
"""Fraction of paired samples with --pairs and no other setting: as measured (docs/decisions/0026)."""


def run_pretrain(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass pretrain`; return the exit code and the results for --json."""
    if arguments.dry_run:
        return _dry_run(arguments)
    done = pretrain_shown(
        arguments.store,
        arguments.run_folder,
        _config_of(arguments),
        resume=arguments.resume,
        device=arguments.device,
        watch=arguments.watch,
    )
    if not done.is_first:
        arguments.json = None  # the first process writes it
    signal_number = done.result.signal_number
    return 128 + signal_number if signal_number else 0, to_document(arguments.run_folder, done)


def _dry_run(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Print time and memory of the training, measured over a few steps."""
    found = rehearse_pretraining(arguments.store, _config_of(arguments), device=arguments.device)
    if not found.is_first:
        arguments.json = None
        return 0, {}
    print_dry_run(found)
    return 0, {
        **asdict(found.steps),
        "num_scans": found.num_scans,
        "num_steps": found.config.optimisation.num_steps,
        "run_seconds": found.run_seconds,
        "device": found.device,
        "precision": found.precision.to_json(),
    }


def _config_of(arguments: Namespace) -> PretrainConfig:
    """Return the settings that the options name."""
    resumed = arguments.run_folder if arguments.resume else None
    config = read_settings(arguments.config, arguments.recipe, resumed=resumed)
    if arguments.workers is not None:
        config = replace(config, run=replace(config.run, num_workers=arguments.workers))
    if arguments.pairs is not None:
        fraction = config.data.pair_fraction or PAIR_FRACTION
        data = replace(config.data, pairs=str(arguments.pairs), pair_fraction=fraction)
        config = replace(config, data=data)
    return config


def print_dry_run(found: DryRun) -> None:
    """Print the time and memory that a training would take."""
    print_precision(found.precision)
    steps, optimisation = found.steps, found.config.optimisation
    data = [stage.data for stage, _ in found.stages]
    crop = ", later ".join(" x ".join(map(str, part.crop_zyx)) for part in data)
    times = ", later ".join(f"{part.step_seconds:.3f} s" for _, part in found.stages)
    memory = "peak of GPU memory" if found.device.startswith("cuda") else "peak of this process's memory"
    rows = [
        ("scans", found.num_scans),
        (
            "a step",
            f"{optimisation.batch_size} samples of {crop}, {found.config.data.masks_per_sample} masks",
        ),
        ("parameters", f"{steps.num_parameters / 1e6:.2f} million"),
        ("weights, gradients, moments, average", f"{steps.state_bytes / 2**30:.2f} GiB"),
        ("activations", f"{steps.activation_bytes / 2**30:.2f} GiB"),
        (memory, f"{steps.peak_bytes / 2**30:.2f} GiB"),
        (
            "time a step",
            f"{times}, {100 * steps.data_wait_fraction:.0f} % waiting for data",
        ),
        ("the run", f"{optimisation.num_steps} steps, {found.run_seconds / 3600:.1f} h and evaluations"),
    ]
    print_table(f"dry run on {found.device}: nothing is written", ("what", "value"), rows)


def pretrain_with(
    store: StorePath,
    folder: Path,
    name: Recipe | None,
    file: Path | None,
    *,
    resume: bool = False,
    workers: int | None = None,
    device: DeviceName = "auto",
    watch: bool = False,
) -> Pretraining:
    """Pretrain with the settings of a recipe and a file, as the flow does.

    Args:
        store: The store.
        folder: Folder of the run.
        name: The recipe; None for the default one, or a resumed run's own settings.
        file: A TOML file with settings that differ.
        resume: Go on with the run in `folder`.
        workers: Processes that read samples; None for the recipe's.
        device: Where to compute.
        watch: Keep a page of the run up to date.
    """
    config = read_settings(file, name, resumed=folder if resume else None)
    if workers is not None:
        config = replace(config, run=replace(config.run, num_workers=workers))
    return pretrain_shown(store, folder, config, resume=resume, device=device, watch=watch)


def read_settings(path: Path | None, name: Recipe | None, *, resumed: Path | None = None) -> PretrainConfig:
    """Return a recipe (by default `DEFAULT_RECIPE`), changed by a TOML file.

    Args:
        path: The file, if there is one.
        name: The recipe, if one is named.
        resumed: Folder of a run that is resumed; its own settings are used if no others are named.
    """
    if resumed and not path and not name:
        path = resumed / CONFIG
        if not path.exists():
            raise CommandError(f"{resumed}: no run here to go on with. Leave out --resume to begin one")
    base = recipe(name or DEFAULT_RECIPE)
    if not path:
        return base
    tables = read_tables(path, [table.name for table in fields(base)])
    parts: dict[str, Any] = {
        table: parse_config(values, type(getattr(base, table)), where=f"[{table}]", base=getattr(base, table))
        for table, values in tables.items()
    }
    return replace(base, **parts)


def pretrain_for_demo(store: Path, folder: Path, *, steps: int, workers: int) -> Pretraining:
    """Pretrain briefly, to show that the loss falls; an earlier demo that was stopped is resumed.

    Args:
        store: The store.
        folder: Folder of the run.
        steps: Number of steps.
        workers: Processes that read samples.
    """
    config = recipe("small")
    config = replace(
        config,
        data=replace(config.data, holdout_fraction=0.0),  # there are few scans, and no label is read
        optimisation=replace(config.optimisation, num_steps=steps),
        run=replace(config.run, num_workers=workers, evaluate_every=0, draw_every=steps),
    )
    begun = (folder / RECORD).exists()
    return pretrain_shown(store, folder, config, resume=begun, again="the same command")


def pretrain_shown(
    store: StorePath,
    folder: Path,
    config: PretrainConfig,
    *,
    resume: bool = False,
    device: DeviceName = "auto",
    again: str = "the same command with --resume",
    watch: bool = False,
) -> Pretraining:
    """Pretrain with progress on stderr; print the results, or the command (`again`) to resume."""
    say_where_to_look(folder)
    with watched_run(folder, watch) as page, shown("pretrain", page) as show:
        done = pretrain(
            store,
            folder,
            config,
            resume=resume,
            device=device,
            callbacks=Callbacks(progress=show, precision=print_precision),
        )
    if done.is_first:
        print_result(config, done, again)
    return done


def say_where_to_look(folder: Path) -> None:
    """Print where a run can be watched."""
    print(f"to look: tensorboard --logdir {folder}; mass inspect {folder}", file=sys.stderr)


def print_result(config: PretrainConfig, done: Pretraining, again: str) -> None:
    """Print the results of a pretraining."""
    result = done.result
    columns = ("steps", "scans", "loss, first tenth", "loss, last tenth", "samples/s", "waiting for data")
    row = (
        f"{result.step}/{config.optimisation.num_steps}",
        done.num_scans,
        decimals(result.first_loss),
        decimals(result.last_loss),
        f"{result.samples_per_second:.2f}",
        f"{100 * result.data_wait_fraction:.1f} %",
    )
    print_table("pretrained", columns, [row])
    if done.weights:
        print(f"weights: {done.weights}")
    else:
        print(f"stopped and saved at step {result.step}; {again} goes on from here")


def to_document(folder: Path, done: Pretraining) -> dict[str, Any]:
    """Return the results of a pretraining, for --json."""
    result = done.result
    return {
        "run": str(folder),
        "num_scans": done.num_scans,
        "resumed": done.resumed,
        "step": result.step,
        "complete": result.complete,
        "first_loss": json_number(result.first_loss),
        "last_loss": json_number(result.last_loss),
        "seconds": result.seconds,
        "samples_per_second": result.samples_per_second,
        "data_wait_fraction": result.data_wait_fraction,
        "precision": done.precision.to_json(),
        "weights": str(done.weights) if done.weights else None,
    }
