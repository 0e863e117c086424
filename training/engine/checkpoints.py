"""Checkpoints: everything a run needs to go on exactly where it stopped, in one file, written atomically.

*Writes* CHECKPOINTS/step-00001000.pt (a run goes on from the newest; the last few are kept) and
CHECKPOINTS/best.pt (weights only: nothing goes on from it), both dictionaries of tensors and plain values
that `torch.load(weights_only=True)` reads: "model" and "ema_model" are state dicts of the network, as in the
published release. *Reads* the same. A file is complete or absent: it is written under another name, synced,
and renamed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError
from training.files import write_atomically

FORMAT, FORMAT_VERSION = "mass3d checkpoint", 1
BEST = "best.pt"

_NAME = re.compile(r"step-(\d+)\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the state after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise CheckpointError(f"{path}: the name of a checkpoint is step-N.pt")
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that a run can go on from, oldest first."""
    return sorted((path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)), key=step_of)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: the file is complete or absent, whatever happens."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **state}
    write_atomically(path, lambda file: torch.save(document, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A state, its tensors on the CPU.

    Raises:
        CheckpointError: The file is damaged, or not one of ours.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint. Remove it, and the run goes on from the one before"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of a mass3d run")
    if document["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {document['format_version']}; this mass3d reads {FORMAT_VERSION}"
        )
    return document


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what a killed process left half-written."""
    for path in [*list_checkpoints(folder)[:-keep], *folder.glob(".*.part")]:
        path.unlink(missing_ok=True)
