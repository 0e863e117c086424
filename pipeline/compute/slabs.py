"""Slabs: work on a volume a few planes at a time, in several threads; the result is the same to the bit.

For integer kernels only: their sums and minima do not depend on the order of the slabs. A filter reads a halo
of planes beyond its slab, and its results there are discarded.

Reads: nothing. Writes: nothing.
Bounds: slabs are along z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_SLAB_VOXELS = 1 << 22
"""Approximate number of voxels per slab: the memory of a slab's filters is small relative to the volume."""

_LEAST_PLANES = 24
"""Smallest number of planes of a slab, so that the halo costs little."""

_MOST_COPIES = 4
"""The most threads with their own sums; more would cost more memory than they save time."""


def slabs_of(shape: tuple[int, ...], num_threads: int) -> list[tuple[int, int]]:
    """Return the first plane, and one past the last, of each slab, in order.

    Together the slabs hold every plane once.

    Args:
        shape: Shape (z, y, x) of the volume.
        num_threads: Threads that share the slabs.
    """
    plane = max(1, shape[1] * shape[2])
    planes = max(_LEAST_PLANES, min(_SLAB_VOXELS // plane, -(-shape[0] // num_threads)))
    return [(z, min(z + planes, shape[0])) for z in range(0, shape[0], planes)]


def over_slabs(work: Callable[[int, int], object], shape: tuple[int, ...], num_threads: int) -> None:
    """Call `work(start, stop)` for each slab, by several threads.

    Each call must write to its own planes only.
    """
    for_each(lambda slab: work(*slab), slabs_of(shape, num_threads), num_threads)


def for_each(work: Callable[[T], object], items: Sequence[T], num_threads: int) -> None:
    """Call `work(item)` for each item, by several threads.

    Each call must write to its own memory only.
    """
    if num_threads == 1 or len(items) == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(work, items):
            pass


def summed_over_slabs(
    make: Callable[[], T],
    work: Callable[[T, int, int], object],
    shape: tuple[int, ...],
    num_threads: int,
) -> list[T]:
    """Return partial totals of a volume, one per thread; the caller adds them.

    Args:
        make: Returns an empty total.
        work: `work(total, start, stop)` adds the planes of a slab to a total.
        shape: Shape (z, y, x) of the volume.
        num_threads: The most threads.
    """
    slabs = slabs_of(shape, num_threads)
    num_totals = max(1, min(num_threads, len(slabs), _MOST_COPIES))

    def one_total(first: int) -> T:
        total = make()
        for start, stop in slabs[first::num_totals]:
            work(total, start, stop)
        return total

    if num_totals == 1:
        return [one_total(0)]
    with ThreadPoolExecutor(num_totals) as pool:
        return list(pool.map(one_total, range(num_totals)))
