"""The bundled scans as the notebooks use them: their files, and a store of them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "pyproject.toml").exists())
EXAMPLES = ROOT / "examples"

HIPPOCAMPI = tuple(f"hippocampus_{number:03}" for number in (1, 3, 4, 7, 8, 11))
SMALL = ("example_ct_sm", "example_mr_sm", *HIPPOCAMPI, "sarcoma_pet")
"""All bundled scans but the two largest CTs: with them a store takes twice as long."""


def example_store(scan_ids: Sequence[str] = SMALL) -> Path:
    """The store named by MASS_STORE, else that of `make demo`, else one of some bundled scans, prepared now.

    Args:
        scan_ids: Scans to prepare where there is no store; all of `SMALL` take a minute.
    """
    if "MASS_STORE" in os.environ:
        return Path(os.environ["MASS_STORE"])
    if (ROOT / "demo-store" / "store.json").exists():
        return ROOT / "demo-store"
    folder = Path(tempfile.mkdtemp(prefix="mass-"))
    return prepare_examples(folder, scan_ids)


def prepare_examples(folder: Path, scan_ids: Sequence[str]) -> Path:
    """Prepare some of the bundled scans with the default settings; returns the store.

    Args:
        folder: Gets a manifest and the store.
        scan_ids: Ids in `examples/manifest.csv`.
    """
    with (EXAMPLES / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in scan_ids]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            paths = {name: str(EXAMPLES / row[name]) for name in ("image", "label") if row[name]}
            writer.writerow(row | paths)
    mass("prepare", folder / "manifest.csv", folder / "store")
    return folder / "store"


def mass(*arguments: object) -> str:
    """Run a `mass` command as in a terminal; returns what it prints.

    Raises:
        RuntimeError: The command could not be carried out; the message is what it printed. That single scans
            failed is no error: they are listed.
    """
    command = [sys.executable, "-m", "commands", *map(str, arguments)]
    plain = {
        name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")
    }
    plain |= {"TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=plain)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"mass {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
    return done.stdout
