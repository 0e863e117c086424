"""Prediction of the memory that a scan takes while it is prepared, and shares of it for threads.

The peak is predicted from the scan's size before it is read. It occurs while proposals are made; for very
fine scans, while they are read and resampled. Measured with `benchmarks/speed.py` (docs/results.md): 0.81 GiB
for 256^3 voxels, 2.9 GiB for 512 x 512 x 500, 11.2 GiB for 512 x 512 x 2,000.

Reads: headers. Writes: nothing.
Bounds: a prediction, made before the crop to the body, so mostly too high; see docs/prepare.md.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from commands.prepare.plan import Job
from commands.prepare.settings import Settings
from pipeline.errors import ScanError
from pipeline.ingest import ScanHeader, read_scan_header
from storage import Scan

PROCESS_BYTES = 500 << 20
"""Memory of a process that has imported everything and loaded its compiled code."""

VOXEL_BYTES, MORE_VOXEL_BYTES = 30, 22
"""Bytes per stored voxel of the first `MANY_VOXELS`, and of all further: `max_regions` bounds the trees."""

MANY_VOXELS = 16 << 20

RAW_VOXEL_BYTES = 10
"""Bytes per voxel of the file while it is turned and resampled."""

REFUSED_ABOVE = 1.5
"""A scan is refused only if its predicted peak is this many times a worker's limit, since it is a
prediction."""


class TooLittleMemory(MemoryError):  # noqa: N818 - as the errors of pipeline
    """A scan does not fit into a worker."""


def predicted_peak(raw_voxels: int, stored_voxels: int) -> int:
    """Return the predicted peak memory in bytes of a process that prepares a scan.

    Args:
        raw_voxels: Voxels of the file.
        stored_voxels: Voxels at the store's spacing.
    """
    proposing = VOXEL_BYTES * min(stored_voxels, MANY_VOXELS)
    proposing += MORE_VOXEL_BYTES * max(0, stored_voxels - MANY_VOXELS)
    return PROCESS_BYTES + max(proposing, RAW_VOXEL_BYTES * raw_voxels + 4 * stored_voxels)


def peak_of_header(header: ScanHeader, settings: Settings) -> int:
    """Return the predicted peak of a scan in bytes, from its header."""
    return predicted_peak(header.num_voxels, header.voxels_at(settings.ingest.spacing_mm))


def peak_of_job(job: Job, before: Scan | None, settings: Settings) -> int:
    """Return the predicted peak of a job in bytes; that of a process alone if its header cannot be read."""
    if job.stage != "ingest" and before is not None:
        z, y, x = before.shape
        return predicted_peak(0, z * y * x)
    try:
        return peak_of_header(read_scan_header(job.found.source, settings.ingest), settings)
    except ScanError:
        return PROCESS_BYTES  # reading it will raise the error


class MemoryShares:
    """Shares of the memory of this process, so that scans in several threads together fit into it.

    Dask pauses a worker at 80 % of its limit and kills it at 95 %; without a limit nothing is waited for.
    """

    def __init__(self, limit_of_process: Callable[[], int | None]) -> None:
        self._limit_of_process = limit_of_process
        self._free = threading.Condition()
        self._taken: list[int] = []

    @contextmanager
    def taken(self, peak: Callable[[], int]) -> Iterator[None]:
        """Wait until a scan fits beside those in progress, and hold its share inside the block.

        Args:
            peak: Its predicted peak in bytes, the process included; called only where there is a limit.

        Raises:
            TooLittleMemory: It does not fit even alone.
        """
        limit = self._limit_of_process()
        if limit is None:
            yield
            return
        needed = peak()
        if needed > REFUSED_ABOVE * limit:
            raise TooLittleMemory(
                f"needs about {needed / 2**30:.1f} GiB, and this worker may take {limit / 2**30:.1f} GiB"
            )
        share, room = needed - PROCESS_BYTES, int(0.75 * limit) - PROCESS_BYTES
        with self._free:
            self._free.wait_for(lambda: not self._taken or sum(self._taken) + share <= room)
            self._taken.append(share)
        try:
            yield
        finally:
            with self._free:
                self._taken.remove(share)
                self._free.notify_all()


def worker_limit() -> int | None:
    """Return the memory limit of the Dask worker that this process is, in bytes; None if there is none."""
    distributed: Any = sys.modules.get("distributed")  # loaded in every worker
    if distributed is None:
        return None
    try:
        manager = distributed.get_worker().memory_manager
    except (ValueError, AttributeError):
        return None
    return manager.memory_limit or None


SHARES = MemoryShares(worker_limit)
"""Shares of this process."""
