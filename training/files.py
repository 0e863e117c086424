"""Atomic writing of files: after a crash either the old or the new file is there, complete; a run's record.

The record of a run, run.json, has a checksum (`storage.sealed`), and `settings_digest`, that of config.toml
without the table [run]. Those of older versions have neither, and are taken as they are.
"""

from __future__ import annotations

import io
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from storage import digest_of, sealed, unsealed
from training.errors import RunError

CONFIG: Final = "config.toml"
RECORD: Final = "run.json"

CHANGEABLE: Final = "run"
"""The table of settings that may differ when a run is resumed, because none of them changes a weight."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, sync it to disk, and rename it to `path`.

    Args:
        path: The file to create or replace; its folder is created where it does not exist.
        write: Called with the open binary file; writes the content.

    Raises:
        OSError: The disk is full, or failed; also where `write` says something else of it, as `torch.save`
            does. The old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    raw = _NotingFile(temporary, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # a disk that is gone does not hide why it failed
            temporary.unlink(missing_ok=True)
        if raw.failure is not None and error is not raw.failure:
            raise raw.failure from error
        raise
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_record(folder: Path, document: Mapping[str, Any], settings: str) -> None:
    """Write config.toml and run.json of a new run.

    Args:
        folder: Folder of the run.
        document: Contents of run.json, without its checksums.
        settings: Contents of config.toml.
    """
    write_atomically(folder / CONFIG, lambda file: file.write(settings.encode()))
    record = sealed({**document, "settings_digest": _settings_digest(tomllib.loads(settings))})
    # run.json is written last: a folder that has it is a run.
    write_atomically(folder / RECORD, lambda file: file.write(json.dumps(record, indent=1).encode() + b"\n"))


def read_record(folder: Path) -> dict[str, Any]:
    """Return run.json of a run; raises RunError if it is damaged."""
    try:
        return unsealed(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise RunError(f"{folder / RECORD}: damaged ({error}). Bring it back, or begin a new run") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Return config.toml of a run; raises RunError if it is not as the run began, but for [run]."""
    path = folder / CONFIG
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}). Bring it back, or begin a new run") from error
    if read_record(folder).get("settings_digest", "") not in ("", _settings_digest(settings)):
        raise RunError(
            f"{path}: damaged, or changed by hand: a setting is not that with which the run began. Only "
            f"[{CHANGEABLE}] may be changed. Bring it back, or begin a new run"
        )
    return settings


def _settings_digest(settings: Mapping[str, Any]) -> str:
    return digest_of({name: values for name, values in settings.items() if name != CHANGEABLE})


class _NotingFile(io.FileIO):
    """A file that remembers the first error of writing."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
