"""Check that file locks work on a store's file system: by a trial, and from its mount options.

Writers exclude each other by `flock`. A file system may lack it, may grant it to everybody, or may keep it
within one machine. The first two are found by trying: two handles on one file must exclude each other. The
third is known from the mount only, since a trial would need a second machine.

*Reads* /proc/self/mountinfo (Linux; elsewhere only the trial is done). *Writes* a file in tmp/ for a moment.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from storage.access import StorePath, StoreUrl
from storage.errors import StoreLocksMissing
from storage.files import flock, full_disk_named, remove_if_empty, store_lock
from storage.layout import TEMPORARY_FOLDER
from storage.reading import open_store

_MOUNTS = Path("/proc/self/mountinfo")

_WITHIN_ONE_MACHINE = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "cifs": {"nobrl", "nolock"},
    "smb3": {"nobrl", "nolock"},
    "lustre": {"localflock"},
    "9p": {""},
    "virtiofs": {""},
}
"""Mount options by file system with which a lock is known to one machine only; "" for any options."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """How a folder is mounted."""

    point: str
    kind: str
    """Type of the file system."""
    options: frozenset[str]
    """Options of the mount and of the file system."""

    @property
    def locks_within_one_machine(self) -> bool:
        """Whether locks are known to one machine only, though others may write to the same files."""
        known = _WITHIN_ONE_MACHINE.get(self.kind, set())
        return "" in known or bool(known & self.options) or self.kind.startswith("fuse.")


def check_locks(store: str | StorePath) -> str:
    """Check by a trial that writers exclude each other in a store; return a warning, or "".

    Raises:
        StoreLocksMissing: They do not: two writers could damage the index.
    """
    root = open_store(store).path
    if isinstance(root, StoreUrl):  # conditional puts take the place of locks
        return ""
    _try_locks(root)
    mount = mount_of(root)
    if mount is None or not mount.locks_within_one_machine:
        return ""
    return (
        f"locks on {root} hold within this machine only ({mount.kind}, mounted on {mount.point}): let no "
        "other machine write to the store at the same time. Reading is safe from everywhere"
    )


def _try_locks(root: Path) -> None:
    """Take a lock and check that another handle cannot have it."""
    folder = root / TEMPORARY_FOLDER
    with full_disk_named(root, "trying its locks"), store_lock(root):
        folder.mkdir(exist_ok=True)
        path = folder / f"lock-trial.{secrets.token_hex(8)}"
        handles = []
        try:
            handles = [os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for _ in range(2)]
            flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB, root)
            excluded = _is_excluded(handles[1], root)
        finally:
            for handle in handles:
                os.close(handle)
            path.unlink(missing_ok=True)
            remove_if_empty(folder)
    if not excluded:
        raise StoreLocksMissing(
            f"{root}: its file system gives one lock to two writers at once, so that they could damage the "
            "store. Mount it with locks (NFS: without nolock; Lustre: -o flock), or choose another folder"
        )


def _is_excluded(handle: int, root: Path) -> bool:
    try:
        flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, root)
    except BlockingIOError:
        return True
    return False


def mount_of(path: Path, text: str | None = None) -> Mount | None:
    """Return the mount of a path's file system; None if it is not known.

    Args:
        path: An absolute path.
        text: Text to parse in place of /proc/self/mountinfo.
    """
    if text is None:
        try:
            text = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        path = path.resolve()
    mounts = [_parse(line) for line in text.splitlines() if " - " in line]
    # Of several mounts on one folder the last one is seen.
    return max(
        (mount for mount in mounts if path.is_relative_to(mount.point)),
        key=lambda mount: (len(Path(mount.point).parts), mounts.index(mount)),
        default=None,
    )


def _parse(line: str) -> Mount:
    """Return the mount of a line: ID parent device root POINT OPTIONS fields - KIND source OPTIONS."""
    first, _, second = line.partition(" - ")
    fields, (kind, _, options) = first.split(), (*second.split(), "", "", "")[:3]
    point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
    return Mount(point=point, kind=kind, options=frozenset([*fields[5].split(","), *options.split(",")]))
