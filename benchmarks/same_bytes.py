"""Whether two checkouts of the project make the same bytes: stores, scores, reports, weights.

    python benchmarks/same_bytes.py OLD NEW MANIFEST OUT      folders of two checkouts, a manifest, a scratch
    folder

In each checkout, with the Python that runs this script and nothing else of the other: `mass prepare`,
`score`, `inspect`, `pretrain` for a few steps on the CPU, `finetune` on the first labelled data set. What a
run measures of itself (seconds, memory) is left out. Prints a line per file that differs and a table of what
was compared; exit code 1 where anything differs. For changes of structure, which must not change a byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MEASURED = (
    "seconds",
    "samples_per_second",
    "data_wait_fraction",
    "told",
    "run",
    "store",
    "written",
    "weights",
)
"""Keys of JSON that hold times, or names of the scratch folder."""
ENTRY = """
import sys
try:
    from commands.main import main
except ModuleNotFoundError:
    from flows import main
sys.exit(main())
"""
"""Starts `mass`, wherever the checkout has it."""
PRETRAIN = """
[data]
holdout_fraction = 0.0
[optimisation]
num_steps = 6
[run]
num_workers = 0
evaluate_every = 0
draw_every = 0
"""
FINETUNE = """
[optimisation]
num_steps = 4
[run]
num_workers = 0
evaluate_every = 0
draw_every = 0
"""


def mass(checkout: Path, *arguments: object) -> None:
    """Run a command of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", ENTRY, *map(str, arguments)]
    subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)


def make(checkout: Path, manifest: Path, out: Path, label: str | None) -> None:
    """Everything that is compared, in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "pretrain.toml").write_text(PRETRAIN, encoding="utf-8")
    (out / "finetune.toml").write_text(FINETUNE, encoding="utf-8")
    store, run = out / "store", out / "run"
    mass(checkout, "prepare", manifest, store)
    mass(checkout, "score", store, "--json", out / "score.json", "--csv", out / "score.csv")
    mass(checkout, "inspect", store, "--out", out / "report.html")
    training = ("--device", "cpu", "--recipe", "small")
    mass(checkout, "pretrain", store, run, *training, "--config", out / "pretrain.toml")
    if label:
        which = ("--dataset", label, "--num", 2)
        tuned = out / "tuned"
        mass(checkout, "finetune", run, store, tuned, *which, *training, "--config", out / "finetune.toml")


def plain(value: Any) -> Any:
    """JSON without what a run measures of itself."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in MEASURED}
    return [plain(part) for part in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """Of a file's bytes; of JSON, of its values without what is measured."""
    data = path.read_bytes()
    if path.suffix == ".json" and "store" not in path.parts:
        data = json.dumps(plain(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def digests(out: Path) -> dict[str, str]:
    """Of every file that has to be the same, by its path."""
    wanted = [path for path in (out / "store").rglob("*") if path.is_file()]
    wanted += list((out / "report-pictures").glob("*.png"))
    for folder in ("run", "tuned"):
        for name in ("weights.safetensors", "report.json"):
            wanted += list((out / folder).glob(name))
    wanted += [out / "score.json", out / "score.csv", out / "report.html"]
    return {str(path.relative_to(out)): digest(path) for path in sorted(wanted) if path.is_file()}


def main() -> None:
    """Make, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", help="labelled data set to fine-tune on (default: no fine-tuning)")
    options = parser.parse_args()
    found = {}
    for name in ("old", "new"):
        out = options.out.resolve() / name
        make(getattr(options, name).resolve(), options.manifest.resolve(), out, options.dataset)
        found[name] = digests(out)
    old, new = found["old"], found["new"]
    differing = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    for name in differing:
        print(f"differs: {name} {old.get(name, 'missing')} {new.get(name, 'missing')}")
    groups: dict[str, int] = {}
    for name in old:
        group = name.split("/")[0]
        groups[group] = groups.get(group, 0) + 1
    print("| compared | files | different |\n| --- | ---: | ---: |")
    for group, count in sorted(groups.items()):
        print(f"| {group} | {count} | {sum(name.split('/')[0] == group for name in differing)} |")
    sys.exit(int(bool(differing)))


if __name__ == "__main__":
    main()
