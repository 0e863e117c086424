"""`mass carry`: labels of a few scans, carried over to others by registration, for `mass finetune`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from shlex import join
from typing import Any

import numpy as np

from commands.progress import Progress
from commands.terminal import print_table, shown
from storage import open_store
from training.errors import DataError
from training.finetuning import (
    TARGETS,
    CarriedScan,
    CarryPlan,
    FinetuneTaskConfig,
    carry_labels,
    plan_carrying,
    read_carried_table,
)
from training.inference import LOW_CONFIDENCE

_LISTED = 5
"""Most scans that are listed, of each kind."""


def run_carry(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass carry`; return the exit code and the results for --json."""
    folder: Path = arguments.carried_folder
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: there is a file of this name. Name a new folder")
    config = FinetuneTaskConfig(
        label=arguments.label or "",
        values=tuple(arguments.values or ()),
        datasets=tuple(arguments.dataset or ()),
        scans=tuple(arguments.scans or ()),
        num_scans=arguments.num or 0,
        scan_seed=arguments.seed or 0,
    )
    store = open_store(arguments.store)
    plan = plan_carrying(
        store,
        config,
        targets=arguments.to or (),
        kept_out=arguments.held_out or (),
        most=TARGETS if arguments.most is None else arguments.most,
    )
    question = plan.question
    names = [f"{value} {name}".removesuffix(f" {value}") for value, name in question.names.items()]
    print(f"label map {question.label!r}: {', '.join(names)}")
    print(
        f"from {len(question.references)} labelled scans ({_listed(list(question.references))}) "
        f"to {len(plan.targets)}"
    )
    made = _carry(arguments, plan)
    digests = {scan_id: entry.digest for scan_id, entry in store.entries.items()}
    _print_result(arguments, plan, made, digests)
    return int(any(one.error for one in made)), {
        "store": str(arguments.store),
        "folder": str(folder),
        "label": plan.question.label,
        "references": sorted(plan.question.references),
        "scans": [
            {
                "scan": one.scan_id,
                "confidences": {str(value): number for value, number in one.confidences.items()},
                "kept": one.kept,
                "error": one.error,
            }
            for one in made
        ],
    }


def _carry(arguments: Namespace, plan: CarryPlan) -> list[CarriedScan]:
    """Carry all labels over, with progress shown."""
    began = time.monotonic()
    made: list[CarriedScan] = []
    with shown("carry") as show:
        show(Progress.of_equals(0, len(plan.targets), 0.0, unit="scan"))
        for one in carry_labels(
            arguments.store, arguments.carried_folder, plan, workers=arguments.workers or 1
        ):
            made.append(one)
            failed = sum(bool(each.error) for each in made)
            seconds = time.monotonic() - began
            show(Progress.of_equals(len(made), len(plan.targets), seconds, failed=failed, unit="scan"))
    return sorted(made, key=lambda one: one.scan_id)


def _print_result(
    arguments: Namespace, plan: CarryPlan, made: list[CarriedScan], digests: Mapping[str, str]
) -> None:
    """Print the confidences, the scans to look at, and the next command."""
    folder = arguments.carried_folder
    good = [one for one in made if not one.error]
    rows = []
    for value, name in plan.question.names.items():
        found = [one.confidences[value] for one in good]
        low = sum(number < LOW_CONFIDENCE for number in found)
        rows.append((name, f"{np.median(found):.2f}" if found else "", f"{low} of {len(found)}"))
    columns = ("structure", "median confidence", f"scans below {LOW_CONFIDENCE:g}")
    print_table(f"{folder}: labels carried over, confidence an estimate of the Dice", columns, rows)
    kept = sum(one.kept for one in good)
    if kept:
        print(f"{kept} of {len(good)} were there before")
    for one in [one for one in made if one.error][:_LISTED]:
        print(f"failed: {one.scan_id}: {one.error}")
    unsure = sorted(good, key=lambda one: one.confidence)[:_LISTED]
    print(
        f"look at {folder}/ID.png; of least confidence are "
        f"{', '.join(f'{one.scan_id} {one.confidence:.2f}' for one in unsure)}"
        if unsure
        else "nothing was carried over"
    )
    if good:
        _print_next(arguments, digests)


def _print_next(arguments: Namespace, digests: Mapping[str, str]) -> None:
    """Print how many label maps of the folder are trained on, and the command that does it."""
    folder, least = arguments.carried_folder, FinetuneTaskConfig().least_confidence
    try:
        numbers = read_carried_table(folder, digests).confidences.values()
    except DataError as error:  # of a map from before
        print(f"warning: {error}")
        return
    used = sum(number >= least for number in numbers)
    if not used:
        print(
            f"none has a mean confidence of {least:g}: train on the labelled scans alone, or choose others "
            "to carry over from"
        )
        return
    command = ["mass", "finetune", "small-v1", str(arguments.store), "TUNED", "--from-scratch"]
    command += ["--carried", str(folder)]
    if arguments.held_out:
        command += ["--held-out", *arguments.held_out]
    print(
        f"{used} of the {len(numbers)} label maps in the folder have a mean confidence of {least:g} or more "
        "and are trained on; [finetune] exclude leaves others out\n"
        f"next: {join(command)}\n"
        "or, better, with the folder of a `mass pretrain` of this store in place of small-v1, and without "
        "--from-scratch"
    )


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return ", ".join(ids[:_LISTED]) + more
