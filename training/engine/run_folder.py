"""The folder of a run, who may train in it, and whether a run that goes on is still the same run.

    RUN/
        config.toml           every setting, as `mass pretrain --config` (or `mass finetune`) reads them
        run.json              the store's name, digest and settings, the scans trained on, versions, precision
        metrics.jsonl         what was measured, a line a step told (training.engine.monitoring)
        tensorboard/          the same as curves, and pictures
        checkpoints/          step-N.pt, the last few; best.pt, weights only (training.engine.checkpoints)
        pictures/             step-N.png: reference, mask, target, prediction
        failures/step-N/      state and batch of a step whose loss was not finite
        weights.safetensors   the averaged weights, when the run is complete
        MODEL_CARD.md         what they were trained on and how
        report.json           of a fine-tuning: Dice, HD95, ASD on labelled scans that were kept out

*Writes* config.toml and run.json once, when a run begins. *Reads* them when it goes on: what changes the
weights has to be the same; what only changes how the run is watched (the table [run]) may differ. A lock on
the folder keeps a second process out; it is let go when its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from storage import Store, digest_of
from training.engine.checkpoints import list_checkpoints
from training.engine.distributed import Ranks, common_support
from training.engine.precision import ChosenPrecision, Precision, precision_of_run
from training.errors import ConfigError, RunError
from training.files import write_atomically
from training.network import TrainedOn

CONFIG, RECORD, CHECKPOINTS, LOCK = "config.toml", "run.json", "checkpoints", ".lock"

WATCHING = "run"
"""The table of settings that may differ when a run goes on: none of them changes a weight."""

_TOLD = 5
"""Most names that one message lists."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the table [run]: how a run is fed and watched. None of it changes a weight."""

    num_workers: int = 4
    """Processes that read and cut samples, for each training process; 0 reads in the training process."""

    log_every: int = 10
    """Steps a line of metrics: the loss told is the mean over them."""

    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    keep_last: int = 2
    """Checkpoints kept, beside the best."""

    evaluate_every: int = 1000
    """Steps between evaluations; 0 never."""

    max_evaluation_voxels: int = 30_000_000
    """Larger scans are not evaluated on while training: each would take minutes."""

    draw_every: int = 1000
    """Steps between pictures; 0 never."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"setting {name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_workers", "evaluate_every", "draw_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"setting {name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run is of: its settings and its scans."""

    settings: Mapping[str, Any]
    """By table, plain values."""
    store_name: str
    """The last part of the store's path."""
    scans: Mapping[str, str]
    """Digest of each scan trained on, by id."""
    versions: Mapping[str, str]
    """Of the packages that the run begins with."""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    """How the scans were prepared and cropped."""

    @property
    def store_digest(self) -> str:
        """One digest for all scans trained on."""
        return digest_of(dict(self.scans))


def scan_digests(store: Store, scan_ids: Sequence[str]) -> dict[str, str]:
    """What tells a changed scan from the one it was, by id."""
    return {scan_id: store.entries[scan_id].digest[:16] for scan_id in scan_ids}


def begin_run(folder: Path, record: RunRecord, precision: ChosenPrecision | None = None) -> None:
    """Make a run's folder and write down what it is of.

    Args:
        folder: The run's.
        record: What it is of.
        precision: Of the network's arithmetic, where there is a training; kept when the run goes on.

    Raises:
        RunError: There is a run in the folder, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: there is a file of this name. Name a new or an empty folder")
    if (folder / RECORD).exists():
        raise RunError(
            f"{folder}: there is a run here already. Go on with it (--resume), or name another folder"
        )
    if folder.exists() and {path.name for path in folder.iterdir()} - {LOCK, CONFIG}:
        raise RunError(f"{folder}: there is something else here. Name a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "format": "mass3d run",
        "format_version": 1,
        "store": record.store_name,
        "store_digest": record.store_digest,
        "versions": dict(record.versions),
        **({"precision": precision.to_json()} if precision else {}),
        "trained_on": record.trained_on.to_json(),
        "scans": dict(record.scans),
    }
    write_atomically(folder / CONFIG, lambda file: file.write(to_toml(record.settings).encode()))
    # Last: a folder with a run.json is a run.
    write_atomically(
        folder / RECORD, lambda file: file.write(json.dumps(document, indent=1).encode() + b"\n")
    )


def check_run(folder: Path, record: RunRecord) -> None:
    """Refuse to go on with a run under other settings or on other scans.

    Raises:
        RunError: There is no run in the folder.
        ConfigError: Settings or scans differ; the message says which.
    """
    if not (folder / RECORD).exists():
        raise RunError(f"{folder}: there is no run here to go on with. Leave out --resume to begin one")
    before = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
    changed = describe_differences(before, record.settings)
    if changed:
        raise ConfigError(
            f"{folder}: the run was begun with other settings: {_listed(changed)}. Go on with those in "
            f"{folder / CONFIG} (leave --config and --recipe out), or begin a new run"
        )
    scans: Mapping[str, str] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["scans"]
    if scans != dict(record.scans):
        raise ConfigError(
            f"{folder}: the store is not what the run was begun on: "
            f"{_listed(_changed_scans(scans, record.scans))}. Bring it back, or begin a new run"
        )


def begun_precision(folder: Path) -> Precision | None:
    """The precision that the run in a folder began with; None where there is none, or it was not recorded."""
    path = folder / RECORD
    if not path.exists():
        return None
    name: Precision | None = json.loads(path.read_text(encoding="utf-8")).get("precision", {}).get("name")
    return name


def settle_precision(
    folder: Path, wanted: Precision, device: torch.device, *, resume: bool, ranks: Ranks | None = None
) -> ChosenPrecision:
    """The precision of a run: a new one's follows the devices, one that goes on keeps what it began with.

    Args:
        folder: The run's.
        wanted: By the settings.
        device: Where this process computes.
        resume: Whether the run goes on.
        ranks: This process among those that train together; each of them has to call.
    """
    begun = begun_precision(folder) if resume else None
    return precision_of_run(wanted, begun, device, common_support(ranks or Ranks(), device))


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as "optimisation.peak_rate 0.002 -> 0.0003"; those of [run] do not count."""
    old, new = _flat(before), _flat(after)
    names = [name for name in sorted({*old, *new}) if name.split(".")[0] != WATCHING]
    return [
        f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def has_begun(folder: Path) -> bool:
    """Whether a run in this folder has a state to go on from."""
    return bool(list_checkpoints(folder / CHECKPOINTS))


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Be the only process group that trains in the folder, for the time of the block.

    Raises:
        RunError: Another one does.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: another process trains here. Wait for it, or stop it") from error
        yield
    finally:
        os.close(handle)
        if made and not (folder / RECORD).exists():
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


# ---------------------------------------------------------------- settings as text


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of plain values (numbers, texts, true and false, lists, tables) as TOML; None is left out."""
    return "\n".join(_table_lines(tables, ())) + "\n"


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in table.items() if name not in inner and value is not None}
    if own or not inner:
        if path:
            yield f"[{'.'.join(map(_key, path))}]"
        yield from (f"{_key(name)} = {_value(value)}" for name, value in own.items())
        yield ""
    for name, value in inner.items():
        yield from _table_lines(value, (*path, name))


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return _text(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _text(text: str) -> str:
    """A text as TOML has it: as JSON, with DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _changed_scans(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    gone = [f"{scan_id} is gone" for scan_id in before if scan_id not in after]
    new = [f"{scan_id} is new" for scan_id in after if scan_id not in before]
    other = [
        f"{scan_id} has changed"
        for scan_id, digest in before.items()
        if scan_id in after and after[scan_id] != digest
    ]
    return [*gone, *new, *other]


def _listed(things: Sequence[str]) -> str:
    more = f" and {len(things) - _TOLD} more" if len(things) > _TOLD else ""
    return ", ".join(things[:_TOLD]) + more
