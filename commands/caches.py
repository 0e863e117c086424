"""The program's cache folder, also on machines with read-only homes and installations.

*Writes* a folder, and NUMBA_CACHE_DIR where it is not set and Numba could not keep its compiled code beside
the source. Without a cache every process compiles anew: about half a minute for the first scan of each.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

PROGRAM = "mass3d"

_HIERARCHIES = Path(__file__).parents[1] / "pipeline" / "hierarchies"
"""Package with most of the compiled code."""


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Return the folder for caches, made: below XDG_CACHE_HOME or ~/.cache, else in the temporary folder.

    A user without a name and without HOME, as in some containers, has no ~.

    The one in the temporary folder is this user's alone (mode 700, owner checked), since what lies in it is
    executed.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / PROGRAM
    if wanted.is_absolute() and _made_writable(wanted):
        return wanted
    private = Path(tempfile.gettempdir()) / f"{PROGRAM}-{os.getuid()}"
    if _made_writable(private, mode=0o700) and _is_own(private):
        return private
    return Path(tempfile.mkdtemp(prefix=f"{PROGRAM}-"))


def set_process_defaults() -> None:
    """Set environment variables for compiled code, before it is imported; variables that are set stay."""
    # Threads that wait actively slow each other down where cores are shared: up to 20 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    choose_numba_cache(_HIERARCHIES)


def choose_numba_cache(package: Path) -> None:
    """Let Numba keep compiled code in `cache_folder` where it cannot keep it beside a package's source.

    Has to be called before Numba is imported. NUMBA_CACHE_DIR stays where it is set.
    """
    if "NUMBA_CACHE_DIR" not in os.environ and not _made_writable(package / "__pycache__"):
        os.environ["NUMBA_CACHE_DIR"] = str(cache_folder() / "numba")


def has_compiled(package: Path = _HIERARCHIES) -> bool:
    """Return whether Numba has kept compiled code before: without, the first scan waits for it."""
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or package / "__pycache__")
    return any(folder.rglob("*.nbi"))


def _made_writable(folder: Path, *, mode: int = 0o777) -> bool:
    """Make a folder where there is none; return whether files can be made in it."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_own(folder: Path) -> bool:
    """Return whether a folder is this user's and no other can write to it; a link is not."""
    found = folder.lstat()
    shared = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & shared
