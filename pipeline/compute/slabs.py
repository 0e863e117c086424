"""Slabs: a volume worked on a few planes at a time, by several threads, to the same bits as whole.

Integer kernels only: what slabs add up or minimise does not depend on who came first. A filter sees a halo of
planes beyond its slab, and what it makes there is cut off.

Reads: nothing. Writes: nothing.
Bounds: slabs are along z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_SLAB_VOXELS = 1 << 22
"""About so many voxels a slab: what a slab's filters hold is small beside the volume."""

_LEAST_PLANES = 24
"""A slab has no fewer planes, so that the halo costs little."""

_MOST_COPIES = 4
"""Threads that each add up sums of their own: more would cost more memory than they save time."""


def slabs_of(shape: tuple[int, ...], num_threads: int) -> list[tuple[int, int]]:
    """First plane and one past the last of each slab; all planes, in order, each once."""
    plane = max(1, shape[1] * shape[2])
    planes = max(_LEAST_PLANES, min(_SLAB_VOXELS // plane, -(-shape[0] // num_threads)))
    return [(z, min(z + planes, shape[0])) for z in range(0, shape[0], planes)]


def over_slabs(work: Callable[[int, int], object], shape: tuple[int, ...], num_threads: int) -> None:
    """Do some work on each slab; it writes to places of its own."""
    for_each(lambda slab: work(*slab), slabs_of(shape, num_threads), num_threads)


def for_each(work: Callable[[T], object], items: Sequence[T], num_threads: int) -> None:
    """Do some work for each item, by several threads; it writes to places of its own."""
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
    """One total a thread: `make` begins it, `work` adds a slab to it. The caller adds the totals up."""
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
