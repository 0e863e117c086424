"""The real `mass pretrain` from its start to its end: steps a second, waiting for data, memory.

    python benchmarks/train_speed.py STORE                      both recipes, 60 steps each
    python benchmarks/train_speed.py STORE --recipes small --steps 20 --device cpu --workers 12

A line of JSON for each recipe. Evaluations and pictures are off; the loader, augmentation, a checkpoint and
the export of the weights take part. Memory is the largest of the process and its workers.
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

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--recipes", nargs="+", default=["published", "small"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=12, help="processes that read samples")
    options = parser.parse_args()
    for recipe in options.recipes:
        print(json.dumps(measured(recipe, options)), flush=True)


def measured(recipe: str, options: argparse.Namespace) -> dict[str, object]:
    """Train some steps with a recipe."""
    with tempfile.TemporaryDirectory() as place:
        config, result = Path(place) / "c.toml", Path(place) / "result.json"
        config.write_text(
            f"[optimisation]\nnum_steps = {options.steps}\n[run]\nevaluate_every = 0\ndraw_every = 0\n"
        )
        command = [sys.executable, "-m", "commands", "pretrain", str(options.store.resolve()), f"{place}/RUN"]
        command += ["--recipe", recipe, "--config", str(config), "--workers", str(options.workers)]
        command += ["--device", options.device, "--json", str(result)]
        began = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        done = json.loads(result.read_text())
        lines = (Path(place) / "RUN" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["samples_per_second"] for line in lines if '"train"' in line]
    batch = 2 if recipe == "small" else 4
    return {
        "recipe": recipe,
        "steps": done["step"],
        "command_seconds": seconds,
        "steps_per_second": done["samples_per_second"] / batch,
        "steps_per_second_last": rates[-1] / batch,
        "data_wait_fraction": done["data_wait_fraction"],
        "precision": done["precision"]["name"],
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
