"""Several targets of `mass segment` at a time, each in a process of its own.

    this process            targets --> a worker each --> results, in the order in which they are done
    a worker ends early     the targets in hand are tried again, each alone; one at which it ends again has
                            failed, and the others go on
    Ctrl-C, SIGTERM         workers are ended; what they had begun is removed, as without workers
    this process is killed  workers end too, and remove what they had begun

A worker reads references and network itself: they need not be sent, and may be on a GPU.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial

from commands.segmenting.results import Written
from commands.segmenting.targets import Job, segment_one
from pipeline.discovery import Source
from pipeline.errors import Failure
from training.engine import run_item, worker_pool

_job: Job | None = None
"""A worker's own."""


def in_workers(
    make_job: Callable[[], Job], sources: Sequence[Source], workers: int
) -> Iterator[Written | Failure]:
    """Segment targets in several processes, and yield each result when it is there.

    Args:
        make_job: Makes a worker's job; a function of a module, or a partial of one.
        sources: The targets.
        workers: Number of processes, each with an equal part of the processors.
    """
    workers = min(workers, len(sources))
    waiting = deque(sources)
    while waiting:
        in_hand: dict[Future[Written | Failure], Source] = {}
        with _pool(make_job, workers) as pool:
            try:
                while waiting or in_hand:
                    while waiting and len(in_hand) < workers:
                        future = pool.submit(run_item, _segment, waiting[0])
                        in_hand[future] = waiting.popleft()
                    for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del in_hand[future]
            except BrokenProcessPool:
                names = ", ".join(source.scan_id for source in in_hand.values())
                print(f"a process ended early at one of these: {names}; each is tried again", file=sys.stderr)
        for source in in_hand.values():
            yield _alone(make_job, source)


def _alone(make_job: Callable[[], Job], source: Source) -> Written | Failure:
    """Segment a target in a process, after one had ended at it or beside it."""
    with _pool(make_job, 1) as pool:
        try:
            return pool.submit(run_item, _segment, source).result()
        except BrokenProcessPool:
            return Failure(
                scan_id=source.scan_id,
                location=source.location,
                reason="the process that segmented it ended early, twice: perhaps there is not enough memory",
                remedy="Use fewer --workers, or a larger --spacing",
                kind=BrokenProcessPool.__name__,
            )


def _pool(make_job: Callable[[], Job], workers: int) -> AbstractContextManager[ProcessPoolExecutor]:
    """Return a pool of workers with a job each."""
    return worker_pool(workers, partial(_begin, make_job))


def _begin(make_job: Callable[[], Job]) -> None:
    """Prepare a worker."""
    global _job
    _job = make_job()


def _segment(source: Source) -> Written | Failure:
    assert _job is not None
    return segment_one(_job, source)
