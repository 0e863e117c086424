"""What is tortured: commands that can be begun, gone on with, checked at any moment, and compared at the end.

    prepare    three tiny scans into a store, with the flow on a shared Prefect server
    commit     six drawn scans into a store in place of others, without a flow
    import     label maps as masks, into the store that `prepare` makes
    pretrain   three steps of a tiny network, a checkpoint each
    finetune   three steps on labelled scans

*Writes* the inputs of all of them into one folder, once. A subject's `damage` names what must never be, not
even a moment after SIGKILL: an index line without its scan, a scan whose bytes are not those of an
undisturbed run, a checkpoint that is half a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import storage.writing
from benchmarks.torture_children import run_child
from commands.main import main
from storage import Problem, commit_scan, create_store, finish, open_store, sweep, verify
from tests.phantom import phantom
from tests.storage.drawn_record import SMALL, draw_record
from tests.training.phantom_store import make_phantom_store
from training.engine import read_checkpoint, to_toml
from training.engine.checkpoints import list_checkpoints
from training.engine.monitoring import read_metrics
from training.finetuning import finetune_recipe
from training.network import load_checkpoint
from training.pretraining import recipe

SCANS = 3
"""Scans that `prepare` takes."""

COMMITTED = tuple(f"scan-{number}" for number in range(6))

FAST = """
[ingest]
spacing_mm = 8.0
min_extent_mm = 20.0

[proposals]
trees = ["fine-contrast-0.7mm"]
max_voxel_leaves = 1
component_thresholds_hu = [-400]
candidates_per_half_octave = 20
max_proposals = 20
"""

OFTEN = {"num_workers": 0, "log_every": 1, "checkpoint_every": 1, "evaluate_every": 0, "draw_every": 0}
"""A checkpoint after every step, so that a kill falls into many of them."""

_TIMES = ("samples_per_second", "data_wait_fraction")
"""Figures of a run that differ from run to run."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A command that goes on after any interruption."""

    name: str
    target: str
    """Name of the folder that it writes, inside the folder of a life."""
    begin: Callable[[Path], None]
    """Makes what the first run finds in its folder."""
    run: Callable[[Path], int]
    """Begins or goes on; returns an exit code."""
    damage: Callable[[Path], list[str]]
    """What is in the folder that must not be there at any moment."""
    outcome: Callable[[Path], dict[str, str]]
    """Digest of every file that an undisturbed run would have made with the same bytes."""

    def finished(self, folder: Path) -> set[str]:
        """Return the scans that are in the index, if this is a store."""
        store = folder / self.target
        return set(open_store(store).scan_ids) if (store / "index.jsonl").exists() else set()


def subjects(inputs: Path) -> dict[str, Subject]:
    """Draw the inputs, run each command once without a disturbance, and return the subjects by name.

    Args:
        inputs: Folder for them; what is there already is used.
    """
    _draw(inputs)
    made = {}
    for draft in (
        _prepare(inputs),
        commit_subject(),
        _import_masks(inputs),
        _pretrain(inputs),
        _finetune(inputs),
    ):
        made[draft.name] = run_undisturbed(draft, inputs / "undisturbed" / draft.name)
    return made


def run_undisturbed(draft: Subject, folder: Path) -> Subject:
    """Run a subject once, and return it with the digests that its scans may have: before this run and after.

    Args:
        draft: The subject.
        folder: Keeps what the run makes, to compare others with.
    """
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        draft.begin(folder)
        (folder / "before.json").write_text(json.dumps(_digests(folder / draft.target)))
        ended = run_child(lambda: draft.run(folder), folder / "log")
        if ended.code:
            raise RuntimeError(f"{draft.name} fails without any disturbance:\n{ended.output}")
        (folder / "done").write_text(f"{ended.seconds}")
    if draft.target != "store":
        return draft
    before = json.loads((folder / "before.json").read_text())
    allowed: dict[str, set[str]] = {}
    for digests in (before, _digests(folder / "store")):
        for scan_id, digest in digests.items():
            allowed.setdefault(scan_id, set()).add(digest)
    return replace(draft, damage=lambda life: store_damage(life / "store", allowed))


def _digests(store: Path) -> dict[str, str]:
    if not (store / "store.json").exists():
        return {}
    return {scan_id: entry.digest for scan_id, entry in open_store(store).entries.items()}


def store_damage(store: Path, allowed: Mapping[str, Collection[str]]) -> list[str]:
    """Return what a crash may never leave in a store.

    A committed scan without a line and a line that was cut off are repaired by the next run: readers do not
    see them.
    """
    if not (store / "store.json").exists():
        return [str(path) for path in store.glob("scans/*/*")]
    return [f"{problem.key}: {problem.what}" for problem in verify(store) if not _is_foreseen(problem)] + [
        f"scan {scan_id} has other bytes than an undisturbed run gives"
        for scan_id, entry in open_store(store).entries.items()
        if entry.digest not in allowed.get(scan_id, ())
    ]


def _is_foreseen(problem: Problem) -> bool:
    return any(
        words in problem.what
        for words in ("without a line in the index", "cut off", "missing, though a folder is there")
    )


def tree_digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file and the name of every folder below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


# ------------------------------------------------------------ stores


def _draw(inputs: Path) -> None:
    if (inputs / "drawn").exists():
        return
    for number in range(SCANS):
        scan = phantom(shape_zyx=(14, 20, 22), spacing_zyx_mm=(7.5, 4.0, 4.2), seed=number)
        scan.write(inputs / "raw" / f"s{number}_ct.nii.gz")
        scan.write_labels(inputs / "masks" / f"s{number}_ct.nii.gz")
    (inputs / "fast.toml").write_text(FAST)
    make_phantom_store(inputs / "training", 3)
    (inputs / "drawn").write_text("")


def _prepare(inputs: Path) -> Subject:
    def run(folder: Path) -> int:
        return main(
            ["prepare", str(inputs / "raw"), str(folder / "store"), "--config", str(inputs / "fast.toml")]
        )

    return Subject(
        name="prepare",
        target="store",
        begin=lambda folder: None,
        run=run,
        damage=lambda folder: [],
        outcome=lambda folder: tree_digests(folder / "store"),
    )


def commit_subject() -> Subject:
    def begin(folder: Path) -> None:
        create_store(folder / "store", spacing_mm=1.5, config={})
        for scan_id in COMMITTED[:3]:
            commit_scan(folder / "store", draw_record(scan_id, shape=SMALL, seed=5))

    def run(folder: Path) -> int:
        store = folder / "store"
        try:
            sweep(store)
            for scan_id in COMMITTED:
                commit_scan(store, draw_record(scan_id, shape=SMALL), replace=True)
            finish(store)
        except OSError as error:  # a full disk too; no command tells it here
            print(error)
            return 2
        return 0

    return Subject(
        name="commit",
        target="store",
        begin=begin,
        run=run,
        damage=lambda folder: [],
        outcome=lambda folder: tree_digests(folder / "store"),
    )


def _import_masks(inputs: Path) -> Subject:
    def run(folder: Path) -> int:
        masks = sorted(map(str, (inputs / "masks").iterdir()))
        return main(["import-masks", str(folder / "store"), *masks, "--source", "given"])

    return Subject(
        name="import",
        target="store",
        begin=lambda folder: copy_store(inputs / "undisturbed" / "prepare" / "store", folder / "store"),
        run=run,
        damage=lambda folder: [],
        outcome=lambda folder: tree_digests(folder / "store"),
    )


def copy_store(store: Path, target: Path) -> None:
    """Copy a store; files keep their times."""
    shutil.copytree(store, target)


# ------------------------------------------------------------ runs


def _pretrain(inputs: Path) -> Subject:
    small = recipe("small")
    settings = replace(
        small,
        model=replace(small.model, channels=(4, 4, 8, 8, 8), num_tasks=1),
        data=replace(small.data, crop_voxels=32, cut_voxels=36, masks_per_sample=2, holdout_fraction=0.0),
        optimisation=replace(
            small.optimisation, optimiser="adamw", num_steps=4, batch_size=1, precision="float32"
        ),
        run=replace(
            small.run, num_workers=0, log_every=1, checkpoint_every=1, evaluate_every=0, draw_every=0
        ),
    )
    path = inputs / "pretrain.toml"
    path.write_text(to_toml(settings.values()))
    command = ["pretrain", str(inputs / "training"), "RUN", "--config", str(path), "--device", "cpu"]
    return _training("pretrain", command)


def _finetune(inputs: Path) -> Subject:
    small = finetune_recipe("small")
    settings = replace(
        small,
        finetune=replace(small.finetune, values=(1, 3), num_scans=2, holdout_fraction=0.0, max_reported=1),
        data=replace(small.data, crop_voxels=32, cut_voxels=32),
        optimisation=replace(small.optimisation, num_steps=3, batch_size=1, precision="float32"),
        inference=replace(small.inference, reference_voxels=(32, 32, 32), overlap_fraction=0.0),
        run=replace(
            small.run, num_workers=0, log_every=1, checkpoint_every=1, evaluate_every=0, draw_every=0
        ),
    )
    path = inputs / "finetune.toml"
    path.write_text(to_toml(settings.values()))
    weights = inputs / "undisturbed" / "pretrain" / "run" / "weights.safetensors"
    command = ["finetune", str(weights), str(inputs / "training"), "RUN", "--config", str(path)]
    return _training("finetune", [*command, "--device", "cpu"])


def _training(name: str, command: list[str]) -> Subject:
    def run(folder: Path) -> int:
        import torch

        torch.set_num_threads(1)
        again = ["--resume"] if (folder / "run" / "run.json").exists() else []
        return main([str(folder / "run") if word == "RUN" else word for word in command] + again)

    return Subject(
        name=name,
        target="run",
        begin=lambda folder: None,
        run=run,
        damage=lambda folder: run_damage(folder / "run"),
        outcome=lambda folder: run_outcome(folder / "run"),
    )


def run_damage(run: Path) -> list[str]:
    """Return what a crash may never leave in the folder of a run: half a file under a final name."""
    found = []
    for path in [*list_checkpoints(run / "checkpoints"), *run.glob("weights.safetensors")]:
        try:
            read_checkpoint(path) if path.suffix == ".pt" else load_checkpoint(path)
        except Exception as error:  # noqa: BLE001 - any is damage
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    if (run / "run.json").exists():
        try:
            json.loads((run / "run.json").read_text())
        except ValueError as error:
            found.append(f"run.json: {error}")
    return found


def run_outcome(run: Path) -> dict[str, str]:
    """Return digests of what a run is for, and its metrics without times."""
    files = ("weights.safetensors", "MODEL_CARD.md", "config.toml", "run.json", "report.json")
    found = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files if (run / name).exists()
    }
    lines = [
        {name: value for name, value in line.items() if name not in _TIMES}
        for line in read_metrics(run / "metrics.jsonl")
    ]
    left = [path.name for path in run.rglob("*.part")]
    return found | {"metrics.jsonl": json.dumps(lines), "half files": json.dumps(left)}


def import_all() -> None:
    """Import what the commands import when they run, so that no child has to."""
    for name in ("flows", "commands.inspect", "commands.import_masks", "commands.pretrain", "fastapi"):
        import_module(name)
    for name in (
        "commands.prepare.scan_task",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "commands.finetune",
    ):
        import_module(name)
    _ = storage.writing.write_scan  # a door loads its modules at first use


def one_thread() -> None:
    """Let this process and its children compute in one thread: a fork keeps no other."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in (*names, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = "1"
