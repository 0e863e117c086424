"""The plan: what is to be done for each scan, decided before any work and without I/O of its own.

    a source as it is     ─┐          ┌─ job: from its files ("ingest"), or the stored image ("proposals")
    what the store has    ─┼─ decide ─┼─ done
    digests wanted now    ─┘          └─ failed before, and nothing changed since

Reads: sources and their records. Writes: a `Plan`. A source counts as unchanged if its files' sizes and times
and the choices made for it are those recorded; otherwise its bytes are compared, by the function that the
caller passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.discovery import Source
from pipeline.errors import Failure

Stage = Literal["ingest", "proposals", "case"]
"""Where work on a scan begins: at its files, or at the stored image; "case": nothing is computed."""

FileStates = tuple[tuple[str, int, int], ...]
"""(what, size in bytes, mtime in ns) of each of a source's files, as `fingerprint.source_stat` returns
them."""

_PACKED_SUFFIXES = (".gz", ".nrrd", ".mha", ".zraw")
"""Suffixes of files whose voxels are mostly compressed: about a byte per voxel; others have about two."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Digests of each stage's present inputs: its settings and the version of its code."""

    ingest: str
    proposals: str
    ingest_change: str = ""
    """How the ingest settings differ from the store's, in words; empty if not known."""
    proposals_change: str = ""
    """The same for the proposals settings."""
    refusals: int = 0
    """Version of the rules by which inputs are refused."""

    @property
    def config_digest(self) -> str:
        """One digest of all, to decide whether a failure would occur again."""
        return f"{self.ingest[:16]}+{self.proposals[:16]}+{self.refusals}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A source, with the present state of its files."""

    source: Source
    files: FileStates
    """Empty if they could not be examined."""
    choices_digest: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """The store's record of a scan."""

    committed: Mapping[str, str] | None = None
    """Stage digests of the committed scan; None if there is none."""
    case: str = ""
    """Case of the committed scan."""
    failure: Failure | None = None
    """Failure of the last try, if it failed."""
    config_digest: str = ""
    """`Wanted.config_digest` at that failure; empty if another try may succeed."""
    source_digest: str = ""
    files: FileStates = ()
    choices_digest: str = ""


NOTHING_KNOWN = Known()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work on one scan."""

    found: Found
    stage: Stage
    why: str
    source_digest: str = ""
    """Digest of the source if its files are not read again; empty if the worker computes it."""
    again: bool = False
    """Whether the scan is made again even if it is up to date, because its files are damaged."""

    @property
    def scan_id(self) -> str:
        """Id of the scan."""
        return self.found.source.scan_id

    @property
    def weight(self) -> int:
        """Approximate number of voxels in its files, from their bytes; its share of the time."""
        source = self.found.source
        if source.item is not None:
            return math.prod(source.item.shape_zyx)
        size = self.found.files[0][1] if self.found.files else 0
        packed = source.files[0].name.lower().endswith(_PACKED_SUFFIXES)
        return max(1, size if packed else size // 2)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A scan that is committed and up to date."""

    found: Found
    source_digest: str
    recorded: bool
    """Whether the ledger has its line; else the line is to be written."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs, and scans without work."""

    jobs: tuple[Job, ...]
    """Largest first, so that no long one begins last."""
    done: tuple[Done, ...]
    failed: tuple[Failure, ...]
    """Failures of earlier runs that would occur again."""
    absent: tuple[str, ...]
    """Scans that the store knows and the search did not find, sorted."""

    def reasons(self) -> dict[str, int]:
        """Return the number of jobs for each reason, most first."""
        return dict(Counter(job.why for job in self.jobs).most_common())


def make_plan(
    found: Iterable[Found],
    known: Mapping[str, Known],
    wanted: Wanted,
    *,
    digest: Callable[[Source], str | None],
    retry_failed: bool = False,
    elsewhere: Iterable[str] = (),
) -> Plan:
    """Return the plan for all sources.

    Args:
        found: Sources as they are now.
        known: The store's records, by scan id.
        wanted: Digests of the stages' present inputs.
        digest: Returns the digest of a source's bytes; None if they cannot be read. Called only if needed.
        retry_failed: Whether failures are tried again although nothing changed.
        elsewhere: Ids that the search found but could not make a source of.
    """
    jobs, done, failed, seen = [], [], [], set(elsewhere)
    for one in found:
        seen.add(one.source.scan_id)
        known_one = known.get(one.source.scan_id, NOTHING_KNOWN)
        decision = decide(one, known_one, wanted, digest=digest, retry_failed=retry_failed)
        match decision:
            case Job():
                jobs.append(decision)
            case Done():
                done.append(decision)
            case Failure():
                failed.append(decision)
    return Plan(
        jobs=tuple(sorted(jobs, key=lambda job: (-job.weight, job.scan_id))),
        done=tuple(done),
        failed=tuple(failed),
        absent=tuple(sorted(set(known) - seen)),
    )


def decide(
    found: Found,
    known: Known,
    wanted: Wanted,
    *,
    digest: Callable[[Source], str | None],
    retry_failed: bool = False,
) -> Job | Done | Failure:
    """Return what to do with one scan."""
    unchanged = (
        bool(found.files) and found.files == known.files and found.choices_digest == known.choices_digest
    )
    if known.failure is not None:
        same_again = unchanged and known.config_digest == wanted.config_digest
        if same_again and not retry_failed:
            return known.failure
        if same_again or known.committed is None:
            return Job(found=found, stage="ingest", why="failed before")
    if known.committed is None:
        return Job(found=found, stage="ingest", why="new")
    source_digest = (known.source_digest if unchanged else "") or digest(found.source) or ""
    only_case = source_digest != known.committed.get("source") and _is_same_but_for_case(found, known, digest)
    if source_digest != known.committed.get("source") and not only_case:
        return Job(found=found, stage="ingest", why="source changed")
    if known.committed.get("ingest") != wanted.ingest:
        why = _changed("ingest", wanted.ingest_change)
        return Job(found=found, stage="ingest", why=why)
    if known.committed.get("proposals") != wanted.proposals:
        why = _changed("proposals", wanted.proposals_change)
        return Job(found=found, stage="proposals", why=why, source_digest=source_digest)
    if only_case:
        return Job(found=found, stage="case", why="case changed", source_digest=source_digest)
    return Done(found=found, source_digest=source_digest, recorded=unchanged and known.failure is None)


def _is_same_but_for_case(found: Found, known: Known, digest: Callable[[Source], str | None]) -> bool:
    """Whether a source differs from the committed scan in its case only."""
    if found.source.case == known.case or known.committed is None:
        return False
    return digest(replace(found.source, case=known.case)) == known.committed.get("source")


def _changed(stage: Stage, change: str) -> str:
    return f"{stage} settings changed ({change})" if change else f"{stage} settings or code changed"


def batches(jobs: Iterable[Job], *, max_scans: int, max_weight: int) -> Iterator[tuple[Job, ...]]:
    """Yield the jobs in their order, small neighbours in one batch; a large one is a batch by itself."""
    batch: list[Job] = []
    weight = 0
    for job in jobs:
        if batch and (len(batch) == max_scans or weight + job.weight > max_weight):
            yield tuple(batch)
            batch, weight = [], 0
        batch.append(job)
        weight += job.weight
    if batch:
        yield tuple(batch)
