"""`mass demo`: all stages on the bundled scans, to the segmentation of one that was kept out.

The last parts are a short fine-tuning; the segmentation, from its file, of a scan that was not trained on;
and that of a whole head from one labelled head, with the weights that come with the project.

*Reads* a store with labels, pretrained weights, and the raw file of a scan that is not in the store, with the
label map that an expert drew of it. *Writes* the run of the fine-tuning; NAME_seg with the labels on the
scan's own grid, and NAME_seg.png: on the left the expert's outlines, on the right these in blue and the
predicted ones in orange.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands import pretrain
from commands.arguments import EXAMPLES
from commands.finetune import FinetuneProgress, print_result, to_document
from commands.inspect import inspect_store
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings, print_report
from commands.prepare.work import Options
from commands.pretrain import pretrain_for_demo
from commands.score import score_scans
from commands.terminal import CommandError, print_precision, print_table
from pipeline.ingest import LoadedScan, find_one, ingest_config, load_source, read_own_labels
from pipeline.quality import summarize, to_markdown
from storage import open_store
from training.engine import RECORD, Callbacks
from training.finetuning import FinetuneConfig, Finetuning, LabelledScans, finetune, finetune_recipe
from training.inference import (
    Labels,
    Reference,
    Segmentation,
    SegmentConfig,
    Segmenter,
    draw_cases,
    encode_references,
    inference_for,
    load_finetuned,
)
from training.network import load_checkpoint

_WEIGHTS = "small-v1"
"""Weights of the last step, which come with the project."""
_HEAD_MM = 3.0
"""Voxel edge at which the bundled heads are stored and segmented."""
_LOW_DICE = 0.5
"""If the Dice is lower, the demo says that the training was too short."""


def run_demo(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass demo`; return the exit code and the results for --json."""
    if not arguments.raw.exists():
        raise CommandError(
            f"{arguments.raw}: no bundled scans here. Run `mass demo` from a checkout, or give --raw"
        )
    began = time.monotonic()
    code, document = demonstrate_proposals(arguments)
    if arguments.steps:
        ended, results = demonstrate_training(arguments)
        document |= results
        code = code or ended
        if not code and arguments.raw == EXAMPLES:
            document["whole_scan"] = demonstrate_whole_scan(
                arguments.run_folder.with_name(f"{arguments.run_folder.name}-head")
            )
    print(f"done in {time.monotonic() - began:.0f} s")
    return code, document


def demonstrate_proposals(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Prepare, score, draw; return the exit code and the results for --json."""
    print(f"1. prepare {arguments.raw} in {arguments.store}")
    options = Options(workers=arguments.workers)
    report = prepare_store(arguments.raw, arguments.store, Settings.read(None), options)
    print_report(report)
    print("2. score the proposals against the labels")
    ids = open_store(arguments.store).scan_ids
    scores, damaged = score_scans(arguments.store, ids, slic=False, workers=1)
    print(to_markdown(summarize(scores)).split("## By structure")[0])
    print("3. draw pictures")
    written, _ = inspect_store(arguments.store, [], arguments.out, full=3)
    print(f"page: {written[0]}\npicture: {written[1]}")
    document = report.to_json() | {"written": [str(path) for path in written]}
    return report.exit_code or int(bool(damaged)), document


def demonstrate_training(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Pretrain, fine-tune, segment the scan kept out; return the exit code and the results for --json."""
    unseen, datasets = bundled_or_named(arguments)
    if unseen:
        check_unseen(arguments.store, unseen)
    print(f"4. pretrain a small network for {arguments.steps} steps, in {arguments.run_folder}")
    done = pretrain_for_demo(
        arguments.store, arguments.run_folder, steps=arguments.steps, workers=arguments.workers
    )
    document: dict[str, Any] = {"pretrain": pretrain.to_document(arguments.run_folder, done)}
    code = 128 + done.result.signal_number if done.result.signal_number else 0
    if done.weights and unseen:
        ended, results = demonstrate_use(
            arguments.store,
            done.weights,
            unseen,
            arguments.run_folder,
            datasets=datasets,
            steps=arguments.finetune_steps,
            workers=arguments.workers,
        )
        document |= results
        code = code or ended
    return code, document


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A raw scan that is not in the store, and an expert's label map of it."""

    image: Path
    mask: Path


def bundled_or_named(arguments: Namespace) -> tuple[Unseen | None, tuple[str, ...]]:
    """Return the scan to segment, if there is one, and the data sets to fine-tune on; bundled or named."""
    datasets = (arguments.dataset,) if arguments.dataset else ()
    if arguments.unseen:
        image, mask = arguments.unseen
        return Unseen(image=image, mask=mask), datasets
    if arguments.raw != EXAMPLES:
        return None, datasets
    folder = EXAMPLES.parent / "unseen"
    bundled = Unseen(image=folder / "hippocampus_014.nii.gz", mask=folder / "hippocampus_014_label.nii.gz")
    return bundled, datasets or ("hippocampus",)


def check_unseen(store: Path, unseen: Unseen) -> str:
    """Return the id of the scan to segment.

    Raises:
        CommandError: The store has it.
    """
    name = find_one(unseen.image, ingest_config(None)).scan_id
    if name in open_store(store).entries:
        raise CommandError(f"{unseen.image}: a scan {name} is in {store}. Name one that was not prepared")
    return name


def demonstrate_use(
    store: Path,
    pretrained: Path,
    unseen: Unseen,
    folder: Path,
    *,
    datasets: Sequence[str],
    steps: int,
    workers: int,
) -> tuple[int, dict[str, Any]]:
    """Fine-tune briefly, then segment the unseen scan; return the exit code and the results for --json.

    Args:
        store: Store with labelled scans.
        pretrained: Weights to start from.
        unseen: The scan to segment.
        folder: Beginning of the names of the folders written: FOLDER-finetuned and FOLDER-unseen.
        datasets: Data sets whose labels are learnt; empty: all.
        steps: Steps of the fine-tuning.
        workers: Processes that read samples.
    """
    run, out = (folder.with_name(f"{folder.name}-{part}") for part in ("finetuned", "unseen"))
    print(f"5. fine-tune the network on labelled scans for {steps} steps, in {run}")
    config = settings(datasets, steps=steps, workers=workers)
    with FinetuneProgress() as show:
        done = finetune(
            pretrained,
            store,
            run,
            config,
            resume=(run / RECORD).exists(),
            callbacks=Callbacks(progress=show.steps, scan=show.scans, precision=print_precision),
        )
    print_result(config, done, "the same command")
    document: dict[str, Any] = {"finetune": to_document(run, config, done)}
    if not done.weights:
        return 128 + done.result.signal_number, document
    name = check_unseen(store, unseen)
    print(f"6. segment {name}, which was neither prepared nor trained on, from its file {unseen.image}")
    document["unseen"] = segment_unseen(store, pretrained, done, unseen, out)
    modality = done.scans.modalities[0]
    print(f"again: mass segment {run} --finetuned {unseen.image} --modality {modality} --again --out {out}")
    return 0, document


def demonstrate_whole_scan(out: Path) -> dict[str, Any]:
    """Segment a whole head from one labelled head with the shipped weights; return the results.

    Args:
        out: Folder to write to.
    """
    folder = EXAMPLES.parent / "heads"
    reference, mask = folder / "head_01.nii.gz", folder / "head_01_label.nii.gz"
    target, truth = folder / "head_03.nii.gz", folder / "head_03_label.nii.gz"
    print(f"7. one labelled head is enough: segment {target} as {reference} and its mask show")
    began = time.monotonic()
    net = load_checkpoint(_WEIGHTS)
    ingest = ingest_config(net.trained_on.ingest_settings, spacing_mm=_HEAD_MM)
    source, pair = find_one(target, ingest), find_one(reference, ingest)
    shown = load_source(pair, ingest, mask=mask, modality="mr")
    config = SegmentConfig(by="both", across_modalities=True)
    result = Segmenter.from_references(net, [shown], config).segment(
        load_source(source, ingest, modality="mr")
    )
    expected = read_own_labels(source, ingest, truth)
    copied = _copied(read_own_labels(pair, ingest, mask), expected.shape)
    dice = result.dice(expected)
    rows = [
        (
            found.structure.name,
            f"{dice[value]:.2f}",
            f"{_dice(copied == value, expected == value):.2f}",
            f"{found.confidence or 0:.2f}",
        )
        for found in result.found
        if (value := found.structure.values[0]) in dice
    ]
    out.mkdir(parents=True, exist_ok=True)
    result.save(out / "head_03_seg.nii.gz")
    draw_cases(result.cases_against(expected)).save(out / "head_03_seg.png")
    columns = ("structure", "Dice", "copied", "confidence")
    print_table(f"one-shot, in {time.monotonic() - began:.0f} s", columns, rows)
    print(f"labels: {out / 'head_03_seg.nii.gz'}\npicture: {out / 'head_03_seg.png'}")
    options = f"--reference-image {reference} --reference-mask {mask} --modality mr --spacing {_HEAD_MM:g}"
    print(f"again: mass segment {_WEIGHTS} {options} {target} --again --out {out}")
    return {"dice": {found.structure.name: dice.get(found.structure.values[0]) for found in result.found}}


def _copied(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return labels copied to a grid of another shape, centre on centre: the simplest baseline."""
    pads = [
        (max(0, (new - old) // 2), max(0, new - old - (new - old) // 2))
        for old, new in zip(labels.shape, shape, strict=True)
    ]
    padded = np.pad(labels, pads)
    starts = [(old - new) // 2 for old, new in zip(padded.shape, shape, strict=True)]
    part = tuple(slice(start, start + new) for start, new in zip(starts, shape, strict=True))
    return np.asarray(padded[part])


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return 2 * int((first & second).sum()) / max(1, int(first.sum() + second.sum()))


def settings(datasets: Sequence[str], *, steps: int, workers: int) -> FinetuneConfig:
    """Return the small recipe for few steps: structures in every sample, larger steps, shorter average."""
    base = finetune_recipe("small")
    return replace(
        base,
        finetune=replace(base.finetune, datasets=tuple(datasets), holdout_fraction=0.0),
        data=replace(base.data, foreground_fraction=1.0),
        optimisation=replace(base.optimisation, num_steps=steps, peak_rate=3e-3, ema_decay=0.97),
        run=replace(base.run, num_workers=workers, evaluate_every=0, draw_every=steps),
    )


def segment_unseen(
    store: Path, pretrained: Path, done: Finetuning, unseen: Unseen, out: Path
) -> dict[str, Any]:
    """Segment a raw scan with the fine-tuned network; print and return its Dice; write labels and picture."""
    assert done.weights is not None
    tuned = load_finetuned(done.weights)
    ingest = ingest_config(tuned.net.trained_on.ingest_settings)
    source = find_one(unseen.image, ingest)
    scan = load_source(source, ingest, modality=tuned.modalities[0] if len(tuned.modalities) == 1 else None)
    expected = read_own_labels(source, ingest, unseen.mask)
    segmenter = Segmenter.from_finetuned(tuned, SegmentConfig(across_modalities=True))
    result = segmenter.segment(scan)
    one_shot = in_context(store, pretrained, done.scans, scan).dice(expected)
    return _print_dice(result, expected, one_shot, done.scans.training[0], out)


def in_context(store: Path, pretrained: Path, scans: LabelledScans, target: LoadedScan) -> Segmentation:
    """Return the segmentation in context with one labelled scan, before any fine-tuning."""
    net = load_checkpoint(pretrained)
    inference = inference_for(net.trained_on)
    config = SegmentConfig(inference=inference, across_modalities=True)
    shown = open_store(store).scan(scans.training[0])
    reference = Reference(image=shown.image(normalize=True), labels=shown.labels(scans.label))
    prompt = encode_references(net, [reference], scans.structures, inference)
    return Segmenter(net, prompt, config, references=[reference]).segment(target)


def _print_dice(
    result: Segmentation, expected: Labels, one_shot: dict[int, float], reference: str, out: Path
) -> dict[str, Any]:
    """Write labels and picture; print the Dice of each structure, also where it is low."""
    name, dice = result.scan.scan_id, result.dice(expected)
    labels, picture = out / f"{name}_seg{result.scan.suffix}", out / f"{name}_seg.png"
    out.mkdir(parents=True, exist_ok=True)
    result.save(labels)
    draw_cases(result.cases_against(expected)).save(picture)
    names = {found.structure.values[0]: found.structure.name for found in result.found}
    rows = [
        (f"{names[value]} ({value})", f"{dice[value]:.3f}", f"{one_shot.get(value, 0.0):.3f}")
        for value in dice
    ]
    mean, before = (sum(some.get(v, 0.0) for v in dice) / max(1, len(dice)) for some in (dice, one_shot))
    rows.append(("mean", f"{mean:.3f}", f"{before:.3f}"))
    drawn, there = result.labels > 0, np.isin(expected, list(dice))
    together = 2 * int((drawn & there).sum()) / max(1, int(drawn.sum() + there.sum()))
    rows.append(("all together, as one", f"{together:.3f}", ""))
    columns = ("structure", "Dice, fine-tuned", f"Dice before, shown {reference}")
    print_table(f"{name}, on its own grid, against the expert's labels", columns, rows)
    if before < _LOW_DICE:
        print(
            f"In context, shown one labelled scan and not fine-tuned, the network reaches a Dice of "
            f"{before:.2f}: so short a pretraining does not segment yet. "
            "It shows the way, not what the method can do."
        )
    if mean < _LOW_DICE:
        print(f"Fine-tuned as briefly it reaches {mean:.2f}: look at the picture, and train longer.")
    print(f"labels: {labels}")
    print(f"picture: {picture} (left: the expert's mask; right: blue the expert's, orange what was drawn)")
    return {
        "scan": name,
        "dice": {names[value]: dice[value] for value in dice},
        "mean_dice": mean,
        "dice_as_one": together,
        "one_shot_dice": {names[value]: one_shot.get(value, 0.0) for value in dice},
        "mean_one_shot_dice": before,
        "one_shot_reference": reference,
        "labels": str(labels),
        "picture": str(picture),
    }
