"""The files of a scan: the data file that a header names, and checks that files can be opened.

*Reads*: text headers (the first kilobytes), file status. *Writes*: paths, or an `UnreadableFile` error.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pipeline.errors import ScanError, TransientReadError, UnreadableFile
from pipeline.formats.binary_headers import data_of_pair
from pipeline.formats.file_kinds import IMAGE_FORMATS
from pipeline.formats.text_headers import lies_below

_HEADER_BYTES = 65536
"""Text headers are shorter than this."""

_DATA_FILE = {suffix: line for row in IMAGE_FORMATS.values() for suffix, line in row.data_file.items()}
"""The line that names the data file, by suffix of the detached header."""

_SPECIAL = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)

DATA_SUFFIXES = frozenset(data for row in IMAGE_FORMATS.values() for data in row.data_suffix.values())
"""Suffixes of data files that have the name of their header."""

_PAIRED = {suffix for row in IMAGE_FORMATS.values() for suffix in row.data_suffix}
"""Suffixes of headers whose data file has the same name."""

_TRANSIENT = {
    errno.EIO,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EBUSY,
    errno.ENETDOWN,
    errno.EINTR,
}
"""Errors of disks and networks that may not occur in another try."""


def companions(path: Path) -> tuple[Path, ...]:
    """Return the files of an image: the file itself, and the data file of its header (MHD, NHDR, HDR)."""
    if path.suffix.lower() in _PAIRED:
        return pair_of(path)
    pattern = _DATA_FILE.get(path.suffix.lower())
    if pattern is None or special_kind(path):
        return (path,)
    try:
        with path.open("rb") as file:
            text = file.read(_HEADER_BYTES).decode("latin-1")
    except OSError:
        return (path,)  # the reader raises the error
    match = pattern.search(text)
    name = match["file"] if match else "LOCAL"
    if name.upper() == "LOCAL" or name.upper().startswith("LIST") or "%" in name or not lies_below(name):
        return (path,)  # the reader refuses a name that leads elsewhere
    return (path, path.parent / name)


def pair_of(path: Path) -> tuple[Path, ...]:
    """Return the header and the data file of a pair with one name (HDR and IMG), else the file alone."""
    return (path, data_of_pair(path)) if path.suffix.lower() in _PAIRED else (path,)


def header_of_pair(data: Path) -> Path:
    """Return the header of a data file that has its name: X.hdr of X.img, in the data file's case."""
    return data.with_suffix(".HDR" if data.suffix.isupper() else ".hdr")


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: a disk or network failed. A full disk is not transient."""
    return isinstance(error, OSError) and (
        isinstance(error, TransientReadError | ConnectionError | TimeoutError) or error.errno in _TRANSIENT
    )


def special_kind(path: Path) -> str:
    """Return the kind of a special file ("named pipe", "socket", "device"); "" for a file or a folder.

    Reading a special file could wait for ever. A path that cannot be examined counts as none.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return next((name for is_kind, name in _SPECIAL if is_kind(mode)), "")


def refuse_special(path: Path, *, shown: str, what: str = "file") -> None:
    """Refuse a named pipe, socket or device before it is opened; arguments as in `check_readable`."""
    if kind := special_kind(path):
        raise UnreadableFile(
            f"the {what} must be a file, a {kind} is in its place", path=shown, remedy=f"Remove the {kind}"
        )


def check_readable(path: Path, *, shown: str, what: str = "file") -> None:
    """Check that a path is a file that is not empty and can be opened.

    Args:
        path: The file.
        shown: Name of the file in error messages.
        what: What the file is, in error messages.

    Raises:
        UnreadableFile: It is not; the message says why.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise UnreadableFile(
                f"the {what} is a link to a path that does not exist",
                path=shown,
                remedy="Restore what it points to",
            )
        if path.is_dir():
            raise UnreadableFile(
                f"the {what} must be a file, a folder is in its place", path=shown, remedy="Remove the folder"
            )
        refuse_special(path, shown=shown, what=what)
        with path.open("rb") as file:
            if not file.read(1):
                raise UnreadableFile(f"the {what} is empty (0 bytes)", path=shown, remedy="Copy it again")
    except OSError as error:
        if isinstance(error, ScanError):
            raise
        raise os_error(error, shown=shown, what=what) from None


def text_of_path(path: Path, *, shown: str) -> str:
    """Return a path as text for SimpleITK, which would end the process at one that is not UTF-8.

    Args:
        path: The file.
        shown: Name of the file in error messages.

    Raises:
        UnreadableFile: The path is not UTF-8, as of files that old Windows or Mac programs named.
    """
    text = str(path)
    if text == printable_path(text):
        return text
    raise UnreadableFile(
        "the name of the file, or of a folder around it, must be UTF-8, it is in another encoding",
        path=printable_path(shown),
        remedy="Rename it",
    )


def printable_path(path: Path | str) -> str:
    """Return a path as text that is valid UTF-8, with other bytes as hexadecimal numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def os_error(error: OSError, *, shown: str, what: str = "file") -> UnreadableFile:
    """Return our error for one of the operating system, without the path in its message.

    Args:
        error: The error of the operating system.
        shown: Name of the file in the message.
        what: What the file is.
    """
    reason = os.strerror(error.errno) if error.errno else "read error"
    if error.errno in _TRANSIENT:
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
