"""The payload of a task, and checks that a worker can do it.

A worker may be on another machine: with another version of this package, or without access to the store or
the scans. Then every scan would fail. So a payload contains the sender's versions; a worker compares them
with its own before it reads a scan, and the run stops with a message.

Reads: the store's store.json. Writes: bytes.
"""

from __future__ import annotations

import os
import pickle
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from commands.prepare.plan import Job, Wanted
from commands.prepare.settings import Settings
from pipeline.compute import gpu_is_at_hand
from pipeline.ingest import INGEST_VERSION
from pipeline.proposals import ALGORITHM_VERSION
from storage import (
    FORMAT_VERSION,
    LibraryMissing,
    StorageError,
    Store,
    StoreDenied,
    StorePath,
    StoreUnreachable,
    open_store,
)

Device: TypeAlias = Literal["auto", "cpu", "numpy", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings that every task needs; sent to the workers."""

    settings: Settings
    wanted: Wanted
    device: Device
    """Where proposals are computed; it changes no bit of them."""


class WorkerUnfitError(Exception):
    """A worker cannot do the work of this run; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class _Envelope:
    """The outer part of a payload, in plain values, which a worker of any version can read."""

    code: dict[str, str]
    store: str
    raw: str
    config_digest: str
    inside: bytes
    """Pickled Setup and jobs."""


def worker_name() -> str:
    """Return the name of this process in messages: a Dask worker's name, and its machine."""
    distributed: Any = sys.modules.get("distributed")  # loaded in every worker
    try:
        name = f" {distributed.get_worker().name}" if distributed else ""
    except ValueError:
        name = ""
    return f"the worker{name} on {socket.gethostname()}"


def code_versions() -> dict[str, str]:
    """Return the versions that must be equal in all processes that work on a store, by name."""
    return {
        "mass3d": version("mass3d"),
        "algorithm version": str(ALGORITHM_VERSION),
        "ingest version": str(INGEST_VERSION),
        "format version": str(FORMAT_VERSION),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def pack(store: StorePath, raw: Path, config_digest: str, setup: Setup, jobs: Sequence[Job]) -> bytes:
    """Return the payload of a task, as bytes: Prefect stores a task's arguments, and paths may hold names."""
    envelope = _Envelope(
        code=code_versions(),
        store=str(store.resolve() if isinstance(store, Path) else store),
        raw=str(raw.resolve()),
        config_digest=config_digest,
        inside=pickle.dumps((setup, tuple(jobs))),
    )
    return pickle.dumps(vars(envelope))


def unpack(payload: bytes) -> tuple[Store, Setup, tuple[Job, ...]]:
    """Return the store, the setup and the jobs of a payload.

    Raises:
        WorkerUnfitError: This process cannot do the work.
    """
    envelope = _Envelope(**pickle.loads(payload))
    here, own = worker_name(), code_versions()
    differing = [name for name in own if own[name] != envelope.code.get(name)]
    if differing:
        versions = ", ".join(
            f"{name} {own[name]} there, {envelope.code.get(name)} here" for name in differing
        )
        raise WorkerUnfitError(f"{here} has other code: {versions}. Install the same version on all machines")
    shared = "must lie on a file system that all machines see under the same path"
    name = Path(envelope.store).name  # only names: Prefect keeps errors, and paths may hold a patient's name
    try:
        store = open_store(envelope.store)
    except StoreUnreachable:
        raise  # temporary: it is tried again
    except (StoreDenied, LibraryMissing) as error:
        raise WorkerUnfitError(f"{here} cannot open the store: {error}") from None
    except (StorageError, OSError) as error:
        raise WorkerUnfitError(
            f"{here} cannot open the store {name} ({type(error).__name__}): its folder {shared}"
        ) from None
    if store.info.config_digest != envelope.config_digest:
        raise WorkerUnfitError(
            f"{here} sees a store {name} with other settings: its folder {shared}, and only one "
            "`mass prepare` with other settings may run at a time"
        )
    if isinstance(store.path, Path) and not os.access(store.path, os.W_OK):
        raise WorkerUnfitError(f"{here} may not write to the store {name}: give it the permission")
    if not Path(envelope.raw).exists():
        raise WorkerUnfitError(f"{here} does not see {Path(envelope.raw).name}: its folder {shared}")
    setup, jobs = pickle.loads(envelope.inside)
    if setup.device == "gpu" and not gpu_is_at_hand():
        raise WorkerUnfitError(
            f"{here} has no CUDA device that CuPy can use. Install mass3d[gpu] there and look at "
            "CUDA_VISIBLE_DEVICES; or start workers with the resource GPU=1 only where there is a device"
        )
    return store, setup, jobs
