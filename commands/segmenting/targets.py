"""The work on one target of `mass segment`: read, segment, write; and why it failed."""

from __future__ import annotations

import errno
import hashlib
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commands.progress import Step
from commands.segmenting.results import (
    Written,
    mark_of,
    named,
    own_files,
    result_there,
    staged,
    write_record,
)
from pipeline.discovery import Source, distinct_ids, id_from_parts
from pipeline.errors import Failure, NoSuchFrame, ScanError
from pipeline.ingest import IngestConfig, find_targets, load_source
from storage import digest_of
from training.errors import TrainingError
from training.inference import Segmenter, Structure, draw_cases
from training.network import weights_digest

CHOOSE_FRAME = "Choose one with --frame N, counted from 0"
_RULES = "2"
"""Raised where the same settings give another answer than before; results of before are then made again."""
NO_ROOM = "NoRoom"
"""Kind of the failure of a target that holds for all others too: nothing more can be written."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_ALLOCATORS = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed")
"""In the messages of PyTorch and ITK, on the CPU and the GPU; PyTorch's own error is a `RuntimeError`."""

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
    again: bool
    """Whether results that are there are replaced, whatever they are."""
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
            again=arguments.again,
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
        for source in there.sources:
            if not own & {path.resolve() for path in source.files}:
                found[_key(source)] = _with_name(source, target)
        failed.extend(there.failures)
    ids = distinct_ids({key: source.scan_id for key, source in found.items()})
    return [_told_apart(source, ids[key]) for key, source in found.items()], failed


def _key(source: Source) -> str:
    """Return what tells a scan from all others, however it was named."""
    parts = [source.files[0].resolve(), source.frame, source.stack, source.item and source.item.array]
    return " ".join(map(str, [*parts, source.item and source.item.index]))


def _with_name(source: Source, target: Path) -> Source:
    """Return a source; one that has no name of its own has that of the folder that was named."""
    if source.scan_id != id_from_parts(()):
        return source
    return replace(source, scan_id=id_from_parts([target.resolve().name]))


def _told_apart(source: Source, scan_id: str) -> Source:
    """Return a source with its id; if others have the same name, with its path for a location."""
    if scan_id == source.scan_id:
        return source
    path = source.files[0].parent if source.format == "dicom" else source.files[0]
    return replace(source, scan_id=scan_id, location=str(path))


def segment_one(job: Job, source: Source, on_step: OnStep | None = None) -> Written | Failure:
    """Read, segment and write one target; return its result, or why there is none.

    Args:
        job: What is done.
        source: The target.
        on_step: Called with each step, the number done and that of all.
    """
    try:
        return _segmented(job, source, on_step)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other targets go on
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
        if not job.again:  # once more: another run may have written meanwhile, or a reader corrected a map
            result_there(job.out, source, job.mark)
    return written


def _failure(source: Source, error: Exception) -> Failure:
    """Return the failure of a target."""
    if isinstance(error, ScanError):
        return Failure.of(error, scan_id=source.scan_id, location=source.location)
    reason, remedy = str(error), ""
    if isinstance(error, TrainingError):
        reason = reason.removeprefix(f"{source.location}: ")
        reason, _, remedy = reason.partition(". ")
    elif _is_out_of_memory(error):
        reason = "there is not enough memory for this scan"
        remedy = "Use a larger --spacing or a smaller --window"
    elif isinstance(error, OSError):
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        reason = f"its result cannot be written ({name}{error.strerror or error})"
        remedy = "Check the folder of --out, and the space on its disk"
    else:
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {reason.splitlines()[0] if reason else ''}"
        remedy = "Check the space on the disk of --out; else this is a bug in mass3d, please report it"
    return Failure(
        scan_id=source.scan_id,
        location=source.location,
        reason=reason,
        remedy=remedy,
        kind=NO_ROOM if isinstance(error, OSError) and error.errno in _NO_ROOM else type(error).__name__,
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that of an allocator; a path in its message may hold any word."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(words in str(error).lower() for words in _ALLOCATORS)
    return isinstance(error, MemoryError)


def with_own_remedy(failure: Failure) -> Failure:
    """Return the failure with a remedy for this command: there is no manifest here to choose a frame in."""
    return replace(failure, remedy=CHOOSE_FRAME) if failure.kind == NoSuchFrame.__name__ else failure
