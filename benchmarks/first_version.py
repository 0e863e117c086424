"""The first version of `mass prepare`, from its commit, in a working tree of its own.

    git worktree --> a process with that tree's modules --mass prepare--> its store --today's score--> cells

Reads:  a manifest, the history of this checkout.
Writes: OUT/first: two stores (the default number of proposals, and 4,000), the processor time of each scan's
        proposals. The working tree is removed again.
Bounds: a checkout whose history has the commit (a shallow clone may lack it); one process.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mask_methods import proposal_bytes
from benchmarks.quality_cells import Cell, cell_key, cell_path, finished, score, with_more
from pipeline.discovery.sources import Source
from storage import open_store

COMMIT = "a1f95da"
"""The first version whose `mass prepare`, tests and results were complete."""

NAME = "first"
_ROOT = Path(__file__).parents[1]

# Runs among the old modules: times what one_scan calls, then hands over to the old command line.
_TIMED = """
import json, sys, time
import commands.prepare.scan_task as work
spent, times, inner, outer = [], sys.argv.pop(1), work.propose, work._prepare_scan
def propose(*args, **named):
    began = time.process_time()
    made = inner(*args, **named)
    spent[:] = [time.process_time() - began]
    return made
def prepare_scan(store, setup, job):
    done = outer(store, setup, job)
    for seconds in spent:
        with open(times, "a") as file:
            file.write(json.dumps({"scan": job.scan_id, "seconds": seconds}) + "\\n")
    return done
work.propose, work._prepare_scan = propose, prepare_scan
from flows import main
sys.exit(main())
"""


def make_first_cells(sources: Sequence[Source], out: Path) -> list[str]:
    """Make the first version's cells that are not there yet; what it could not prepare."""
    keys = {source.scan_id: cell_key(source, {"commit": COMMIT, "raised_to": 4000}) for source in sources}
    missing = [s for s in sources if not finished(cell_path(out, NAME, s.scan_id), keys[s.scan_id])]
    print(f"{len(sources)} scans, the first version: {len(missing)} cells to make", flush=True)
    if not missing:
        return []
    folder = out / NAME
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(sources, folder / "manifest.csv")
    (folder / "raised.toml").write_text("[proposals]\nmax_proposals = 4000\n", encoding="utf-8")
    with working_tree(folder / "tree") as tree:
        prepare(tree, folder, "default", [])
        prepare(tree, folder, "raised", ["--config", str((folder / "raised.toml").absolute())])
    lines = (folder / "default.times.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = {line["scan"]: line["seconds"] for line in map(json.loads, lines)}
    default, raised = open_store(folder / "default"), open_store(folder / "raised")
    failures = []
    for source in missing:
        name = source.scan_id
        if name not in default.entries or name not in raised.entries:
            failures.append(f"{name}: the first version could not prepare it")
            continue
        scores = score(default.scan(name).record()), score(raised.scan(name).record())
        Cell(
            key=keys[name],
            scan_id=name,
            dataset=source.dataset,
            method=NAME,
            seconds=round(seconds[name], 3),
            num_bytes=proposal_bytes(default.scan(name).path),
            scores={"": with_more(*scores)},
        ).write(cell_path(out, NAME, name))
    return failures


def write_manifest(sources: Sequence[Source], path: Path) -> None:
    """Write a manifest of these scans."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "modality", "dataset"])
        for source in sources:
            label = source.labels[0].path.absolute()
            row = [source.scan_id, source.files[0].absolute(), label, source.modality or "", source.dataset]
            writer.writerow(row)


@contextmanager
def working_tree(folder: Path) -> Iterator[Path]:
    """A working tree of the first version; removed at the end.

    Raises:
        SystemExit: This checkout's history lacks the commit.
    """
    git = ["git", "-C", str(_ROOT)]
    subprocess.run([*git, "worktree", "prune"], check=False)
    added = subprocess.run(
        [*git, "worktree", "add", "--force", "--detach", str(folder.absolute()), COMMIT],
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode:
        sys.exit(f"the first version, {COMMIT}, cannot be checked out ({added.stderr.strip()}); leave it out")
    try:
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder.absolute())], check=False)


def prepare(tree: Path, folder: Path, store: str, options: Sequence[str]) -> None:
    """Run its `mass prepare`; scans that fail are told of in the end, and are no reason to stop."""
    command = [sys.executable, "-c", _TIMED, str((folder / f"{store}.times.jsonl").absolute())]
    command += ["prepare", str((folder / "manifest.csv").absolute()), str((folder / store).absolute())]
    environment = os.environ | {"PYTHONPATH": str(tree.absolute())}
    done = subprocess.run([*command, *options], cwd=tree, env=environment, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"the first version's prepare ended with {done.returncode}")
