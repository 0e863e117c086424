"""`mass segment`: references with masks, raw targets, and for each target a result on its own grid.

What is written for a target, and what of it is there already: `commands.segmenting.results`. Several targets
at a time: `commands.segmenting.workers`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from commands.progress import Progress, Step, TargetProgress
from commands.segmenting.results import (
    TABLE,
    ResultInTheWayError,
    Written,
    clear_leftovers,
    result_there,
    write_results_table,
)
from commands.segmenting.targets import (
    CHOOSE_FRAME,
    NO_ROOM,
    Job,
    OnStep,
    collect_targets,
    segment_one,
    with_own_remedy,
)
from commands.segmenting.workers import in_workers
from commands.terminal import CommandError, State, counted, print_failures, print_table, shown
from pipeline.discovery import Source
from pipeline.errors import Failure, NoSuchFrame
from pipeline.formats import printable_path
from pipeline.ingest import IngestConfig, find_one, ingest_config, load_source
from training.engine import choose_device
from training.inference import (
    InferenceConfig,
    SegmentConfig,
    Segmenter,
    inference_for,
    load_finetuned,
)
from training.network import PUBLISHED_SPACING_MM, TrainedOn, load_checkpoint

NO_NETWORK = "none"
"""Given in place of a checkpoint: references are carried over without a network."""
_STEPS: dict[str, tuple[Step, ...]] = {
    "network": ("windows",),
    "registration": ("references",),
    "both": ("windows", "references"),
}
"""Steps that are counted for a target, in order, by method."""
_ROOM_BYTES = 65_536
"""Written into the folder of the results before the first target is read."""
_LISTED_STRUCTURES = 6
"""Most structures that the table lists for a target, the largest first."""
_LISTED_TARGETS = 50
"""Most targets that the table lists; of more those with the least confidence."""


def run_segment(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass segment`; return the exit code and the results for --json."""
    check_name_of_out(arguments.out)
    segmenter, ingest, trained_on = _segmenter(arguments)
    for name, note in _first_notes(arguments, trained_on, segmenter):
        print(f"{name}: {note}")
    with ended_by_sigterm():
        return segment_targets(arguments, Job.of(arguments, segmenter, ingest))


def _segmenter(arguments: Namespace) -> tuple[Segmenter, IngestConfig, TrainedOn]:
    """Return the segmenter, the settings of the targets' preparation, and those of the training."""
    return (_segmenter_of_tokens if arguments.finetuned else _segmenter_of_references)(arguments)


def _job_of(arguments: Namespace) -> Job:
    """Return the job that the command line asks for; a worker makes its own."""
    segmenter, ingest, _ = _segmenter(arguments)
    return Job.of(arguments, segmenter, ingest)


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
        raise NoSuchFrame(error.reason, path=error.path, remedy=CHOOSE_FRAME) from None
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


def segment_targets(arguments: Namespace, job: Job) -> tuple[int, dict[str, Any]]:
    """Segment every target; failures do not stop the others. Return the exit code and the results.

    Args:
        arguments: `targets` and `workers`; with several workers also all that a job is made of.
        job: What is done with a target.
    """
    began = time.monotonic()
    make_out(job.out)
    sources, failed = collect_targets(arguments.targets, job.ingest, job.out)
    if not sources and not failed:
        raise CommandError("there is no target: what was named are results of this command. Name scans")
    there = {} if job.again else _results_there(job, sources)
    written = [one for one in there.values() if isinstance(one, Written)]
    failed += [one for one in there.values() if isinstance(one, Failure)]
    left = [source for source in sources if source.scan_id not in there]
    if left:
        check_room(job.out)
    broken: list[Failure] = []
    is_interrupted = _segment_all(arguments, job, left, written, broken)
    order = {source.scan_id: number for number, source in enumerate(sources)}
    written.sort(key=lambda one: order[one.scan_id])
    failed = [with_own_remedy(failure) for failure in [*failed, *broken]]
    _print_targets(written)
    print_failures(failed)
    done = {one.scan_id for one in written} | {one.scan_id for one in broken}
    not_done = [source.scan_id for source in left if source.scan_id not in done]
    if not_done and not is_interrupted:
        named = ", ".join(not_done[:_LISTED_TARGETS]) + (", ..." if len(not_done) > _LISTED_TARGETS else "")
        print(f"not done ({len(not_done)}), because nothing more can be written into {job.out}: {named}")
        print("Make room there; the same command goes on")
    segmenter = job.segmenter
    document = {
        "targets": [one.to_json() for one in written],
        "failed": [asdict(failure) for failure in failed],
        "spacing_mm": job.ingest.spacing_mm,
        "window_voxels": list(segmenter.inference.window_voxels),
        "structures": {str(s.values[0]): s.name for s in segmenter.structures},
        "not_in_references": [s.values[0] for s in segmenter.missing],
        "not_done": not_done,
        "interrupted": is_interrupted,
        "seconds": time.monotonic() - began,
    }
    return 130 if is_interrupted else int(bool(failed)), document


def _segment_all(
    arguments: Namespace, job: Job, left: Sequence[Source], written: list[Written], broken: list[Failure]
) -> bool:
    """Segment targets, until nothing more can be written, and write the table; whether it was interrupted.

    Args:
        arguments: As for `segment_targets`.
        job: What is done with a target.
        left: The targets.
        written: Results of before; those of these targets are added.
        broken: Failures of these targets are added.
    """
    alone = arguments.workers == 1 or len(left) < 2
    try:
        with (
            shown("segment") as show,
            closing(
                _one_by_one(job, left, show) if alone else _several_at_a_time(arguments, left, show)
            ) as results,
        ):
            for result in results:
                if isinstance(result, Written):
                    written.append(result)
                    continue
                broken.append(result)
                if result.kind == NO_ROOM:
                    break
    except KeyboardInterrupt:
        done = "the targets in the table are complete, of the others nothing" if written else "nothing"
        print(f"interrupted: {done} was written. The same command goes on")
        return True
    finally:
        _write_table(job, [one for one in broken if one.kind != ResultInTheWayError.__name__])
    return False


def check_name_of_out(out: Path) -> None:
    """Refuse a folder of results whose name is not UTF-8: no image can be written there."""
    if str(out) != printable_path(out):
        raise CommandError(f"--out {printable_path(out)}: its name must be UTF-8. Name another")


def make_out(out: Path) -> None:
    """Make the folder of the results, and remove what runs that were killed long ago have left in it.

    Raises:
        CommandError: There can be no such folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"--out {out}: there can be no such folder ({error.strerror}). Name another"
        ) from None
    clear_leftovers(out)


def check_room(out: Path) -> None:
    """Refuse a folder of results that nothing can be written into, before hours are spent on results.

    Raises:
        CommandError: Nothing can be written there.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=".", suffix=".mass.part", dir=out) as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CommandError(
            f"--out {out}: nothing can be written there ({error.strerror}). Make room, or name another"
        ) from None


def _write_table(job: Job, failed: Sequence[Failure]) -> None:
    """Write results.csv; if that fails, say so: the results are there all the same."""
    try:
        write_results_table(job.out, job.mark, without={failure.scan_id for failure in failed})
    except OSError as error:
        print(f"{job.out / TABLE} cannot be written: {error.strerror}", file=sys.stderr)


def _results_there(job: Job, sources: Sequence[Source]) -> dict[str, Written | Failure]:
    """Return what is there of targets that are not to be made, by their ids."""
    found: dict[str, Written | Failure] = {}
    by_id = {source.scan_id: source for source in sources}
    for scan_id in counted("results from before", list(by_id)):
        try:
            one = result_there(job.out, by_id[scan_id], job.mark)
        except ResultInTheWayError as error:
            found[scan_id] = Failure.of(error, scan_id=scan_id, location=by_id[scan_id].location)
        else:
            if one is not None:
                found[scan_id] = one
    return found


def _one_by_one(
    job: Job, sources: Sequence[Source], show: Callable[[State], None]
) -> Generator[Written | Failure, None, None]:
    """Segment targets in this process, with every step shown."""
    began, failed = time.monotonic(), 0
    for number, source in enumerate(sources, start=1):
        at = TargetProgress(
            target=number,
            num_targets=len(sources),
            name=source.scan_id,
            done=0,
            total=0,
            seconds=time.monotonic() - began,
            failed=failed,
        )
        show(at)
        result = segment_one(job, source, _step_callback(at, _STEPS[job.segmenter.config.by], show))
        failed += isinstance(result, Failure)
        yield result


def _several_at_a_time(
    arguments: Namespace, sources: Sequence[Source], show: Callable[[State], None]
) -> Generator[Written | Failure, None, None]:
    """Segment targets in processes of their own."""
    began, done, failed = time.monotonic(), 0, 0
    show(Progress.of_equals(0, len(sources), 0.0))
    for result in in_workers(partial(_job_of, arguments), sources, arguments.workers):
        done, failed = done + 1, failed + isinstance(result, Failure)
        show(Progress.of_equals(done, len(sources), time.monotonic() - began, failed=failed))
        yield result


def _step_callback(at: TargetProgress, steps: tuple[Step, ...], show: Callable[[State], None]) -> OnStep:
    """Return a function that shows each step of a target, which begins now."""
    began = time.monotonic()
    step_began: dict[Step, float] = {steps[0]: began}

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


def _structure_text(one: Written, name: str) -> str:
    """Return a structure's name with its volume and, if known, its confidence."""
    text = f"{name} {one.volumes_ml[name]:.3g}"
    return f"{text} [{one.confidences[name]:.2f}]" if name in one.confidences else text


def _print_targets(written: Sequence[Written]) -> None:
    if not written:
        return
    listed, title = written, f"segmented ({len(written):,})"
    if len(written) > _LISTED_TARGETS:
        doubtful = sorted(written, key=lambda one: min(one.confidences.values(), default=1.0))
        listed = doubtful[:_LISTED_TARGETS]
        title += f"; these {len(listed)} have the least confidence, {TABLE} lists all"
    rows = []
    for one in listed:
        largest = sorted(one.volumes_ml.items(), key=lambda item: -item[1])
        first = ", ".join(_structure_text(one, name) for name, _ in largest[:_LISTED_STRUCTURES])
        more = f" and {len(largest) - _LISTED_STRUCTURES} more" if len(largest) > _LISTED_STRUCTURES else ""
        modality = one.modality + (", guessed" if one.modality_origin.startswith("guess") else "")
        rows.append((one.scan_id, modality, first + more, f"{one.seconds:.1f}", str(one.labels)))
    print_table(
        title,
        ("target", "modality", "ml of structures [confidence]", "seconds", "file"),
        rows,
    )
    kept = sum(one.kept for one in written)
    if kept:
        print(f"from before, made with the same settings: {kept} (--again makes them again)")
    for one in written:
        if one.edited:
            print(f"{one.scan_id}: its label map was changed since it was made, and is kept")
    for one in listed:
        for note in one.notes if not one.kept else ():
            print(f"{one.scan_id}: {note}")
