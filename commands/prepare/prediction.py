"""Prediction of the time and the bytes of scans, from their headers and a short trial.

Time and bytes of a scan follow from its voxels at the store's spacing, by a curve through a few prepared
scans; per voxel both fall as scans grow. Between two points the curve is linear in logarithms; above the last
it grows with the power `GROWTH`, below the first it is constant.

Reads: bundled scans, for the trial; sizes of stored scans in an index. Writes: nothing.
Bounds: voxels are counted before the crop to the body, in the trial too; scans with much air around cost less
than predicted. Right within a factor of 2 for the sets of docs/results.md.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.prepare.memory import peak_of_header
from commands.prepare.payload import Device, Setup
from commands.prepare.plan import Job
from commands.prepare.scan_task import prepare_one
from commands.prepare.settings import Settings, found_now, wanted_digests
from pipeline.discovery import Source
from pipeline.ingest import ScanHeader, read_scan_header
from storage import IndexEntry, create_store

GROWTH = {"seconds": 0.65, "processor_seconds": 0.65, "num_bytes": 0.8}
"""Above the points of a trial, predictions grow with this power of the voxels. Fits CTs of 256^3,
512 x 512 x 500 and 512 x 512 x 2,000 voxels (docs/results.md, *Proposals: time and memory*)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Measurements of a prepared scan."""

    voxels: float
    """Voxels at the store's spacing, before the crop."""
    seconds: float
    processor_seconds: float
    num_bytes: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Predicted cost of a scan."""

    seconds: float
    """Seconds in a process that has all cores."""
    processor_seconds: float
    num_bytes: float
    peak_bytes: int
    """Largest memory of the process that prepares it."""


@dataclass(frozen=True)
class Curve:
    """Points by ascending voxels, all different."""

    points: tuple[Point, ...]

    @classmethod
    def through(cls, points: Iterable[Point]) -> Curve:
        """Return a curve through points in any order; of points with equal voxels the last is used."""
        by_voxels = {point.voxels: point for point in points}
        return cls(tuple(by_voxels[voxels] for voxels in sorted(by_voxels)))

    @property
    def slowdown(self) -> float:
        """Seconds per second of processor time in the trial; above 1 if others use the machine."""
        processor = sum(point.processor_seconds for point in self.points)
        return max(1.0, sum(point.seconds for point in self.points) / processor) if processor else 1.0

    def at(self, voxels: float, what: str) -> float:
        """Return the seconds, processor_seconds or num_bytes of a scan with this number of voxels."""
        first, last = self.points[0], self.points[-1]
        if voxels <= first.voxels:
            return float(getattr(first, what))
        if voxels >= last.voxels:
            return float(getattr(last, what) * (voxels / last.voxels) ** GROWTH[what])
        upper = next(i for i, point in enumerate(self.points) if point.voxels > voxels)
        one, other = self.points[upper - 1], self.points[upper]
        low, high = (math.log(max(1e-9, getattr(point, what))) for point in (one, other))
        part = math.log(voxels / one.voxels) / math.log(other.voxels / one.voxels)
        return math.exp(low + part * (high - low))

    def cost(self, header: ScanHeader, settings: Settings) -> Cost:
        """Return the predicted cost of a scan."""
        voxels = header.voxels_at(settings.ingest.spacing_mm)
        return Cost(
            seconds=self.at(voxels, "seconds"),
            processor_seconds=self.at(voxels, "processor_seconds"),
            num_bytes=self.at(voxels, "num_bytes"),
            peak_bytes=peak_of_header(header, settings),
        )


def run_trial(sources: Sequence[Source], settings: Settings, device: Device) -> Curve:
    """Prepare some scans into a temporary store, and return the curve of their costs.

    The first is prepared twice, since compiled code is loaded with it.
    """
    config = settings.values()
    setup = Setup(settings=settings, wanted=wanted_digests(config), device=device)
    points = []
    for number, source in enumerate([sources[0], *sources]):
        with tempfile.TemporaryDirectory() as folder:
            store = create_store(Path(folder) / "store", spacing_mm=settings.ingest.spacing_mm, config=config)
            voxels = read_scan_header(source, settings.ingest).voxels_at(settings.ingest.spacing_mm)
            job = Job(found=found_now(source), stage="ingest", why="trial")
            began, processor = time.monotonic(), time.process_time()
            prepare_one(store, setup, job)
            seconds, processor = time.monotonic() - began, time.process_time() - processor
            made = store.committed_now(source.scan_id)
        if number and made is not None:
            points.append(
                Point(
                    voxels=voxels,
                    seconds=seconds,
                    processor_seconds=processor,
                    num_bytes=made.entry.num_bytes,
                )
            )
    return Curve.through(points)


def stored_share(entries: Iterable[IndexEntry], curve: Curve) -> float:
    """Return the ratio of the bytes of a store's scans to those of a trial's curve; 1 without scans."""
    known = [entry for entry in entries if entry.num_bytes]
    if not known:
        return 1.0
    predicted = sum(curve.at(math.prod(entry.shape_zyx), "num_bytes") for entry in known)
    return sum(entry.num_bytes for entry in known) / predicted


def seconds_of_run(costs: Sequence[Cost], *, workers: int, cores: int, slowdown: float = 1.0) -> float:
    """Return the seconds of a run with several processes on this machine, without its start.

    Args:
        costs: Costs of its scans.
        workers: Number of processes; a single one has all cores.
        cores: Number of the machine's cores.
        slowdown: Seconds per second of processor time.
    """
    if workers == 1:
        return sum(cost.seconds for cost in costs)
    together = sum(cost.processor_seconds for cost in costs) / max(1, min(workers, cores))
    return slowdown * max([together, *(cost.processor_seconds for cost in costs)])
