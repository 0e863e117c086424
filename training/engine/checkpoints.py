"""Checkpoints: one file with everything that a run needs to resume exactly where it stopped.

*Writes* checkpoints/step-00001000.pt (a run resumes from the newest one; the last few are kept) and
checkpoints/best.pt (weights only; a run cannot resume from it). Both are dictionaries of tensors and plain
values that `torch.load(weights_only=True)` reads; "model" and "ema_model" are state dicts of the network, as
in the published release. *Reads* the same. Files are written atomically: each is complete or absent.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from storage import write_atomically
from training.errors import CheckpointError
from training.network import check_archive

FORMAT, FORMAT_VERSION = "mass3d checkpoint", 1
BEST = "best.pt"

_NAME = re.compile(r"step-(\d+)\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """Return the number of steps done at a checkpoint, from its file name.

    Raises:
        CheckpointError: The name is not step-N.pt.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise CheckpointError(f"{path}: the name of a checkpoint is step-N.pt")
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that a run can resume from, oldest first; none where there is no such folder.

    Raises:
        CheckpointError: The folder cannot be listed, for example without permission.
    """
    return sorted((folder / name for name in _names(folder) if _NAME.fullmatch(name)), key=step_of)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training atomically."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **state}
    write_atomically(path, lambda file: torch.save(document, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, with its tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, or not a checkpoint of this format version.
    """
    try:
        check_archive(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint. Remove it, to resume the run from the previous checkpoint"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of a mass3d run")
    if document["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {document['format_version']}; this mass3d reads {FORMAT_VERSION}"
        )
    return document


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and incomplete files of killed processes."""
    incomplete = [folder / name for name in _names(folder) if name.startswith(".") and name.endswith(".part")]
    for path in [*list_checkpoints(folder)[:-keep], *incomplete]:
        path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    # Not Path.glob: it takes a folder that it cannot list for an empty one, and a run would begin anew.
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be listed ({error.strerror}). Check the disk, and who may read the folder"
        ) from error
