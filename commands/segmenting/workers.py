"""Several targets of `mass segment` at a time, each in a process of its own.

    this process            targets --> a worker each --> results, in the order in which they are done
    a worker ends early     the targets in hand are tried again, each alone; one at which it ends again has
                            failed, and the others go on
    Ctrl-C, SIGTERM         workers are ended; what they had begun is removed, as without workers
    this process is killed  workers end too, and remove what they had begun

A worker reads references and network itself: they need not be sent, and may be on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType

import SimpleITK as sitk

from commands.segmenting.results import Written
from commands.segmenting.targets import Job, segment_one
from pipeline.discovery import Source
from pipeline.errors import Failure
from training.engine import use_threads

_ENDED_BY_SIGTERM = 128 + signal.SIGTERM
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
                        future = pool.submit(_segment, waiting[0])
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
            return pool.submit(_segment, source).result()
        except BrokenProcessPool:
            return Failure(
                scan_id=source.scan_id,
                location=source.location,
                reason="the process that segmented it ended early, twice: perhaps there is not enough memory",
                remedy="Use fewer --workers, or a larger --spacing",
                kind=BrokenProcessPool.__name__,
            )


@contextmanager
def _pool(make_job: Callable[[], Job], workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of workers; they are ended if the block is left by an exception."""
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(make_job, max(1, _processors() // workers)),
    )
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(make_job: Callable[[], Job], threads: int) -> None:
    """Prepare a worker."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends this one
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    use_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)  # type: ignore[no-untyped-call]
    _job = make_job()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(_ENDED_BY_SIGTERM)


def _segment(source: Source) -> Written | Failure:
    assert _job is not None
    try:
        return segment_one(_job, source)
    except SystemExit:  # what it had begun is removed; a pool's worker would take the next target
        os._exit(_ENDED_BY_SIGTERM)
