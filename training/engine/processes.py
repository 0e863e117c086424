"""Work in several processes of this machine, each with an item at a time.

    Ctrl-C, SIGTERM, an error   the workers are ended at once; what they had begun to write is removed
    this process is killed      the workers end, too, and remove it likewise
    a worker ends early         an error that says so: perhaps there is too little memory

*Takes* functions of modules, or partials of them, and items that can be sent to another process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from training.engine.distributed import use_threads
from training.errors import TrainingError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ENDED_BY_SIGTERM = 128 + signal.SIGTERM
_THREADS_OF_ITK = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
"""Read when the first filter of SimpleITK runs."""


def in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Call a function with each item, in several processes, and yield each result when it is there.

    Args:
        function: What is done with an item.
        items: The items; no more are begun than there are workers.
        workers: Number of processes.

    Raises:
        TrainingError: A process ended early.
    """
    waiting = deque(items)
    in_hand: set[Future[Result]] = set()
    with worker_pool(workers) as pool:
        while waiting or in_hand:
            while waiting and len(in_hand) < workers:
                in_hand.add(pool.submit(run_item, function, waiting.popleft()))
            for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                in_hand.remove(future)
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    raise TrainingError(
                        f"one of {workers} processes ended early: perhaps there is too little memory. Use "
                        "fewer (--workers); the same command goes on from here"
                    ) from error


@contextmanager
def worker_pool(workers: int, begin: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of workers, which end with this process; they are ended if the block raises an exception.

    Args:
        workers: Number of processes; each takes threads for an equal part of the processors.
        begin: Called in each of them first.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(max(1, _processors() // workers), begin),
    )
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def run_item(function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function with an item, in a worker of `worker_pool`; SIGTERM ends the worker."""
    try:
        return function(item)
    except SystemExit:  # what it had begun is removed; a pool's worker would take the next item
        os._exit(_ENDED_BY_SIGTERM)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(threads: int, begin: Callable[[], object] | None) -> None:
    """Prepare a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends this one
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    use_threads(threads)
    os.environ.setdefault(_THREADS_OF_ITK, str(threads))
    if begin is not None:
        begin()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(_ENDED_BY_SIGTERM)
