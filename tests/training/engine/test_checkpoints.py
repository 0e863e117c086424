"""A checkpoint is whole or absent, holds no code, and old ones go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from storage import write_atomically
from training.engine.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from training.errors import CheckpointError

STATE = {"step": 7, "model": {"weight": torch.arange(4.0)}, "window": {"loss": 0.1}, "best": None}


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "checkpoints", 7)
    save_checkpoint(path, STATE)
    state = read_checkpoint(path)
    assert (state["step"], state["window"], state["best"]) == (7, {"loss": 0.1}, None)
    assert torch.equal(state["model"]["weight"], torch.arange(4.0))
    assert [file.name for file in path.parent.iterdir()] == ["step-00000007.pt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def half(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, half)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_stay_in_the_order_of_their_steps_not_of_their_names(tmp_path: Path) -> None:
    for step in (9, 100_000_000, 20, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), STATE)
    save_checkpoint(tmp_path / "best.pt", STATE)
    (tmp_path / ".step-00000005.pt.part").write_bytes(b"killed while writing")
    remove_old_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000020.pt", "step-100000000.pt"]
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "best.pt"


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_run_without_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    assert list_checkpoints(folder) == []
    save_checkpoint(checkpoint_path(folder, 1), STATE)

    def refuse(path: object = ".") -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # A refusal is simulated, as nothing is refused to root.
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    for look in (lambda: list_checkpoints(folder), lambda: remove_old_checkpoints(folder, 1)):
        with pytest.raises(CheckpointError, match=r"checkpoints: cannot be listed \(Permission denied\)"):
            look()
    monkeypatch.undo()
    assert list_checkpoints(folder) == [checkpoint_path(folder, 1)]


@pytest.mark.parametrize("kind", ["absent", "cut short", "not ours", "newer", "code"])
def test_what_is_no_checkpoint_is_said_to_be_none(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    match kind:
        case "cut short":
            save_checkpoint(path, STATE)
            path.write_bytes(path.read_bytes()[:-200])
        case "not ours":
            torch.save({"model": {}}, path)
        case "newer":
            save_checkpoint(path, STATE | {"format_version": 99})
        case "code":
            torch.save(
                {**STATE, "format": "mass3d checkpoint", "format_version": 1, "model": Path("a")}, path
            )
    with pytest.raises(CheckpointError, match=r"step-00000001\.pt"):
        read_checkpoint(path)
