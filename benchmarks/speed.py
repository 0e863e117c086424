"""Seconds and memory of a CT, 256^3 if not told otherwise: image to proposals, and file to store.

    python benchmarks/speed.py                        the largest bundled CT, resampled to 256^3, with noise
    python benchmarks/speed.py --scan CT.nii.gz       another CT
    python benchmarks/speed.py --keep DIR             keep the store, for `benchmarks/store.py --store DIR`
    python benchmarks/speed.py --shape 500 512 512    another size; the CT goes on as its own mirror image
    python benchmarks/speed.py --threads 1            one thread: processor time tells the steps apart

Each part runs in a process of its own, once to compile and once to measure. Peak memory is the process's
largest resident size, Python and compiled code included; bytes a voxel are given with it, and less what the
process held before it saw the scan. Processor time hardly depends on what else runs, seconds do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "totalseg" / "example_ct.nii.gz"

STEPS = {
    "gradient": ("boundary_evidence", "_component_levels"),
    "supervoxels": (
        "basins",
        "join_lowest_pass_in_place",
        "merge_weakest_consuming",
        "join_flat",
        "relabel_in_place",
    ),
    "region graph": ("region_graph", "region_sums"),
    "trees": ("grow_all",),
    "components": ("component_tree",),
    "sketches": ("leaf_sketches", "count_inside", "candidates_of"),
    "selection": ("choose", "with_second", "worth_keeping"),
    "atoms": ("refine_consuming", "arrange_consuming"),
}
"""Functions that `growing` and `proposal_set` call, by what the table calls them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, default=EXAMPLE, help="a CT that SimpleITK reads")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 256), help="voxels along z, y, x")
    parser.add_argument("--threads", type=int, help="threads of the first part; by default one a core")
    parser.add_argument("--noise-hu", type=float, default=10.0, help="noise of a thin-slice CT, added")
    parser.add_argument("--keep", type=Path, help="keep the store here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--propose", type=Path, help=argparse.SUPPRESS)  # the measuring child
    options = parser.parse_args()
    if options.propose:
        print(json.dumps(measure_propose(options.propose, options.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct(options.scan, folder / "ct.nii.gz", tuple(options.shape), options.noise_hu)
        threads = ["--threads", str(options.threads)] if options.threads else []
        numbers = run_child(["--propose", str(folder / "ct.nii.gz"), *threads])
        numbers |= measure_prepare(folder / "ct.nii.gz", folder / "store", math.prod(options.shape))
        if options.keep:
            shutil.copytree(folder / "store", options.keep)
    for key, value in numbers.items():
        print(f"{key:50s} {value:12,.2f}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def write_ct(source: Path, target: Path, shape: tuple[int, ...], noise_hu: float) -> None:
    """A CT stretched to at most 256^3 voxels of 1.5 mm, continued by its mirror images, with noise (seeded).

    Written as int16 NIfTI.
    """
    import SimpleITK as sitk

    image = sitk.ReadImage(str(source), sitk.sitkFloat32)
    size = [min(256, edge) for edge in shape[::-1]]
    grid = sitk.Image(size, sitk.sitkFloat32)
    extent = np.array(image.GetSize()) * np.array(image.GetSpacing())
    grid.SetSpacing((extent / size).tolist())
    grid.SetOrigin(image.GetOrigin())
    grid.SetDirection(image.GetDirection())
    array = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1000.0))
    array = np.pad(array, [(0, n - m) for n, m in zip(shape, array.shape, strict=True)], mode="symmetric")
    rng, codes = np.random.default_rng(0), np.empty(shape, np.int16)
    for z, plane in enumerate(array):
        codes[z] = np.rint(plane + rng.normal(0, noise_hu, plane.shape))
    made = sitk.GetImageFromArray(codes)
    made.SetSpacing((1.5, 1.5, 1.5))
    sitk.WriteImage(made, str(target))


def run_child(arguments: list[str]) -> dict[str, float]:
    """The numbers that this script prints when it is started with other arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_propose(path: Path, threads: int | None) -> dict[str, float]:
    """Seconds of each step of `propose`, and the peak memory, compiled code warm."""
    import SimpleITK as sitk

    import pipeline.hierarchies.boundaries
    import pipeline.proposals.candidates
    import pipeline.proposals.proposal_set as steps
    from commands.prepare.allocator import return_large_arrays
    from pipeline.compute.backend import get_backend
    from pipeline.proposals.config import ProposalConfig

    return_large_arrays()
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.clip(image, -991, 500, out=image)
    taken = dict.fromkeys(STEPS, 0.0)
    for step, names in STEPS.items():
        for name in names:
            for module in (pipeline.proposals.candidates, steps):
                if hasattr(module, name):
                    setattr(module, name, timed(getattr(module, name), step, taken))
    levels: Any = pipeline.hierarchies.boundaries.Levels
    levels.evidence = timed(levels.evidence, "gradient", taken)

    def run(voxels: Any) -> Any:
        return steps.propose(
            voxels,
            scale=1.0,
            offset=0.0,
            intensity_range=(-991.0, 500.0),
            spacing_zyx_mm=(1.5, 1.5, 1.5),
            unit="HU",
            config=ProposalConfig(),
            backend=get_backend("cpu", num_threads=threads),
        )

    run(np.ascontiguousarray(image[:64, :64, :64]))
    taken.update(dict.fromkeys(STEPS, 0.0))
    held = resident_bytes() - image.nbytes
    began, processor = time.monotonic(), time.process_time()
    made = run(image)
    total, processor = time.monotonic() - began, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return {f"propose: {step} (s)": seconds for step, seconds in taken.items()} | {
        "propose: all (s)": total,
        "propose: processor time (s)": processor,
        "propose: processor time a million voxels (s)": processor / image.size * 1e6,
        "propose: peak memory (GiB)": peak / 2**30,
        "propose: bytes a voxel": peak / image.size,
        "propose: bytes a voxel, without Python and code": (peak - held) / image.size,
        "voxels": float(image.size),
        "proposals": float(len(made.table)),
        "atoms": float(made.orders[0].shape[1]),
    }


def resident_bytes() -> int:
    """What this process holds in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def timed(function: Callable[..., Any], step: str, taken: dict[str, float]) -> Callable[..., Any]:
    """The function, its seconds added to those of its step."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        result = function(*args, **kwargs)
        taken[step] += time.monotonic() - began
        return result

    return run


def measure_prepare(path: Path, store: Path, num_voxels: int) -> dict[str, float]:
    """Time of `mass prepare` on the file, with and without start-up, on processors, and its peak memory."""
    command = [
        sys.executable,
        "-c",
        "import sys; from commands.main import main; sys.exit(main())",
        "prepare",
    ]
    report = store.with_name(f"{store.name}.json")
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, str(path.parent), str(store), "--json", str(report)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)  # of this child alone, its own children included
    total = time.monotonic() - began
    if status:
        raise SystemExit(f"mass prepare ended with status {os.waitstatus_to_exitcode(status)}")
    (scan,) = json.loads(report.read_text(encoding="utf-8"))["committed"]
    return {
        "mass prepare, start-up included (s)": total,
        "mass prepare: the scan, from file to committed store (s)": scan["seconds"],
        "mass prepare: processor time (s)": used.ru_utime + used.ru_stime,
        "mass prepare: peak memory (GiB)": used.ru_maxrss / 2**20,
        "mass prepare: bytes a voxel": used.ru_maxrss * 2**10 / num_voxels,
    }


if __name__ == "__main__":
    main()
