"""Does the cells, alone or beside other processes; each is kept on disk when it is done.

    OUT/cells.jsonl            every cell that is done, one a line
    OUT/runs/SET/ARM-USE-seedN-MARK/   networks and tables of a cell
    OUT/carried/SET-MARK/      labels carried over from the labelled scans of a cell to the others
    OUT/locks/                 which cells a process is at

A cell's key holds a mark of all that it follows from but the code: settings, scans, split. Cells of other
settings stay in the file and are not shown. Two processes with the same command share the work: each takes
cells that the other has not begun.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bench.arms import ARMS, config_of, pretrain_arm, source_arm
from benchmarks.bench.plan import CLASSIFY, FIVE_SHOT, ONE_SHOT, PRETRAIN, Cell, Form
from benchmarks.bench.sets import BenchSet, Sources
from benchmarks.bench.uses import (
    RIVALS,
    Start,
    carried_over,
    classified,
    clean,
    fine_tuned,
    finetune_config,
    in_context,
    prompts_of,
    score_method,
)
from storage import StorageError, digest_of
from training.errors import TrainingError
from training.pretraining import PretrainConfig

CELLS = "cells.jsonl"
_POLL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells share."""

    out: Path
    sources: Sources
    form: Form
    sets: dict[str, BenchSet]
    _marks: dict[Cell, str] = field(default_factory=dict)

    # ------------------------------------------------------------ cells that are done

    def kept(self) -> dict[str, dict[str, Any]]:
        """All cells in the file, by key."""
        path = self.out / CELLS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {cell["key"]: cell for cell in map(json.loads, lines)}

    def keep(self, cell: dict[str, Any]) -> None:
        """Add a cell to the file; a line is written at once, also beside another process."""
        with (self.out / CELLS).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(cell) + "\n")

    def key(self, cell: Cell) -> str:
        """Name and mark of a cell."""
        if cell not in self._marks:
            self._marks[cell] = digest_of(self._settings(cell))[:10]
        return f"{cell.name}/{self._marks[cell]}"

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """All that a cell follows from, but the code."""
        bench_set = self.sets[cell.set]
        split = asdict(bench_set.split)
        scans = {"split": split, "digest": bench_set.digest_of(bench_set.store.scan_ids)}
        asked = {"structures": bench_set.structures if bench_set.about.labels else {}}
        if cell.arm in RIVALS:
            return {"cell": cell.name, **scans, **asked, "prompts": self.form.prompts}
        values: dict[str, Any] = {"cell": cell.name, **scans, "pretraining": self.config(cell).values()}
        if cell.use == PRETRAIN:
            return values
        values |= {**asked, "prompts": self.form.prompts if cell.use == ONE_SHOT else 0}
        if cell.labels_and_steps:
            count, steps = cell.labels_and_steps
            ids = bench_set.labelled(cell.seed, count)
            start = Start(config=self.config(cell))
            tuning = finetune_config(bench_set, start, ids, seed=cell.seed, steps=steps)
            values["finetuning"] = tuning.values()
            if cell.with_carried:
                values["carried"] = sorted(set(split["pretraining"]) - set(ids))
        return values

    def config(self, cell: Cell) -> PretrainConfig:
        """Settings of the pretraining of a cell's set, seed and arm."""
        return config_of(
            self.sets[cell.set],
            seed=cell.seed,
            steps=self.form.pretraining_steps,
            window_voxels=self.form.window_voxels,
            early_fraction=self.form.early_fraction,
            data=ARMS[source_arm(cell.arm)].data,
        )

    def folder(self, cell: Cell) -> Path:
        """Where a cell's networks and tables are."""
        mark = self.key(cell).rsplit("/", 1)[1]
        return self.out / "runs" / cell.set / f"{cell.arm}-{cell.use}-seed{cell.seed}-{mark}"

    # ------------------------------------------------------------ doing a cell

    def do(self, cell: Cell) -> dict[str, Any]:
        """Do a cell; its pretraining is done already. Returns what is kept of it."""
        began = time.monotonic()
        found = {"key": self.key(cell), "mark": self.key(cell).rsplit("/", 1)[1], **asdict(cell)}
        found |= self._done(cell)
        clean(self.folder(cell))
        return {"seconds": round(time.monotonic() - began, 1), **found}

    def _done(self, cell: Cell) -> dict[str, Any]:
        bench_set = self.sets[cell.set]
        if cell.use == PRETRAIN:
            config, folder = self.config(cell), self.folder(cell)
            made = pretrain_arm(cell.arm, bench_set, self.sources, folder, config)
            return {
                "first_loss": made.first_loss,
                "last_loss": made.last_loss,
                "steps": config.optimisation.num_steps,
                "window": config.data.crop_zyx,
            }
        if cell.use == CLASSIFY:
            return {"classes": classified(bench_set, self.start(cell), self.folder(cell), seed=cell.seed)}
        if cell.labels_and_steps:
            count, steps = cell.labels_and_steps
            ids = bench_set.labelled(cell.seed, count)
            start = self.start(cell)
            carried = None
            if cell.with_carried:
                folder = self.out / "carried" / f"{cell.set}-{bench_set.digest_of(ids)[:10]}"
                carried = carried_over(bench_set, ids, folder)
            method = fine_tuned(
                bench_set, start, ids, self.folder(cell), seed=cell.seed, steps=steps, carried=carried
            )
            return {"labelled": ids, "answers": score_method(bench_set, method, [()])}
        shots, number = (5, 1) if cell.use == FIVE_SHOT else (1, self.form.prompts)
        prompts = prompts_of(bench_set, cell.seed, shots, number)
        if cell.arm in RIVALS:
            method = RIVALS[cell.arm]
        else:
            weights = self.start(cell).weights
            assert weights is not None
            method = in_context(weights)
        return {"answers": score_method(bench_set, method, prompts)}

    def start(self, cell: Cell) -> Start:
        """The network that a cell starts from."""
        weights = self.folder(cell.needs) / "weights.safetensors" if cell.needs else None
        return Start(config=self.config(cell), weights=weights, encoder_only=ARMS[cell.arm].encoder_only)


@contextmanager
def claimed(out: Path, name: str) -> Iterator[bool]:
    """Whether this process may do a cell: no other one is at it. It is free again at the end of the block."""
    folder = out / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name.replace("/", "_")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_cells(bench: Bench, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Do the cells that are not in the file; return all that are done.

    A cell that fails is reported and left out, with those that need it; the others go on. The same command
    tries it again.
    """
    keys = {cell: bench.key(cell) for cell in cells}
    failed: set[Cell] = set()
    while True:
        kept = bench.kept()
        failed |= {cell for cell in cells if cell.needs in failed}
        left = [cell for cell in cells if keys[cell] not in kept and cell not in failed]
        if not left:
            return [kept[key] for key in keys.values() if key in kept]
        worked = False
        for cell in left:
            if cell.needs and bench.key(cell.needs) not in bench.kept():
                continue
            with claimed(bench.out, keys[cell]) as mine:
                if mine and keys[cell] not in bench.kept():
                    worked = True
                    if not attempted(bench, cell):
                        failed.add(cell)
        if not worked:
            time.sleep(_POLL_SECONDS)  # another process is at all that is left


def attempted(bench: Bench, cell: Cell) -> bool:
    """Do a cell and keep it; whether it succeeded."""
    try:
        done = bench.do(cell)
    except (TrainingError, StorageError, ValueError, RuntimeError) as error:
        print(f"{cell.name}: FAILED, left out: {error}", file=sys.stderr, flush=True)
        return False
    bench.keep(done)
    print(f"{cell.name}: {done['seconds']:,.0f} s", file=sys.stderr, flush=True)
    return True
