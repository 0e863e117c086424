"""The folder of a run: its creation, its lock, and the check that a resumed run has the same settings.

    RUN/
        config.toml           every setting, as `mass pretrain --config` (or `mass finetune`) reads them
        run.json              the store's name, digest and settings, the scans trained on, versions, precision
        metrics.jsonl         metrics, one line per recorded step (training.engine.monitoring)
        tensorboard/          the same as curves
        checkpoints/          step-N.pt, the last few; best.pt, weights only (training.engine.checkpoints)
        pictures/             step-N.png: reference, mask, target, prediction
        failures/step-N/      state and batch of a step whose loss was not finite
        weights.safetensors   the averaged weights, when the run is complete
        MODEL_CARD.md         what they were trained on and how
        report.json           of a fine-tuning: Dice, HD95, ASD on held-out labelled scans

*Writes* config.toml and run.json once, when a run begins; run.json has checksums of both. *Reads* them when
the run is resumed: settings that change the weights must be equal; settings that do not (the table [run]) may
differ. A lock on the folder keeps other processes out; it is released when the process that holds it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from storage import Store, digest_of
from training.engine.checkpoints import list_checkpoints
from training.engine.distributed import Ranks, common_support
from training.engine.precision import ChosenPrecision, Precision, precision_of_run
from training.errors import ConfigError, RunError
from training.files import (
    CHANGEABLE,
    CONFIG as CONFIG,
    RECORD as RECORD,
    read_record,
    read_settings,
    write_record,
)
from training.network import ModelCard, TrainedOn, installed_versions

CHECKPOINTS, LOCK = "checkpoints", ".lock"
PICTURES = "pictures"

_MAX_NAMES = 5
"""Largest number of names that one message lists."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the table [run]: data loading, logging, checkpoints, evaluations. None changes a weight."""

    num_workers: int = 4
    """Worker processes that read samples, per training process; 0 reads in the training process."""

    log_every: int = 10
    """Steps per line of metrics; the recorded loss is the mean over these steps."""

    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    keep_last: int = 2
    """Number of newest checkpoints to keep, in addition to the best."""

    evaluate_every: int = 1000
    """Steps between evaluations; 0 disables them."""

    max_evaluation_voxels: int = 30_000_000
    """Larger scans are not used for evaluations during training, because each would take minutes."""

    draw_every: int = 1000
    """Steps between pictures; 0 disables them."""

    recompute_activations: bool = False
    """Whether to compute activations again in the backward pass, stage by stage, instead of keeping them:
    less memory, about a third more time. `mass pretrain --dry-run` shows both."""

    cuda_graph: bool = False
    """Whether to replay the forward and backward pass of a step as one CUDA graph, on one GPU and without
    accumulation; for networks so small that the GPU waits for Python. Not yet tried on a GPU."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"setting {name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_workers", "evaluate_every", "draw_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"setting {name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of a run: its settings, its scans and how they were prepared."""

    settings: Mapping[str, Any]
    """Settings by table, plain values."""
    store_name: str
    """The last part of the store's path."""
    scans: Mapping[str, str]
    """Digest of each training scan, by id."""
    versions: Mapping[str, str]
    """Versions of the packages at the start of the run."""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    """How the scans were prepared and cropped."""

    @classmethod
    def of_store(
        cls,
        store: Store,
        scan_ids: Sequence[str],
        settings: Mapping[str, Any],
        trained_on: TrainedOn | None = None,
    ) -> RunRecord:
        """Return the record of a run that begins now.

        Args:
            store: Store of the scans.
            scan_ids: Ids of the training scans.
            settings: Settings by table, plain values.
            trained_on: How the scans were prepared and cropped, if the network's weights are trained.
        """
        return cls(
            settings=settings,
            store_name=store.name,
            scans=scan_digests(store, scan_ids),
            versions=installed_versions(),
            trained_on=trained_on or TrainedOn(),
        )

    @property
    def store_digest(self) -> str:
        """Digest of all training scans together."""
        return digest_of(dict(self.scans))

    def card(self, title: str, num_steps: int) -> ModelCard:
        """Return the model card of the run's averaged weights.

        Args:
            title: First line of the card.
            num_steps: Steps that were done.
        """
        return ModelCard(
            title=title,
            recipe=to_toml(self.settings),
            store_digest=self.store_digest,
            num_scans=len(self.scans),
            num_steps=num_steps,
            weights="ema",
            versions=self.versions,
            trained_on=self.trained_on,
        )


def scan_digests(store: Store, scan_ids: Sequence[str]) -> dict[str, str]:
    """Return a short digest of each scan, by id, which changes when the scan is prepared differently."""
    return {scan_id: store.entries[scan_id].digest[:16] for scan_id in scan_ids}


def begin_run(folder: Path, record: RunRecord, precision: ChosenPrecision | None = None) -> None:
    """Create the folder of a run, with config.toml and run.json.

    Args:
        folder: Folder of the run.
        record: Settings and scans to write.
        precision: Precision of the network, if it is trained; it stays the same when the run is resumed.

    Raises:
        RunError: The folder contains a run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: there is a file of this name. Name a new or an empty folder")
    if is_run(folder):
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
    write_record(folder, document, to_toml(record.settings))


def check_run(folder: Path, record: RunRecord) -> None:
    """Check that a run may be resumed: its settings and scans are unchanged.

    Args:
        folder: Folder of the run.
        record: Present settings and scans.

    Raises:
        RunError: There is no run in the folder, or its record is damaged.
        ConfigError: Settings or scans differ; the message says which.
    """
    if not is_run(folder):
        raise RunError(f"{folder}: there is no run here to go on with. Leave out --resume to begin one")
    before = read_settings(folder)
    changed = describe_differences(before, record.settings)
    if changed:
        raise ConfigError(
            f"{folder}: the run was begun with other settings: {_listed(changed)}. Go on with those in "
            f"{folder / CONFIG} (leave --config and --recipe out), or begin a new run"
        )
    scans: Mapping[str, str] = read_record(folder)["scans"]
    if scans != dict(record.scans):
        raise ConfigError(
            f"{folder}: the store is not what the run was begun on: "
            f"{_listed(_changed_scans(scans, record.scans))}. Restore it, or begin a new run"
        )


def begun_precision(folder: Path) -> Precision | None:
    """Return the precision that the run in a folder began with; None if no run or no precision is there."""
    if not is_run(folder):
        return None
    name: Precision | None = read_record(folder).get("precision", {}).get("name")
    return name


def settle_precision(
    folder: Path, wanted: Precision, device: torch.device, *, resume: bool, ranks: Ranks | None = None
) -> ChosenPrecision:
    """Return the precision of a run: chosen for the devices if the run is new, else as it began.

    Every process of the training must call this.

    Args:
        folder: Folder of the run.
        wanted: Precision in the settings.
        device: Device of this process.
        resume: Whether the run is resumed.
        ranks: Rank of this process.
    """
    begun = begun_precision(folder) if resume else None
    return precision_of_run(wanted, begun, device, common_support(ranks or Ranks(), device))


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, as "optimisation.peak_rate 0.002 -> 0.0003"; [run] is ignored.

    A setting that the run lacks is newer than the run: if it is off (0, empty), it is not a difference.
    """
    old, new = _flat(before), _flat(after)
    names = [name for name in sorted({*old, *new}) if name.split(".")[0] != CHANGEABLE]
    names = [name for name in names if name in old or new[name]]
    return [
        f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def is_run(folder: Path) -> bool:
    """Whether there is a run in this folder, which can be resumed; perhaps it has no checkpoint yet."""
    return (folder / RECORD).exists()


def has_begun(folder: Path) -> bool:
    """Whether the run in this folder has a checkpoint to resume from."""
    return bool(list_checkpoints(folder / CHECKPOINTS))


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs.

    Raises:
        RunError: Another process holds the lock.
    """
    created = not folder.exists()
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
        if created and not is_run(folder):
            with suppress(OSError):  # an error here must not hide the first one
                for name in (CONFIG, LOCK):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()


@contextmanager
def open_run(
    folder: Path, record: RunRecord, precision: ChosenPrecision, *, resume: bool, ranks: Ranks | None = None
) -> Iterator[None]:
    """Hold the folder of a run, created or checked, while the block trains in it.

    Args:
        folder: Folder of the run.
        record: Settings and scans.
        precision: Precision of the network.
        resume: Whether the run in the folder goes on.
        ranks: This process among those that train together: the first creates or checks the folder, while the
            others wait.

    Raises:
        RunError: There is a run in the folder (or, with `resume`, none), or another process holds its lock.
        ConfigError: Settings or scans differ from those of the run.
    """
    if ranks is not None and not ranks.is_first:
        ranks.wait()
        yield
        return
    with locked_run(folder):
        if resume:
            check_run(folder, record)
        else:
            begin_run(folder, record, precision)
        if ranks is not None:
            ranks.wait()
        yield


# ---------------------------------------------------------------- settings as text


def to_toml(tables: Mapping[str, Any]) -> str:
    """Return tables of plain values (numbers, strings, booleans, lists, tables) as TOML; None is left out."""
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
    """Return a TOML string: a JSON string, with DEL also escaped."""
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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
