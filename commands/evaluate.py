"""`mass evaluate`: in-context evaluation of a checkpoint on the labelled scans of a store."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.pages.evaluation import evaluation_page
from commands.pages.predictions import MOST_KEPT, WorstPredictions
from commands.progress import Progress
from commands.terminal import CommandError, print_failures, print_table, shown
from pipeline.errors import Failure
from storage import Store, open_store, write_atomically
from training.engine import choose_device
from training.evaluation import NARROW_COLUMNS, EvaluationConfig, Failed, Table, evaluate_in_context
from training.inference import inference_for
from training.network import TrainedOn, load_checkpoint, preparation_warning

PAGE_BYTES = 18_000_000
"""Most bytes of the packs in the page, before base64."""


@dataclass(frozen=True, kw_only=True)
class ChosenEvaluation:
    """Settings of an evaluation, with a description."""

    config: EvaluationConfig
    ensemble: bool
    """Whether the prompts' probabilities are averaged."""
    how: str
    """References and prompts, in words."""


def run_evaluate(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass evaluate`; return the exit code and the results for --json."""
    began = time.monotonic()
    store = open_store(arguments.store)
    device = choose_device(arguments.device)
    net = load_checkpoint(arguments.checkpoint, weights=arguments.weights).to(device)
    chosen = chosen_evaluation(arguments, store, net.trained_on)
    with shown("evaluate") as show:

        def begins(done: int, total: int, name: str) -> None:
            show(Progress.of_equals(done, total, time.monotonic() - began, in_hand=name))

        worst = WorstPredictions(store, begins, most=MOST_KEPT if arguments.page else 0)
        evaluation = evaluate_in_context(
            net,
            store,
            chosen.config,
            device=device,
            listener=worst,
            ensemble=chosen.ensemble,
            distances=True,
            keep_going=True,
        )
    table = Table.of(evaluation, num_resamples=arguments.resamples, seed=arguments.seed)
    facts = facts_of(arguments, store, chosen, net.trained_on)
    _print_table(arguments, table, facts)
    document = {
        "checkpoint": str(arguments.checkpoint),
        "store": str(arguments.store),
        "references": arguments.references,
        "shots": chosen.config.shots,
        "num_prompts": chosen.config.num_prompts,
        "seed": arguments.seed,
        "window_voxels": list(chosen.config.inference.window_voxels),
        "mirror": arguments.mirror,
        "facts": facts,
        **table.to_json(),
        "seconds": time.monotonic() - began,
    }
    if arguments.page:
        packs = worst.packs(PAGE_BYTES)
        title = f"{arguments.checkpoint.name} in {store.name}"
        _write(arguments.page, evaluation_page(title, document, packs=packs, shown=worst.shown))
        print(f"written: {arguments.page}")
    return int(bool(evaluation.failed)), document


def chosen_evaluation(arguments: Namespace, store: Store, trained_on: TrainedOn) -> ChosenEvaluation:
    """Return the references and targets to evaluate, from the command's options.

    Raises:
        CommandError: No such data set or label map, or references and targets that are the same scans.
    """
    labels = {label for entry in store.entries.values() for label in entry.labels}
    datasets = {entry.dataset for entry in store.entries.values() if entry.labels}
    for kind, wanted, there in (
        ("label map", {arguments.label_map} - {""}, labels),
        ("data set with labels", set(arguments.dataset), datasets),
    ):
        if wanted - there:
            listed = ", ".join(sorted(there)) or "none"
            raise CommandError(
                f"{arguments.store}: there is no {kind} {min(wanted - there)!r}. There are: {listed}"
            )
    inference = inference_for(trained_on, mirror=arguments.mirror, overlap_fraction=arguments.overlap)
    if arguments.window:
        z, y, x = arguments.window
        inference = replace(inference, window_voxels=(z, y, x))
    mode, shots = arguments.references, arguments.shots
    references = tuple(arguments.reference)
    if mode == "fixed" and not references:
        references = _first(arguments, store)
    count = 1 if mode == "fixed" else arguments.prompts
    config = EvaluationConfig(
        targets=tuple(arguments.target),
        references=references[:shots] if mode == "fixed" else references,
        num_targets=arguments.targets,
        num_prompts=count,
        shots=shots,
        datasets=tuple(arguments.dataset),
        label=arguments.label_map,
        whole=arguments.whole,
        max_structures=arguments.structures,
        seed=arguments.seed,
        inference=inference,
    )
    scans = f"{shots} scan{'s' if shots > 1 else ''} each" if shots > 1 or mode != "fixed" else "1 scan"
    drawn = "named" if references else "drawn"
    how = {
        "fixed": f"fixed references: {', '.join(config.references)}",
        "random": f"up to {count} {drawn} prompts of {scans}, scored one by one",
        "ensemble": f"up to {count} {drawn} prompts of {scans}, their probabilities averaged",
    }[mode]
    return ChosenEvaluation(config=config, ensemble=mode == "ensemble", how=how)


def _first(arguments: Namespace, store: Store) -> tuple[str, ...]:
    """Return the first labelled scans by id, without chosen targets, of one data set and label map."""
    found: dict[tuple[str, str], list[str]] = {}
    for scan_id, entry in sorted(store.entries.items()):
        if arguments.dataset and entry.dataset not in arguments.dataset:
            continue
        for label in entry.labels:
            if scan_id not in arguments.target and arguments.label_map in ("", label):
                found.setdefault((entry.dataset, label), []).append(scan_id)
    if len(found) > 1:
        listed = ", ".join(" / ".join(names) for names in sorted(found))
        raise CommandError(
            f"{arguments.store}: fixed references are of one data set and label map, there are {len(found)}: "
            f"{listed}. Choose with --dataset and --label-map, or name scans with --reference"
        )
    ids = next(iter(found.values()), [])
    return tuple(ids[: arguments.shots])


def facts_of(
    arguments: Namespace, store: Store, chosen: ChosenEvaluation, trained_on: TrainedOn
) -> list[str]:
    """Return lines on how the evaluation was done, with warnings."""
    config = chosen.config
    window = " x ".join(map(str, config.inference.window_voxels))
    facts = [
        f"checkpoint {arguments.checkpoint} ({arguments.weights}), store {store.name}",
        f"{chosen.how}; seed {config.seed}",
        f"windows of {window} voxels" + (", averaged over mirrorings" if config.inference.mirror else ""),
    ]
    warning = preparation_warning(trained_on, store)
    return [*facts, f"warning: {warning}"] if warning else facts


def _print_table(arguments: Namespace, table: Table, facts: list[str]) -> None:
    """Print the table of structures, and write the requested files."""
    for fact in facts:
        print(fact)
    print_table("found in context", NARROW_COLUMNS, table.narrow_rows())
    if table.evaluation.unprompted:
        print(f"not asked for, since all references of a prompt lack it: {table.evaluation.num_unprompted}")
    title = f"In-context segmentation: {arguments.checkpoint.name}"
    for path, text in (
        (arguments.markdown, table.to_markdown(title, facts)),
        (arguments.csv, table.to_csv()),
    ):
        if path:
            _write(path, text)
            print(f"written: {path}")
    print_failures([_failure(failed) for failed in table.evaluation.failed])


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def _failure(failed: Failed) -> Failure:
    return Failure(
        scan_id=failed.target,
        location=failed.label,
        reason=failed.reason,
        remedy="Run `mass verify` on the store",
        kind="CorruptStore",
    )
