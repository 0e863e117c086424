"""Damage at rest: a flipped bit, a cut and a loss in every kind of file of a store and of a run.

What is damaged must be an error of ours wherever it is read, or be read as it was: never as something else.
`mass verify` must name it. `mass repair` and the same command again must make the bytes of an undisturbed
run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torture_children import run_child
from benchmarks.torture_kills import Life
from benchmarks.torture_subjects import Subject
from commands.main import main
from storage import StorageError, open_store, verify
from training.engine import read_checkpoint
from training.errors import TrainingError
from training.network import load_checkpoint

FAULTS = ("flipped bit", "cut", "lost")

RUN_FILES = ("weights.safetensors", "run.json", "config.toml", "checkpoints/*.pt", "metrics.jsonl")
"""Files of a run that are read again."""

NO_CHECK = {("ledger.jsonl", "lost"), ("metrics.jsonl", "cut"), ("metrics.jsonl", "lost")}
"""Damage that cannot be known: a file that a reader need not find, or that may end anywhere."""


def kinds_of(folder: Path, patterns: Iterable[str] = ("**/*",)) -> list[str]:
    """Return one file of each kind: paths that differ by numbers and names of scans only are one kind."""
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and path.stat().st_size:
                found.setdefault(re.sub(r"\d+", "#", re.sub(r"^scans/[^/]+/[^/]+/", "", key)), key)
    return list(found.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damaged:
    """A file that is damaged in a life."""

    key: str
    """The file, relative to the store or the run's folder."""
    fault: str
    """One of `FAULTS`."""
    number: int
    """Number of the life; the place in the file follows from it."""

    def __str__(self) -> str:
        return f"{self.key}, {self.fault}"

    def damage(self, folder: Path) -> None:
        """Damage the file in a store or a run."""
        damage(folder / self.key, self.fault, random.Random(f"{self} {self.number}"))


def damage(path: Path, fault: str, dice: random.Random) -> None:
    """Flip a bit of a file, cut it, or remove it."""
    data = bytearray(path.read_bytes())
    if fault == "lost":
        path.unlink()
        return
    if fault == "flipped bit":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    else:
        del data[dice.randrange(len(data)) :]
    path.write_bytes(data)


def store_rest_life(subject: Subject, undisturbed: Path, folder: Path, damaged: Damaged, raw: Path) -> Life:
    """Damage a file of the store that a subject made, read it, and let it be mended.

    Args:
        subject: `prepare`.
        undisturbed: Folder of its undisturbed run.
        folder: An empty folder for this life.
        damaged: The file.
        raw: What the store was prepared from.
    """
    life = Life(series="at rest", subject="store", number=damaged.number, disturbances=1)
    whole, store = undisturbed / "store", folder / "store"
    shutil.copytree(whole, store)
    damaged.damage(store)
    expected, found = store_contents(whole), store_contents(store)
    life.wrong += [f"{damaged}: {name} is read as another" for name in _others(expected, found)]
    named = _is_named(store)
    life.told = int(named)
    if not named and store_files_differ(whole, store) and (damaged.key, damaged.fault) not in NO_CHECK:
        life.wrong.append(f"{damaged}: mass verify does not see it")
    if damaged.key == "store.json":  # as its message says
        shutil.copy(whole / damaged.key, store / damaged.key)

    def mend() -> int:
        return main(["repair", str(store), "--raw", str(raw)]) or subject.run(folder)

    ended = run_child(mend, folder.with_suffix(".log"))
    life.seconds += ended.seconds
    if ended.code:
        life.wrong.append(f"{damaged}: not mended, code {ended.code}: {ended.output[-600:]}")
    before, after = subject.outcome(undisturbed), subject.outcome(folder)
    life.wrong += [
        f"{damaged}: differs after it was mended: {name}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    return life


def run_rest_life(subject: Subject, undisturbed: Path, folder: Path, damaged: Damaged) -> Life:
    """Damage a file of a finished run, read its weights and checkpoints, and go on with it.

    Args:
        subject: `pretrain`.
        undisturbed: Folder of its undisturbed run.
        folder: An empty folder for this life.
        damaged: The file.
    """
    life = Life(series="at rest", subject="run", number=damaged.number, disturbances=1)
    whole, run = undisturbed / "run", folder / "run"
    shutil.copytree(whole, run)
    damaged.damage(run)
    expected, found = run_contents(whole), run_contents(run)
    life.wrong += [f"{damaged}: {name} is read as another" for name in _others(expected, found)]
    ended = run_child(lambda: subject.run(folder), folder.with_suffix(".log"))
    life.seconds += ended.seconds
    life.told = int(bool(ended.code) or any(isinstance(value, Exception) for value in found.values()))
    if "Traceback" in ended.output:
        life.wrong.append(f"{damaged}: ended by a traceback: {ended.output[-1200:]}")
    if not ended.code:
        before, after = subject.outcome(undisturbed), subject.outcome(folder)
        life.wrong += [
            f"{damaged}: went on, and {name} differs"
            for name in before
            if before[name] != after.get(name) and (name, damaged.fault) not in NO_CHECK
        ]
    return life


def _others(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Return what is read, without an error, as something else than it was."""
    return [
        name
        for name, value in found.items()
        if not isinstance(value, Exception) and value != expected.get(name)
    ]


def _attempt(read: Callable[[], object]) -> object:
    """Return what is read, or the error of ours that said why not; any other is a fault of the reader."""
    try:
        return read()
    except (StorageError, TrainingError, FileNotFoundError) as error:
        return error


def store_contents(store: Path) -> dict[str, object]:
    """Return digests of all that readers are given, by scan; an error in place of what cannot be read."""
    entries = _attempt(lambda: dict(open_store(store).entries))
    if isinstance(entries, Exception):
        return {"index": entries}
    assert isinstance(entries, dict)
    scans = {
        scan_id: _attempt(lambda scan_id=scan_id: digest(open_store(store).scan(scan_id).record()))
        for scan_id in entries
    }
    return {f"scan {scan_id}": value for scan_id, value in scans.items()}


def run_contents(run: Path) -> dict[str, object]:
    """Return digests of what a run is read for; an error in place of what cannot be read."""
    found = {
        path.name: _attempt(lambda path=path: digest(read_checkpoint(path)))
        for path in sorted((run / "checkpoints").glob("*.pt"))
    }
    weights = run / "weights.safetensors"
    return found | {weights.name: _attempt(lambda: digest(load_checkpoint(weights).state_dict()))}


def _is_named(store: Path) -> bool:
    try:
        return any(True for _ in verify(store))
    except StorageError:
        return True


def store_files_differ(one: Path, other: Path) -> bool:
    """Whether any file differs."""
    keys = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    return any(
        not ((one / key).exists() and (other / key).exists())
        or (one / key).read_bytes() != (other / key).read_bytes()
        for key in keys
    )


def digest(value: Any) -> str:
    """Return the sha256 of nested dataclasses, mappings, sequences, arrays, tensors and plain values."""
    sha = hashlib.sha256()
    for part in _parts(value):
        sha.update(part)
    return sha.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield f"{name}:".encode()
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for one in value:
            yield from _parts(one)
    elif hasattr(value, "detach") or isinstance(value, np.ndarray):
        array = np.ascontiguousarray(
            value.detach().float().cpu().numpy() if hasattr(value, "detach") else value
        )
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        yield repr(value).encode()
