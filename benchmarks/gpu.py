"""The GPU's path beside the CPU's: the same labels to the bit, and how much sooner.

    python benchmarks/gpu.py STORE                      every scan of a store, and one CT of it at 256^3
    python benchmarks/gpu.py STORE --scans 3 --edge 384 --json OUT.json

Proposals are made again from the stored images, on the CPU and on the GPU, and compared with each other and
with what the store holds (which must be of this version). A CT, or else the first scan, is stretched to
`--edge` voxels along each axis, with noise: for this the steps are told too. Compiled code is warm; the GPU's
seconds include all copies. Without a GPU it ends at once.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from speed import STEPS, timed

import pipeline.hierarchies.boundaries
import pipeline.proposals.proposal_set as steps
from pipeline.compute.backend import Backend, NoGpu, get_backend
from pipeline.proposals.config import ProposalConfig
from pipeline.quality.intervals import num_atoms
from storage import open_store
from storage.records.orders import pack_orders


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What proposals are made from."""

    name: str
    image: NDArray[np.int16]
    scale: float
    offset: float
    low: float
    high: float
    unit: str
    spacing_zyx_mm: tuple[float, float, float]
    stored: steps.ProposalSet | None = None

    def proposals(self, backend: Backend) -> steps.ProposalSet:
        """What the default settings make of it."""
        return steps.propose(
            self.image,
            scale=self.scale,
            offset=self.offset,
            intensity_range=(self.low, self.high),
            spacing_zyx_mm=self.spacing_zyx_mm,
            unit=self.unit,
            config=ProposalConfig(),
            backend=backend,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scan."""

    scan: str
    voxels: int
    cpu_seconds: float
    gpu_seconds: float
    same_as_cpu: bool
    same_as_stored: bool | None
    gpu_gib: float
    """Memory that CuPy's pool took."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--scans", type=int, metavar="N", help="the first N only (default: all)")
    parser.add_argument("--edge", type=int, default=256, help="voxels of the stretched scan along each axis")
    parser.add_argument("--threads", type=int, help="of the CPU; by default one a core")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    try:
        gpu = get_backend("gpu", num_threads=options.threads)
    except NoGpu as error:
        raise SystemExit(str(error)) from None
    cpu = get_backend("cpu", num_threads=options.threads)
    volumes = list(stored_volumes(options.store, options.scans))
    large = stretched(next((v for v in volumes if v.unit == "HU"), volumes[0]), options.edge)
    for backend in (cpu, gpu):  # compiles
        volumes[0].proposals(backend)
    rows = [compared(volume, cpu, gpu) for volume in [*volumes, large]]
    print("| scan | voxels | CPU s | GPU s | CPU / GPU | same as the CPU's | same as stored | GPU GiB |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- | ---: |")
    words = {True: "yes", False: "NO", None: ""}
    for row in rows:
        print(
            f"| {row.scan} | {row.voxels:,} | {row.cpu_seconds:.2f} | {row.gpu_seconds:.2f} "
            f"| {row.cpu_seconds / row.gpu_seconds:.1f} | {words[row.same_as_cpu]} "
            f"| {words[row.same_as_stored]} | {row.gpu_gib:.2f} |"
        )
    parts = {backend.name: step_seconds(large, backend) for backend in (cpu, gpu)}
    print(f"\n| step at {options.edge}^3 | CPU s | GPU s |\n| --- | ---: | ---: |")
    for step in STEPS:
        print(f"| {step} | {parts['cpu'][step]:.2f} | {parts['gpu'][step]:.2f} |")
    if options.json:
        table = {"scans": [asdict(row) for row in rows], "steps": parts}
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if not all(row.same_as_cpu and row.same_as_stored in (True, None) for row in rows):
        raise SystemExit("the labels differ")


def stored_volumes(path: Path, num_scans: int | None) -> Iterator[Volume]:
    """The scans of a store, with their proposals."""
    store = open_store(path)
    for scan_id in store.scan_ids[:num_scans]:
        scan = store.scan(scan_id)
        record = scan.record()
        yield Volume(
            name=scan_id,
            image=record.image,
            scale=record.scale,
            offset=record.offset,
            low=scan.intensity.low,
            high=scan.intensity.high,
            unit=scan.intensity.unit,
            spacing_zyx_mm=record.spacing_zyx_mm,
            stored=steps.ProposalSet(
                atoms=record.atoms,
                orders=record.orders,
                table=record.table,
                scores=record.scores,
                sources=record.sources,
            ),
        )


def stretched(volume: Volume, edge: int) -> Volume:
    """A volume stretched to a cube of 1.5 mm voxels, with noise (seeded) of a thin-slice CT: 10 HU."""
    zoom = [edge / n for n in volume.image.shape]
    image = ndimage.zoom(volume.image.astype(np.float32), zoom, order=1)
    rng = np.random.default_rng(0)
    for plane in image:
        plane += rng.normal(0, 10.0 / volume.scale, plane.shape)
    codes = np.clip(np.rint(image), volume.image.min(), volume.image.max()).astype(np.int16)
    return Volume(
        name=f"{volume.name} at {edge}^3",
        image=codes,
        scale=volume.scale,
        offset=volume.offset,
        low=volume.low,
        high=volume.high,
        unit=volume.unit,
        spacing_zyx_mm=(1.5, 1.5, 1.5),
    )


def compared(volume: Volume, cpu: Backend, gpu: Backend) -> Row:
    """Both paths on one scan."""
    seconds, made = {}, {}
    with PoolPeak(gpu) as peak:
        for backend in (cpu, gpu):
            began = time.monotonic()
            made[backend.name] = volume.proposals(backend)
            seconds[backend.name] = time.monotonic() - began
    stored = volume.stored
    return Row(
        scan=volume.name,
        voxels=volume.image.size,
        cpu_seconds=seconds["cpu"],
        gpu_seconds=seconds["gpu"],
        same_as_cpu=same(made["cpu"], made["gpu"]),
        same_as_stored=None if stored is None else same(made["gpu"], stored),
        gpu_gib=peak.most / 2**30,
    )


class PoolPeak:
    """The most that CuPy's pool holds while a block runs, looked at every few milliseconds."""

    def __init__(self, gpu: Backend) -> None:
        self.pool, self.most, self.done = gpu.xp.get_default_memory_pool(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, self.pool.total_bytes())

    def __enter__(self) -> PoolPeak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def same(one: steps.ProposalSet, other: steps.ProposalSet) -> bool:
    """Whether two sets are the same to the bit; of the orders, what a store keeps of them."""

    def arrays(made: steps.ProposalSet) -> list[NDArray[Any]]:
        sizes = [num_atoms(made, layer) for layer in range(len(made.atoms))]
        segments, table = pack_orders(made.orders, sizes, made.table)
        return [*made.atoms, *segments, table, made.scores]

    return tuple(one.sources) == tuple(other.sources) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True)
    )


def step_seconds(volume: Volume, backend: Backend) -> dict[str, float]:
    """Seconds of each step, the device waited for after each; steps that run side by side count in full."""
    taken = dict.fromkeys(STEPS, 0.0)
    kept = {}
    places = [(steps, name, step) for step, names in STEPS.items() for name in names if hasattr(steps, name)]
    for module, name, step in [*places, (pipeline.hierarchies.boundaries.Levels, "evidence", "gradient")]:
        kept[module, name] = getattr(module, name)
        setattr(module, name, timed(waited_for(kept[module, name], backend), step, taken))
    try:
        volume.proposals(backend)
    finally:
        for (module, name), function in kept.items():
            setattr(module, name, function)
    return taken


def waited_for(function: Any, backend: Backend) -> Any:
    """The function, which returns when the device is done."""

    def run(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if backend.name == "gpu":
            backend.xp.cuda.Device().synchronize()
        return result

    return run


if __name__ == "__main__":
    main()
