"""Errors of disks in one sentence, with what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from storage import StorePath, check_locks

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}
_MISPLACED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_BROKEN = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOLCK, errno.ENOTCONN}


def explain_disk_error(error: OSError, given: Iterable[object]) -> str:
    """Return a message on the error of a disk, with what to do; "" if it may have another cause.

    Args:
        error: The error of the operating system.
        given: Arguments of the command, also lists of them. A path is named only if it lies in one of
            them or is one: other paths may hold a patient's name.
    """
    path = str(error.filename) if isinstance(error.filename, str | Path) else ""
    each = chain.from_iterable(one if isinstance(one, list | tuple) else [one] for one in given)
    folders = [name for one in each if isinstance(one, Path) for name in (str(one), str(one.absolute()))]
    is_given = any(path == folder or path.startswith(f"{folder}/") for folder in folders)
    remedies = (
        (_FULL, "Free space or raise the quota"),
        (_FORBIDDEN, "Check who may write there"),
        (_TOO_MANY, "Allow more open files (ulimit -n)"),
        (_BROKEN, "Check the disk or the network"),
        (_MISPLACED if is_given else set(), "Correct the path"),
    )
    remedy = next((words for numbers, words in remedies if error.errno in numbers), "")
    if not remedy:
        return ""
    where = f"{path}: " if is_given else ""
    return f"{where}{error.strerror}. {remedy}; what is finished is kept, the same command goes on from here"


def warn_of_locks(store: StorePath) -> None:
    """Print a warning if locks on a store hold on this machine only; raise an error without locks."""
    if warning := check_locks(store):
        print(f"warning: {warning}", file=sys.stderr)
