"""Files that belong to a scan: detached data of a header, and whether they can be opened at all.

*Reads*: text headers (the first kilobytes), file status. *Writes*: paths, or an `UnreadableFile` error.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from pipeline.errors import ScanError, TransientReadError, UnreadableFile

_HEADER_BYTES = 65536
"""Text headers end before this."""

_DATA_FILE = {
    ".mhd": re.compile(r"^\s*ElementDataFile\s*=\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE),
    ".nhdr": re.compile(r"^\s*data ?file:\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE),
}

_MAY_PASS = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN, errno.EINTR}
"""Failures of disks and networks that another try may get over."""


def companions(path: Path) -> tuple[Path, ...]:
    """The file itself, and the data file that its header names (MHD, NHDR)."""
    pattern = _DATA_FILE.get(path.suffix.lower())
    if pattern is None:
        return (path,)
    try:
        with path.open("rb") as file:
            text = file.read(_HEADER_BYTES).decode("latin-1")
    except OSError:
        return (path,)  # the reader will say what is wrong with it
    match = pattern.search(text)
    name = match["file"] if match else "LOCAL"
    if name.upper() == "LOCAL" or name.upper().startswith("LIST") or "%" in name:
        return (path,)
    return (path, path.parent / name)


def may_pass(error: BaseException) -> bool:
    """Whether another try may get over an error: a disk or network that failed, not a full disk."""
    return isinstance(error, OSError) and (
        isinstance(error, TransientReadError | ConnectionError | TimeoutError) or error.errno in _MAY_PASS
    )


def check_readable(path: Path, *, shown: str, what: str = "file") -> None:
    """Checks that a file is there, is a file, is not empty and may be opened.

    Raises:
        UnreadableFile: It is not; the message says which of these.
    """
    if path.is_symlink() and not path.exists():
        raise UnreadableFile(
            f"the {what} is a link to a place that does not exist",
            path=shown,
            remedy="Restore what it points to",
        )
    try:
        if path.is_dir():
            raise UnreadableFile(
                f"the {what} must be a file, a folder is in its place", path=shown, remedy="Remove the folder"
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise UnreadableFile(f"the {what} is empty (0 bytes)", path=shown, remedy="Copy it again")
    except OSError as error:
        if isinstance(error, ScanError):
            raise
        raise os_error(error, shown=shown, what=what) from None


def os_error(error: OSError, *, shown: str, what: str = "file") -> UnreadableFile:
    """The error to show for what the operating system said, without the path that it names."""
    reason = os.strerror(error.errno) if error.errno else "read error"
    if error.errno in _MAY_PASS:
        return TransientReadError(
            f"the {what} cannot be read just now ({reason})",
            path=shown,
            remedy="Try again; check disk and network",
        )
    if error.errno == errno.ENOENT:
        return UnreadableFile(
            f"the {what} does not exist", path=shown, remedy="Correct its path, or restore it"
        )
    return UnreadableFile(
        f"the {what} cannot be opened ({reason})", path=shown, remedy="Give yourself permission to read it"
    )
