"""`mass segment`: references with masks, raw targets, and for each target a result on its own grid.

*Writes* DIR/NAME_seg.SUFFIX (labels), DIR/NAME_seg.png (a picture) and, on request,
DIR/NAME_prob_VALUE.SUFFIX for each structure. A target's files are made in a hidden folder and renamed once
all of them are complete; if it fails or is interrupted, nothing of it is written.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from commands.progress import Step, TargetProgress
from commands.terminal import CommandError, print_failures, print_table, shown
from pipeline.discovery import Source, distinct_ids
from pipeline.errors import Failure, NoSuchFrame, ScanError
from pipeline.ingest import IngestConfig, find_one, find_targets, ingest_config, load_source
from training.engine import choose_device
from training.errors import TrainingError
from training.inference import (
    Found,
    InferenceConfig,
    Segmentation,
    SegmentConfig,
    Segmenter,
    Structure,
    draw_cases,
    inference_for,
    load_finetuned,
)
from training.network import PUBLISHED_SPACING_MM, TrainedOn, load_checkpoint

NO_NETWORK = "none"
"""Given in place of a checkpoint: references are carried over without a network."""
_CHOOSE_FRAME = "Choose one with --frame N, counted from 0"
_STEPS: dict[str, tuple[Step, ...]] = {
    "network": ("windows",),
    "registration": ("references",),
    "both": ("windows", "references"),
}
"""Steps that are counted for a target, in order, by method."""
_LISTED_STRUCTURES = 6
"""Most structures that the table lists for a target, the largest first."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Result of one target."""

    scan_id: str
    location: str
    labels: Path
    picture: Path
    probabilities: tuple[Path, ...]
    volumes_ml: dict[str, float]
    """Volume of each requested structure, by name and label value."""
    modality: str
    modality_origin: str
    seconds: float
    agreement: float | None
    """Agreement of the images, if masks were carried over by registration."""
    confidences: dict[str, float]
    """Estimated Dice of each structure, 0..1, if masks were carried over."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            **asdict(self),
            "labels": str(self.labels),
            "picture": str(self.picture),
            "probabilities": [str(path) for path in self.probabilities],
        }


def run_segment(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass segment`; return the exit code and the results for --json."""
    make = _segmenter_of_tokens if arguments.finetuned else _segmenter_of_references
    segmenter, ingest, trained_on = make(arguments)
    for name, note in _first_notes(arguments, trained_on, segmenter):
        print(f"{name}: {note}")
    with ended_by_sigterm():
        return segment_targets(segmenter, arguments, ingest)


def _segmenter_of_references(arguments: Namespace) -> tuple[Segmenter, IngestConfig, TrainedOn]:
    """Return a segmenter of the structures that references show."""
    pairs = _pairs(arguments.reference_image, arguments.reference_mask)
    device = choose_device(arguments.device)
    net, trained_on = None, TrainedOn()
    if not _is_none(arguments.checkpoint):
        net = load_checkpoint(arguments.checkpoint, weights=arguments.weights).to(device)
        trained_on = net.trained_on
    elif arguments.by not in (None, "registration"):
        raise CommandError(
            f"--by {arguments.by} asks a network. Name a checkpoint in place of {NO_NETWORK!r}"
        )
    config, ingest = settings(arguments, trained_on)
    try:
        references = [
            load_source(find_one(image, ingest), ingest, mask=mask, modality=arguments.modality)
            for image, mask in pairs
        ]
    except NoSuchFrame as error:
        raise NoSuchFrame(error.reason, path=error.path, remedy=_CHOOSE_FRAME) from None
    segmenter = Segmenter.from_references(net, references, config, labels=arguments.label, device=device)
    return segmenter, ingest, trained_on


def _is_none(checkpoint: Path) -> bool:
    return str(checkpoint) == NO_NETWORK


def _segmenter_of_tokens(arguments: Namespace) -> tuple[Segmenter, IngestConfig, TrainedOn]:
    """Return a segmenter of the structures that a network was fine-tuned on."""
    if arguments.reference_image or arguments.reference_mask:
        raise CommandError("--finetuned: such a network needs no references. Leave them or --finetuned out")
    if arguments.by not in (None, "network"):
        raise CommandError(
            f"--by {arguments.by} carries references over; --finetuned has none. Leave one of them out"
        )
    if _is_none(arguments.checkpoint):
        raise CommandError(f"--finetuned needs a network. Name its run in place of {NO_NETWORK!r}")
    tuned = load_finetuned(arguments.checkpoint, weights=arguments.weights)
    config, ingest = settings(arguments, tuned.net.trained_on)
    device = choose_device(arguments.device)
    segmenter = Segmenter.from_finetuned(tuned, config, labels=arguments.label, device=device)
    return segmenter, ingest, tuned.net.trained_on


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM raise an exception inside the block, so that no incomplete file is left."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def settings(arguments: Namespace, trained_on: TrainedOn) -> tuple[SegmentConfig, IngestConfig]:
    """Return the settings of segmentation and ingest: those of the training, changed by the options."""
    changes: dict[str, Any] = {"mirror": arguments.mirror, "overlap_fraction": arguments.overlap}
    if arguments.finetuned:
        changes["threshold"] = InferenceConfig.threshold
    inference = inference_for(trained_on, **changes)
    if arguments.window:
        z, y, x = arguments.window
        inference = replace(inference, window_voxels=(z, y, x))
    config = SegmentConfig(
        inference=inference,
        by=arguments.by or _default_method(arguments),
        largest_component=arguments.largest_component,
        across_modalities=arguments.across_modalities,
    )
    ingest = ingest_config(trained_on.ingest_settings, spacing_mm=arguments.spacing)
    if arguments.resample_mask:
        ingest = replace(ingest, resample_labels=True)
    return config, ingest if arguments.frame is None else replace(ingest, frame=arguments.frame)


def _default_method(arguments: Namespace) -> Literal["network", "registration", "both"]:
    if arguments.finetuned:
        return "network"
    return "registration" if _is_none(arguments.checkpoint) else "both"


def _pairs(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    if not images or len(images) != len(masks):
        raise CommandError(
            f"each reference is an image and its mask, got {len(images)} --reference-image and {len(masks)} "
            "--reference-mask. Give them in pairs, in the same order (or --finetuned, which needs none)"
        )
    return list(zip(images, masks, strict=True))


def _first_notes(
    arguments: Namespace, trained_on: TrainedOn, segmenter: Segmenter
) -> Iterator[tuple[str, str]]:
    """Yield notes to print before the first target, each with its kind."""
    if trained_on.spacing_mm is None and arguments.spacing is None and not _is_none(arguments.checkpoint):
        yield (
            "note",
            "the checkpoint does not say the voxel size of its training; the published "
            f"{PUBLISHED_SPACING_MM:g} mm are taken (--spacing MM sets another)",
        )
    names = [f"{s.name} ({s.values[0]})" for s in segmenter.structures]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    yield "looking for", ", ".join(names[:12]) + more
    if segmenter.missing:
        lost = ", ".join(str(s.values[0]) for s in segmenter.missing)
        yield "note", f"nothing of label {lost} is left in the references at this spacing: not looked for"


# ---------------------------------------------------------------- the targets


def segment_targets(
    segmenter: Segmenter, arguments: Namespace, ingest: IngestConfig
) -> tuple[int, dict[str, Any]]:
    """Segment every target; failures do not stop the others. Return the exit code and the results.

    Args:
        segmenter: The segmenter.
        arguments: `targets`, `out`, `probabilities`, `modality`.
        ingest: Settings of the targets' preparation.
    """
    sources, failed = collect_targets(arguments.targets, ingest)
    written: list[Written] = []
    began = time.monotonic()
    code = 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        with shown("segment") as show:
            for number, source in enumerate(sources, start=1):
                at = TargetProgress(
                    target=number,
                    num_targets=len(sources),
                    name=source.scan_id,
                    done=0,
                    total=0,
                    seconds=time.monotonic() - began,
                    failed=len(failed),
                )
                try:
                    written.append(_segment_one(segmenter, source, arguments, ingest, at, show))
                except (ScanError, TrainingError, OSError, RuntimeError, MemoryError) as error:
                    failed.append(_failure(source, error))
    except KeyboardInterrupt:
        print("interrupted: the targets in the table are complete, of the others nothing was written")
        code = 130
    failed = [_with_own_remedy(failure) for failure in failed]
    _print_targets(written)
    print_failures(failed)
    document = {
        "targets": [one.to_json() for one in written],
        "failed": [asdict(failure) for failure in failed],
        "spacing_mm": ingest.spacing_mm,
        "window_voxels": list(segmenter.config.inference.window_voxels),
        "structures": {str(s.values[0]): s.name for s in segmenter.structures},
        "not_in_references": [s.values[0] for s in segmenter.missing],
        "interrupted": code == 130,
        "seconds": time.monotonic() - began,
    }
    return code or int(bool(failed)), document


def collect_targets(targets: Sequence[Path], config: IngestConfig) -> tuple[list[Source], list[Failure]]:
    """Return the scans at some paths, each with an id of its own, and failures of the rest."""
    found: dict[str, Source] = {}
    failed: list[Failure] = []
    for target in dict.fromkeys(targets):
        try:
            there = find_targets(target, config)
        except ScanError as error:
            failed.append(Failure.of(error, scan_id=target.name, location=str(target)))
            continue
        found |= {f"{target} {source.location}": source for source in there.sources}
        failed.extend(there.failures)
    ids = distinct_ids({key: source.scan_id for key, source in found.items()})
    return [replace(source, scan_id=ids[key]) for key, source in found.items()], failed


def _segment_one(
    segmenter: Segmenter,
    source: Source,
    arguments: Namespace,
    ingest: IngestConfig,
    at: TargetProgress,
    show: Callable[[TargetProgress], None],
) -> Written:
    """Read, segment and write one target; return its result."""
    began = time.monotonic()
    show(at)
    scan = load_source(source, ingest, modality=arguments.modality)
    show_step = _step_callback(at, _STEPS[segmenter.config.by], began, show)

    with staged(arguments.out, source.scan_id) as folder:

        def keep(structure: Structure, probability: NDArray[np.float32]) -> None:
            scan.write(folder / f"{source.scan_id}_prob_{structure.values[0]}{scan.suffix}", probability)

        result = segmenter.segment(
            scan,
            on_probability=keep if arguments.probabilities else None,
            progress=show_step,
        )
        labels = folder / f"{source.scan_id}_seg{scan.suffix}"
        result.save(labels)
        picture = folder / f"{source.scan_id}_seg.png"
        draw_cases(result.cases()).save(picture)
    return Written(
        scan_id=source.scan_id,
        location=source.location,
        labels=arguments.out / labels.name,
        picture=arguments.out / picture.name,
        probabilities=tuple(
            arguments.out / f"{source.scan_id}_prob_{found.structure.values[0]}{scan.suffix}"
            for found in result.found
            if arguments.probabilities
        ),
        volumes_ml=_volumes(result),
        modality=scan.modality,
        modality_origin=scan.modality_origin,
        seconds=time.monotonic() - began,
        agreement=result.agreement,
        confidences={_named(one): one.confidence for one in result.found if one.confidence is not None},
        notes=result.notes,
    )


def _step_callback(
    at: TargetProgress, steps: tuple[Step, ...], began: float, show: Callable[[TargetProgress], None]
) -> Callable[[Step, int, int], None]:
    """Return a function that shows each step of a target; `began` is when reading it began."""
    step_began: dict[Step, float] = {steps[0]: time.monotonic()}

    def show_step(step: Step, done: int, total: int) -> None:
        now = time.monotonic()
        show(
            replace(
                at,
                step=step,
                steps=steps,
                done=done,
                total=total,
                seconds=at.seconds + now - began,
                step_seconds=now - step_began.setdefault(step, now),
            )
        )

    return show_step


def _volumes(result: Segmentation) -> dict[str, float]:
    return {_named(one): one.volume_ml for one in result.found}


def _named(found: Found) -> str:
    return f"{found.structure.name} ({found.structure.values[0]})"


@contextmanager
def staged(out: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder; its files are moved to `out` at the end of the block, unless it fails."""
    folder = out / f".{name}.{os.getpid()}.part"
    folder.mkdir(parents=True)
    try:
        yield folder
        files = sorted(folder.iterdir())
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path in files:
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder)


def _failure(source: Source, error: BaseException) -> Failure:
    """Return the failure of a target."""
    if isinstance(error, ScanError):
        return Failure.of(error, scan_id=source.scan_id, location=source.location)
    reason, remedy = str(error), ""
    if isinstance(error, TrainingError):
        reason = reason.removeprefix(f"{source.location}: ")
        reason, _, remedy = reason.partition(". ")
    elif isinstance(error, MemoryError) or "memory" in reason.lower():
        reason = "there is not enough memory for this scan"
        remedy = "Use a larger --spacing or a smaller --window"
    elif isinstance(error, OSError):
        reason = f"its result cannot be written ({error.strerror or error})"
        remedy = "Check the folder of --out, and the space on its disk"
    else:
        reason = f"{type(error).__name__}: {reason.splitlines()[0] if reason else ''}"
        remedy = "Check the space on the disk of --out; else this is a bug in mass3d, please report it"
    return Failure(
        scan_id=source.scan_id,
        location=source.location,
        reason=reason,
        remedy=remedy,
        kind=type(error).__name__,
    )


def _with_own_remedy(failure: Failure) -> Failure:
    """Return the failure with a remedy for this command: there is no manifest here to choose a frame in."""
    return replace(failure, remedy=_CHOOSE_FRAME) if failure.kind == NoSuchFrame.__name__ else failure


def _structure_text(one: Written, name: str) -> str:
    """Return a structure's name with its volume and, if known, its confidence."""
    text = f"{name} {one.volumes_ml[name]:.3g}"
    return f"{text} [{one.confidences[name]:.2f}]" if name in one.confidences else text


def _print_targets(written: Sequence[Written]) -> None:
    if not written:
        return
    rows = []
    for one in written:
        largest = sorted(one.volumes_ml.items(), key=lambda item: -item[1])
        listed = ", ".join(_structure_text(one, name) for name, _ in largest[:_LISTED_STRUCTURES])
        more = f" and {len(largest) - _LISTED_STRUCTURES} more" if len(largest) > _LISTED_STRUCTURES else ""
        modality = one.modality + (", guessed" if one.modality_origin.startswith("guess") else "")
        rows.append((one.scan_id, modality, listed + more, f"{one.seconds:.1f}", str(one.labels)))
    print_table(
        f"segmented ({len(written)})",
        ("target", "modality", "ml of structures [confidence]", "seconds", "file"),
        rows,
    )
    for one in written:
        for note in one.notes:
            print(f"{one.scan_id}: {note}")
