"""Peak memory and time of `mass segment` on a CT of 512 x 512 x 140 voxels, 0.7 x 0.7 x 3 mm, three labels.

    python benchmarks/segment_memory.py                         windows as large as the small recipe's crop
    python benchmarks/segment_memory.py --window 128 128 128    as large as the published crop

The network is that of the small recipe (8-16-32-64-96), untrained: memory and time do not depend on weights.
`--overlap 0` takes an eighth of the windows and the same memory. The command runs in a process of its own,
whose peak resident memory is told by the system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.ingest.writeback import write_image
from pipeline.volumes.grid import Grid
from training.network.iris import Iris

SHAPE_ZYX, SPACING_XYZ_MM = (140, 512, 512), (0.7, 0.7, 3.0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--window", nargs=3, default=["32", "48", "32"], metavar=("Z", "Y", "X"))
    options.add_argument("--overlap", default="0.5")
    options.add_argument("--json", type=Path, help="write the figures")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, labels, grid = draw()
        write_image(folder / "ct.mha", image, grid)
        write_image(folder / "mask.mha", labels, grid)
        torch.save(Iris((8, 16, 32, 64, 96), 1).state_dict(), folder / "net.pt")
        command = [sys.executable, "-m", "commands", "segment", folder / "net.pt"]
        command += ["--reference-image", folder / "ct.mha", "--reference-mask", folder / "mask.mha"]
        command += [folder / "ct.mha", "--out", folder / "out", "--modality", "ct"]
        command += ["--window", *arguments.window, "--overlap", arguments.overlap]
        began = time.monotonic()
        subprocess.run([str(part) for part in command], check=True)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    told = {"window": arguments.window, "overlap": arguments.overlap, "peak_gib": peak, "seconds": seconds}
    window = " x ".join(arguments.window)
    print(f"window {window}, overlap {arguments.overlap}: {peak:.2f} GiB, {seconds:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(told) + "\n")


def draw() -> tuple[np.ndarray, np.ndarray, Grid]:
    """A body with noise that fills the scan, and three structures in it."""
    grid = Grid(
        shape_zyx=SHAPE_ZYX,
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=(0.0, 0.0, 0.0),
        direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
    )
    image = np.random.default_rng(0).normal(40, 12, SHAPE_ZYX).astype(np.int16)
    image[:, :, :20] = -1000
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    for value, z in enumerate((20, 60, 100), start=1):
        labels[z : z + 20, 150:230, 200:300] = value
    return image, labels, grid


if __name__ == "__main__":
    main()
