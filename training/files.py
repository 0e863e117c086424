"""A run's record and settings, run.json and config.toml: written, read, and checked for damage.

The record of a run, run.json, has a checksum (`storage.sealed`), and `settings_digest`, that of config.toml
without the table [run]. Records of older versions have neither, and are accepted.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from storage import digest_of, sealed, unsealed, write_atomically
from training.errors import RunError

CONFIG: Final = "config.toml"
RECORD: Final = "run.json"

CHANGEABLE: Final = "run"
"""The table of settings that may differ when a run is resumed, because none of them changes a weight."""


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
        raise RunError(f"{folder / RECORD}: damaged ({error}). Restore it, or begin a new run") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Return config.toml of a run; raises RunError if a setting outside [run] has changed since it began."""
    path = folder / CONFIG
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}). Restore it, or begin a new run") from error
    if read_record(folder).get("settings_digest", "") not in ("", _settings_digest(settings)):
        raise RunError(
            f"{path}: damaged, or changed by hand: a setting is not that with which the run began. Only "
            f"[{CHANGEABLE}] may be changed. Restore it, or begin a new run"
        )
    return settings


def _settings_digest(settings: Mapping[str, Any]) -> str:
    return digest_of({name: values for name, values in settings.items() if name != CHANGEABLE})
