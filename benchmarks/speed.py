"""Seconds and memory of a 256^3 CT: from its image to its proposals, and from its file to the store.

    python benchmarks/speed.py                        the largest bundled CT, resampled to 256^3, with noise
    python benchmarks/speed.py --scan CT.nii.gz       another CT
    python benchmarks/speed.py --keep DIR             keep the store, for `benchmarks/store.py --store DIR`

Each part runs in a process of its own, once to compile and once to measure. Peak memory is the process's
largest resident size, Python and compiled code included.
"""

from __future__ import annotations

import argparse
import json
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
import SimpleITK as sitk  # noqa: N813

EXAMPLE = Path(__file__).parents[1] / "examples" / "totalseg" / "example_ct.nii.gz"

STEPS = {
    "gradient": ("window_levels", "boundary_evidence", "smooth"),
    "supervoxels": ("basins", "_merge_weakest", "join_flat", "merge_graph", "merge_sums"),
    "region graph": ("region_graph", "region_sums"),
    "trees": ("grow_all",),
    "components": ("component_tree",),
    "sketches": ("leaf_sketches", "candidates_of"),
    "selection": ("choose", "worth_keeping"),
    "atoms": ("refine", "arrange"),
}
"""Functions that `pipeline.proposals` calls, by what the table calls them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, default=EXAMPLE, help="a CT that SimpleITK reads")
    parser.add_argument("--edge", type=int, default=256, help="voxels along each axis")
    parser.add_argument("--noise-hu", type=float, default=10.0, help="noise of a thin-slice CT, added")
    parser.add_argument("--keep", type=Path, help="keep the store here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--propose", type=Path, help=argparse.SUPPRESS)  # the measuring child
    options = parser.parse_args()
    if options.propose:
        print(json.dumps(measure_propose(options.propose)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct(options.scan, folder / "ct.nii.gz", options.edge, options.noise_hu)
        numbers = run_child(["--propose", str(folder / "ct.nii.gz")])
        numbers |= measure_prepare(folder / "ct.nii.gz", folder / "store")
        if options.keep:
            shutil.copytree(folder / "store", options.keep)
    for key, value in numbers.items():
        print(f"{key:42s} {value:12,.2f}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def write_ct(source: Path, target: Path, edge: int, noise_hu: float) -> None:
    """A CT stretched to a cube of 1.5 mm voxels, with Gaussian noise (seeded), as int16 NIfTI."""
    image = sitk.ReadImage(str(source), sitk.sitkFloat32)
    grid = sitk.Image(edge, edge, edge, sitk.sitkFloat32)
    extent = np.array(image.GetSize()) * np.array(image.GetSpacing())
    grid.SetSpacing((extent / edge).tolist())
    grid.SetOrigin(image.GetOrigin())
    grid.SetDirection(image.GetDirection())
    array = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1000.0))
    array += np.random.default_rng(0).normal(0, noise_hu, array.shape)
    made = sitk.GetImageFromArray(np.rint(array).astype(np.int16))
    made.SetSpacing((1.5, 1.5, 1.5))
    sitk.WriteImage(made, str(target))


def run_child(arguments: list[str]) -> dict[str, float]:
    """The numbers that this script prints when it is started with other arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_propose(path: Path) -> dict[str, float]:
    """Seconds of each step of `propose`, and the peak memory, compiled code warm."""
    import pipeline.proposals as steps
    from pipeline.backend import get_backend

    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    image = np.clip(image, -991, 500).astype(np.int16)
    taken = dict.fromkeys(STEPS, 0.0)
    for step, names in STEPS.items():
        for name in names:
            if hasattr(steps, name):
                setattr(steps, name, timed(getattr(steps, name), step, taken))

    def run(voxels: Any) -> Any:
        return steps.propose(
            voxels,
            scale=1.0,
            offset=0.0,
            intensity_low=-991.0,
            intensity_high=500.0,
            spacing_zyx_mm=(1.5, 1.5, 1.5),
            unit="HU",
            config=steps.ProposalConfig(),
            backend=get_backend("cpu"),
        )

    run(np.ascontiguousarray(image[:64, :64, :64]))
    taken.update(dict.fromkeys(STEPS, 0.0))
    began = time.monotonic()
    made = run(image)
    total = time.monotonic() - began
    numbers = {f"propose: {step} (s)": seconds for step, seconds in taken.items()}
    numbers["propose: all (s)"] = total
    numbers["propose: peak memory (GiB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    numbers["voxels"] = float(image.size)
    numbers["proposals"] = float(len(made.table))
    numbers["atoms"] = float(made.orders[0].shape[1])
    return numbers


def timed(function: Callable[..., Any], step: str, taken: dict[str, float]) -> Callable[..., Any]:
    """The function, its seconds added to those of its step."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        result = function(*args, **kwargs)
        taken[step] += time.monotonic() - began
        return result

    return run


def measure_prepare(path: Path, store: Path) -> dict[str, float]:
    """Wall time of `mass prepare` on the file, start-up included, and the scan's own seconds."""
    report = store.with_suffix(".json")
    command = [sys.executable, "-c", "import flows, sys; sys.exit(flows.main())", "prepare"]
    began = time.monotonic()
    subprocess.run(
        [*command, str(path.parent), str(store), "--json", str(report)], check=True, capture_output=True
    )
    total = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"mass prepare, start-up included (s)": total, "mass prepare: peak memory (GiB)": peak}


if __name__ == "__main__":
    main()
