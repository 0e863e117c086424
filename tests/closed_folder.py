"""A folder that may not be entered, also for root."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def close_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look at what lies in a folder be refused."""
    whole, closed = Path.stat, os.path.realpath(folder)

    def stat(self: Path, **more: Any) -> os.stat_result:
        followed = os.path.realpath(self) if more.get("follow_symlinks", True) else os.path.abspath(self)
        if followed.startswith(f"{closed}/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return whole(self, **more)

    monkeypatch.setattr(Path, "stat", stat)
