"""The work on one target of `mass segment`: read, segment, write; and why it failed."""

from __future__ import annotations

import hashlib
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commands.progress import Step
from commands.segmenting.results import Written, mark_of, named, own_files, staged, write_record
from pipeline.discovery import Source, distinct_ids
from pipeline.errors import Failure, NoSuchFrame, ScanError
from pipeline.ingest import IngestConfig, find_targets, load_source
from storage import digest_of
from training.errors import TrainingError
from training.inference import Segmenter, Structure, draw_cases
from training.network import weights_digest

CHOOSE_FRAME = "Choose one with --frame N, counted from 0"
_RULES = "1"
"""Raised where the same settings give another answer than before; results of before are then made again."""

OnStep = Callable[[Step, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is done with every target."""

    segmenter: Segmenter
    ingest: IngestConfig
    """Settings of the targets' preparation."""
    out: Path
    """Folder of the results."""
    modality: str | None
    """Of all targets; None to find out."""
    probabilities: bool
    """Whether each structure's probability is written too."""
    mark: str
    """Of all that results follow from, but the target."""

    @classmethod
    def of(cls, arguments: Namespace, segmenter: Segmenter, ingest: IngestConfig) -> Job:
        """Return the job that the command line asks for."""
        follows_from = {
            "version": [version("mass3d"), _RULES],
            "settings": asdict(segmenter.config),
            "ingest": asdict(ingest),
            "modality": arguments.modality,
            "probabilities": arguments.probabilities,
            "structures": [[part.name, *part.values] for part in segmenter.structures],
            "references": [
                [_digest(reference.image), _digest(reference.labels)] for reference in segmenter.references
            ],
            "weights": weights_digest(segmenter.net),
        }
        return cls(
            segmenter=segmenter,
            ingest=ingest,
            out=arguments.out,
            modality=arguments.modality,
            probabilities=arguments.probabilities,
            mark=digest_of(follows_from),
        )


def _digest(array: NDArray[np.generic]) -> str:
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def collect_targets(
    targets: Sequence[Path], config: IngestConfig, out: Path
) -> tuple[list[Source], list[Failure]]:
    """Return the scans at some paths, each with an id of its own, and failures of the rest.

    Args:
        targets: Files and folders.
        config: How they are read.
        out: Folder of the results; those that are there are no targets.
    """
    found: dict[str, Source] = {}
    failed: list[Failure] = []
    own = own_files(out)
    for target in dict.fromkeys(targets):
        try:
            there = find_targets(target, config)
        except ScanError as error:
            failed.append(Failure.of(error, scan_id=target.name, location=str(target)))
            continue
        place = target.resolve()
        out_is_below = place in out.resolve().parents
        for source in there.sources:
            files = {path.resolve() for path in source.files}
            if files & own or (out_is_below and any(out.resolve() in file.parents for file in files)):
                continue
            found[str((place if place.is_dir() else place.parent) / source.location)] = source
        failed.extend(there.failures)
    ids = distinct_ids({key: source.scan_id for key, source in found.items()})
    return [_told_apart(source, ids[key], key) for key, source in found.items()], failed


def _told_apart(source: Source, scan_id: str, key: str) -> Source:
    """Return a source with its id; if others have the same name, with the path of its target too."""
    location = source.location if scan_id == source.scan_id else key
    return replace(source, scan_id=scan_id, location=location)


def segment_one(job: Job, source: Source, on_step: OnStep | None = None) -> Written | Failure:
    """Read, segment and write one target; return its result, or why there is none.

    Args:
        job: What is done.
        source: The target.
        on_step: Called with each step, the number done and that of all.
    """
    try:
        return _segmented(job, source, on_step)
    except (ScanError, TrainingError, OSError, RuntimeError, MemoryError) as error:
        return _failure(source, error)


def _segmented(job: Job, source: Source, on_step: OnStep | None) -> Written:
    began = time.monotonic()
    target = mark_of(source)  # before it is read: a file that changes meanwhile is read again
    scan = load_source(source, job.ingest, modality=job.modality)
    with staged(job.out, source.scan_id) as folder:

        def keep(structure: Structure, probability: NDArray[np.float32]) -> None:
            scan.write(folder / f"{source.scan_id}_prob_{structure.values[0]}{scan.suffix}", probability)

        result = job.segmenter.segment(
            scan,
            on_probability=keep if job.probabilities else None,
            progress=on_step,
        )
        labels = folder / f"{source.scan_id}_seg{scan.suffix}"
        result.save(labels)
        picture = folder / f"{source.scan_id}_seg.png"
        draw_cases(result.cases()).save(picture)
        written = Written(
            scan_id=source.scan_id,
            location=source.location,
            labels=job.out / labels.name,
            picture=job.out / picture.name,
            probabilities=tuple(
                job.out / f"{source.scan_id}_prob_{found.structure.values[0]}{scan.suffix}"
                for found in result.found
                if job.probabilities
            ),
            volumes_ml={named(found): found.volume_ml for found in result.found},
            modality=scan.modality,
            modality_origin=scan.modality_origin,
            seconds=time.monotonic() - began,
            agreement=result.agreement,
            confidences={named(one): one.confidence for one in result.found if one.confidence is not None},
            notes=result.notes,
        )
        write_record(folder, written, job=job.mark, target=target)
    return written


def _failure(source: Source, error: BaseException) -> Failure:
    """Return the failure of a target."""
    if isinstance(error, ScanError):
        return with_own_remedy(Failure.of(error, scan_id=source.scan_id, location=source.location))
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


def with_own_remedy(failure: Failure) -> Failure:
    """Return the failure with a remedy for this command: there is no manifest here to choose a frame in."""
    return replace(failure, remedy=CHOOSE_FRAME) if failure.kind == NoSuchFrame.__name__ else failure
