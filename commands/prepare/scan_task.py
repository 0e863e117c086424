"""The task of `mass prepare`: read, compute and commit scans, and return their outcomes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from commands.prepare.allocator import return_large_arrays
from commands.prepare.memory import SHARES, TooLittleMemory, peak_of_job
from commands.prepare.outcomes import Outcome
from commands.prepare.payload import Device as Device, Setup as Setup, unpack
from commands.prepare.plan import Job
from pipeline.compute import get_backend
from pipeline.discovery import Source, source_digest
from pipeline.errors import Failure, ScanError, UnreadableFile
from pipeline.formats import is_transient, until_stalled
from pipeline.ingest import StandardScan, read_source, standardize
from pipeline.proposals import propose
from storage import (
    LabelVolume,
    Scan,
    ScanNotFound,
    ScanRecord,
    StorageError,
    Store,
    StoreFull,
    commit_scan,
    own_digests,
    own_record,
    undamaged_imports,
    with_imports,
)


def prepare_batch(payload: bytes) -> list[Outcome]:
    """Prepare some scans, one after the other, and return their outcomes.

    The failure of a scan is an outcome, not an exception. Only temporary errors are raised: Prefect tries
    again, and scans that are committed by then are not done again.

    Args:
        payload: Made by `payload.pack`.

    Raises:
        WorkerUnfitError: This process cannot work for this run, see `payload.unpack`.
    """
    return_large_arrays()
    store, setup, jobs = unpack(payload)
    return [_attempt(store, setup, job) for job in jobs]


def may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether a Prefect task failed by a temporary error of a disk or network."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def _attempt(store: Store, setup: Setup, job: Job) -> Outcome:
    """Return the outcome of one scan; errors become failures."""
    began = time.monotonic()
    source, digest = job.found.source, job.source_digest
    ended = partial(
        Outcome,
        scan_id=source.scan_id,
        location=source.location,
        dataset=source.dataset,
        why=job.why,
        choices_digest=job.found.choices_digest,
        files=job.found.files,
    )
    try:
        digest, num_proposals, notes = prepare_one(store, setup, job)
        ended = partial(ended, state="committed", num_proposals=num_proposals, notes=notes)
    except StoreFull as error:
        ended = partial(ended, state="not done", stop=str(error))
    except Exception as error:  # the one place where a bug in one scan must not end the others
        if is_transient(error):
            raise
        ended = partial(
            ended,
            state="failed",
            failure=_failure(error, source),
            lasting=isinstance(error, ScanError) and not isinstance(error, UnreadableFile),
            traceback="" if _is_foreseen(error) else _traceback(error, source),
        )
    return ended(seconds=time.monotonic() - began, source_digest=digest)


def _is_foreseen(error: Exception) -> bool:
    """Whether an error is expected, and no bug of this package."""
    return isinstance(error, ScanError | StorageError | MemoryError)


def _failure(error: Exception, source: Source) -> Failure:
    """Return the failure of a scan, with a remedy; for a bug, the request to report it."""
    failure = Failure.of(error, scan_id=source.scan_id, location=source.location)
    match error:
        case ScanError():
            return failure
        case StorageError():
            return replace(failure, remedy="Run `mass verify` on the store")
        case TooLittleMemory():
            return replace(
                failure,
                reason=str(error),
                remedy="Start workers with a higher --memory-limit, or use a larger spacing_mm",
            )
        case MemoryError():
            return replace(
                failure,
                kind="MemoryError",
                reason="there is not enough memory for this scan",
                remedy="Use fewer workers or a larger spacing_mm, or a machine with more memory",
            )
        case _:
            return replace(
                failure,
                reason=without_paths(f"{type(error).__name__}: {error}", source),
                remedy="This is a bug in mass3d; please report it with the traceback in the log",
            )


def _traceback(error: Exception, source: Source) -> str:
    return without_paths("".join(traceback.format_exception(error)), source)


def prepare_one(store: Store, setup: Setup, job: Job) -> tuple[str, int, tuple[str, ...]]:
    """Read, compute and commit a scan; return the source's digest, the number of proposals, and notes."""
    source = job.found.source
    digest = job.source_digest or until_stalled(
        lambda: source_digest(source),
        seconds=setup.settings.ingest.read_timeout_seconds,
        shown=source.location,
    )
    digests = {"source": digest, "ingest": setup.wanted.ingest, "proposals": setup.wanted.proposals}
    before = store.committed_now(job.scan_id)
    notes: tuple[str, ...] = ()
    if before is None or job.again or own_digests(before.digests) != digests:
        with SHARES.taken(lambda: peak_of_job(job, before, setup.settings)):
            made = _RECORDS[job.stage](before, setup, job, digests)
            record, kept = with_kept_imports(before, made)
        about = made.attributes["notes"] if job.stage == "ingest" else ()
        notes = (*map(str, about if isinstance(about, list) else ()), *kept)
        return digest, commit_scan(store.path, record, replace=True).num_proposals, notes
    return digest, before.entry.num_proposals, notes


def with_kept_imports(before: Scan | None, record: ScanRecord) -> tuple[ScanRecord, tuple[str, ...]]:
    """Return a scan that was made again, with its imported masks, and notes on them.

    Masks are kept if the stored grid is the same as before. Of a damaged scan, those are kept whose own files
    are undamaged.

    Args:
        before: The scan in the store; None if it is new.
        record: The new scan, without imported masks.
    """
    if before is None:
        return record, ()
    imports, lost = undamaged_imports(before)
    names = ", ".join(masks.name for masks in imports)
    notes = [f"imported masks of {name} lost: {what}. Import them again" for name, what in lost.items()]
    if not imports:
        return record, tuple(notes)
    grid = record.attributes.get("grid")
    if grid is None or before.attributes.get("grid") != grid:
        notes.append(f"imported masks of {names} dropped, the grid has changed: import them again")
        return record, tuple(notes)
    try:
        record = with_imports(record, imports)
        notes.append(f"imported masks of {names} kept, the grid is the same")
    except StorageError as error:
        notes.append(f"imported masks of {names} dropped, they do not fit any more: {error}")
    return record, tuple(notes)


def _fresh_record(before: Scan | None, setup: Setup, job: Job, digests: Mapping[str, str]) -> ScanRecord:
    """Return the record of a scan from its files."""
    source, config = job.found.source, setup.settings.ingest
    scan = standardize(read_source(source, config), config)
    labels = [
        LabelVolume(name=label.name, array=label.array, value_names=label.value_names)
        for label in scan.labels
    ]
    about = {
        "location": source.location,
        "modality_origin": scan.modality_origin,
        "intensity": scan.intensity.to_dict(),
        "grid": scan.grid.to_dict(),
        "source_grid": scan.source_grid.to_dict(),
        "facts": dict(scan.facts),
        "notes": list(scan.notes),
    }
    if source.classes:
        about["class"] = source.classes[0] if len(source.classes) == 1 else list(source.classes)
    return ScanRecord(
        scan_id=source.scan_id,
        dataset=source.dataset,
        split=source.split,
        case=source.case,
        modality=scan.modality,
        image=scan.image,
        scale=scan.scale,
        offset=scan.offset,
        spacing_zyx_mm=scan.grid.spacing_zyx_mm,
        labels=tuple(labels),
        attributes=about,
        digests=digests,
        **_proposals(setup, scan, scan.intensity, scan.grid.spacing_zyx_mm),
    )


def _record_again(before: Scan | None, setup: Setup, job: Job, digests: Mapping[str, str]) -> ScanRecord:
    """Return the record of a stored scan with new proposals."""
    scan = _there(before, job)
    record = own_record(scan.record())
    made = _proposals(setup, record, scan.intensity, record.spacing_zyx_mm)
    return replace(record, digests=digests, case=job.found.source.case, **made)


def _record_of_other_case(
    before: Scan | None, setup: Setup, job: Job, digests: Mapping[str, str]
) -> ScanRecord:
    """Return the record of a stored scan with another case; nothing else changes."""
    record = own_record(_there(before, job).record())
    return replace(record, digests=digests, case=job.found.source.case)


def _there(before: Scan | None, job: Job) -> Scan:
    """Return the stored scan that a job starts from."""
    if before is None:
        raise ScanNotFound(f"scan {job.scan_id}: it is in the store no longer. Run the same command again")
    return before


_RECORDS = {"ingest": _fresh_record, "proposals": _record_again, "case": _record_of_other_case}
"""Function that makes the record, by the stage where work begins."""


def _proposals(
    setup: Setup,
    scan: StandardScan | ScanRecord,
    intensity: Any,
    spacing_zyx_mm: tuple[float, float, float],
) -> dict[str, Any]:
    """Return the proposals of an image, as fields of a record."""
    made = propose(
        scan.image,
        scale=scan.scale,
        offset=scan.offset,
        intensity_range=(intensity.low, intensity.high),
        spacing_zyx_mm=spacing_zyx_mm,
        unit=intensity.unit,
        config=setup.settings.proposals,
        backend=get_backend(setup.device),
    )
    return {name: getattr(made, name) for name in ("atoms", "orders", "table", "scores", "sources")}


def without_paths(text: str, source: Source) -> str:
    """Return the text without the paths of a source, which may hold a patient's name."""
    paths = [*source.files, *(path for label in source.labels for path in label.files)]
    for path in sorted({*paths, *(path.parent for path in paths)}, key=lambda path: -len(str(path))):
        text = text.replace(str(path), source.location)
    for path in paths:
        text = text.replace(path.name, source.location)
    return text
