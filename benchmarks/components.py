"""Supervoxels and connected components beside those of other libraries, as ratios within one run.

    python benchmarks/components.py                       a bundled CT stretched to 128^3, with noise
    python benchmarks/components.py --edge 256 --no-slic  larger, without the slowest
    python benchmarks/components.py --json OUT.json

Other code sees the very same arrays: supervoxels are drawn on our boundary evidence, components on one
threshold of our smoothed levels. cuCIM and our kernels on a GPU join in where CuPy finds one. Each is run
once to compile and warm up, then `--repeats` times; the least processor time counts (on a GPU seconds),
since other work on the machine hardly changes it. A ratio above 1: so many times slower than ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import slic, watershed
from speed import EXAMPLE, write_ct

from pipeline.compute.backend import Backend, get_backend, gpu_is_at_hand
from pipeline.hierarchies.boundaries import Levels
from pipeline.hierarchies.components import connected_components
from pipeline.hierarchies.supervoxels import basins
from pipeline.proposals.config import ProposalConfig

SCALE_MM = 0.7
THRESHOLD_LEVEL = 4096
"""Half of the soft-tissue window."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task."""

    task: str
    method: str
    seconds: float
    """Processor time on the CPU, wall time on a GPU; without compiling."""
    ratio: float
    """To ours on one thread."""
    regions: int
    same_as_ours: bool
    """Whether it draws the very same regions, however they are numbered."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, default=EXAMPLE, help="a CT that SimpleITK reads, or HU as .npy")
    parser.add_argument("--edge", type=int, default=128, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each after the first")
    parser.add_argument("--no-slic", action="store_true", help="leave SLIC out")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    codes = (
        np.load(options.scan, allow_pickle=False)
        if options.scan.suffix == ".npy"
        else stretched_ct(options.scan, options.edge)
    )
    levels = Levels(
        codes=codes,
        scale=1.0,
        offset=0.0,
        windows=ProposalConfig().ct_windows_hu,
        spacing_zyx_mm=(1.5, 1.5, 1.5),
        backend=get_backend("cpu", num_threads=1),
    )
    rows = supervoxel_rows(levels, options.repeats, with_slic=not options.no_slic)
    rows += component_rows(levels.exceeded(0, SCALE_MM, np.array([THRESHOLD_LEVEL])) > 0, options.repeats)
    print("| task | method | seconds | times ours | regions | same regions as ours |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for row in rows:
        same = "yes" if row.same_as_ours else "no"
        print(
            f"| {row.task} | {row.method} | {row.seconds:.3f} | {row.ratio:.2f} | {row.regions:,} | {same} |"
        )
    if options.json:
        table = {"edge": options.edge, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def stretched_ct(scan: Path, edge: int) -> NDArray[np.int16]:
    """A CT stretched to so many voxels along each axis, with noise, clipped as ingest does."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_ct(scan, path, (edge,) * 3, 10.0)
        return np.clip(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), -991, 500)


def supervoxel_rows(levels: Levels, repeats: int, *, with_slic: bool) -> list[Row]:
    """Our basins, the watershed of scikit-image, and its SLIC with as many segments."""
    evidence = levels.evidence((SCALE_MM,))[0]
    ours, count = basins(evidence, levels.backend)
    methods: dict[str, Callable[[], Any]] = {
        "ours, one thread": lambda: basins(evidence, levels.backend)[0],
        "ours, NumPy": lambda: basins(evidence, Backend(name="numpy"))[0],
        "scikit-image watershed": lambda: watershed(evidence),
    }
    if with_slic:
        image = levels.codes.astype(np.float32)
        methods["scikit-image SLIC"] = lambda: slic(
            image, n_segments=count, compactness=0.1, channel_axis=None, start_label=0
        )
    if gpu_is_at_hand():
        gpu = get_backend("gpu")
        device = gpu.to_device(evidence)
        methods["ours, GPU"] = lambda: gpu.to_host(basins(device, gpu)[0])
    return compared("supervoxels", methods, ours, repeats)


def component_rows(mask: np.ndarray[Any, np.dtype[np.bool_]], repeats: int) -> list[Row]:
    """Our components, numbered in scan order, and those of four libraries."""
    import cc3d

    cpu = get_backend("cpu", num_threads=1)
    ours, _ = connected_components(mask, cpu)
    methods: dict[str, Callable[[], Any]] = {
        "ours, one thread": lambda: connected_components(mask, cpu)[0],
        "connected-components-3d": lambda: cc3d.connected_components(mask, connectivity=6),
        "SciPy": lambda: ndimage.label(mask)[0],
        "scikit-image": lambda: label(mask, connectivity=1),
    }
    if gpu_is_at_hand():
        gpu = get_backend("gpu")
        device = gpu.to_device(mask)
        methods["ours, GPU"] = lambda: gpu.to_host(connected_components(device, gpu)[0])
        if importlib.util.find_spec("cucim") is not None:
            from cucim.skimage.measure import label as label_on_gpu

            methods["cuCIM"] = lambda: gpu.to_host(label_on_gpu(device, connectivity=1))
    return compared("components", methods, ours, repeats)


def compared(task: str, methods: dict[str, Callable[[], Any]], ours: Any, repeats: int) -> list[Row]:
    """A row for each method; the first one is ours."""
    rows: list[Row] = []
    for name, method in methods.items():
        clock = time.monotonic if name in ("ours, GPU", "cuCIM") else time.process_time
        found = method()
        seconds = []
        for _ in range(repeats):
            began = clock()
            method()
            seconds.append(clock() - began)
        least = min(seconds)
        rows.append(
            Row(
                task=task,
                method=name,
                seconds=least,
                ratio=least / rows[0].seconds if rows else 1.0,
                regions=int(np.count_nonzero(np.bincount(found.ravel()))),
                same_as_ours=same_regions(found, ours),
            )
        )
    return rows


def same_regions(one: Any, other: Any) -> bool:
    """Whether two label volumes are one partition, numbered in any way."""
    pairs = np.unique((one.ravel().astype(np.int64) << 32) | other.ravel().astype(np.int64))
    return len(np.unique(pairs >> 32)) == len(pairs) == len(np.unique(pairs & 0xFFFFFFFF))


if __name__ == "__main__":
    main()
