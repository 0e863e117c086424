"""Locks are tried before anybody writes, and a mount on which they hold for one machine only is told."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from storage import StoreLocksMissing, check_locks, create_store, open_store
from storage.files import store_lock
from storage.writing import locks
from storage.writing.locks import mount_of
from tests.storage.drawn_record import store_bytes

MOUNTS = """\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/old rw,relatime - nfs server:/a rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
31 22 0:41 / /mnt/nfs3 rw,relatime - nfs server:/b rw,vers=3,local_lock=none,addr=10.0.0.1
32 22 0:42 / /mnt/nfs4 rw,relatime shared:7 - nfs4 server:/c rw,vers=4.2,local_lock=none,addr=10.0.0.1
33 22 0:43 / /mnt/share rw,relatime - cifs //server/d rw,vers=3.1.1,nobrl
34 22 0:44 / /mnt/share/locked rw,relatime - cifs //server/e rw,vers=3.1.1
35 22 0:45 / /mnt/lustre rw,flock - lustre 10.0.0.2@tcp:/f rw,flock
36 22 0:46 / /mnt/lustre-local rw,localflock - lustre 10.0.0.2@tcp:/g rw,localflock
37 22 0:47 / /mnt/ssh rw,nosuid - fuse.sshfs me@there:/ rw,user_id=0
38 22 0:48 / /mnt/my\\040disk rw - xfs /dev/sdb rw
39 22 0:49 / /var/lib/container rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
40 22 0:50 / /mnt/host rw - 9p host rw,trans=virtio
41 22 0:51 / /mnt/twice rw - nfs server:/h rw,nolock
42 22 0:52 / /mnt/twice rw - ext4 /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "one_machine"),
    [
        ("/data/store", "ext4", False),
        ("/mnt/old/store", "nfs", True),
        ("/mnt/older/store", "ext4", False),
        ("/mnt/nfs3/store", "nfs", False),
        ("/mnt/nfs4/a/b", "nfs4", False),
        ("/mnt/share/store", "cifs", True),
        ("/mnt/share/locked/store", "cifs", False),
        ("/mnt/lustre/store", "lustre", False),
        ("/mnt/lustre-local/store", "lustre", True),
        ("/mnt/ssh/store", "fuse.sshfs", True),
        ("/mnt/my disk/store", "xfs", False),
        ("/var/lib/container/store", "overlay", False),
        ("/mnt/host/store", "9p", True),
        ("/mnt/twice/store", "ext4", False),
    ],
)
def test_the_mount_tells_whether_locks_hold_between_machines(path: str, kind: str, one_machine: bool) -> None:
    mount = mount_of(Path(path), MOUNTS)
    assert mount is not None
    assert (mount.kind, mount.locks_within_one_machine) == (kind, one_machine)


def test_the_trial_leaves_nothing_and_this_disk_has_locks(empty_store: Path) -> None:
    before = store_bytes(empty_store)
    check_locks(empty_store)
    assert store_bytes(empty_store) == before
    mount = mount_of(empty_store)
    assert mount is None or empty_store.resolve().is_relative_to(mount.point)


def test_a_mount_whose_locks_hold_within_one_machine_is_a_warning(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 22 0:40 / {empty_store.resolve()} rw - nfs server:/a rw,vers=3,nolock\n")
    monkeypatch.setattr(locks, "_MOUNTS", mounts)
    assert "within this machine only (nfs, mounted on" in check_locks(empty_store)
    monkeypatch.setattr(locks, "_MOUNTS", tmp_path / "nowhere")
    assert check_locks(empty_store) == ""


def test_a_disk_that_gives_one_lock_to_two_writers_is_refused(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(StoreLocksMissing, match=r"gives one lock to two writers.*nolock.*flock"):
        check_locks(empty_store)
    assert not (empty_store / "tmp").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(StoreLocksMissing, match="has no locks"):
        create_store(tmp_path / "store", spacing_mm=1.5, config={})
    assert not (tmp_path / "store" / "store.json").exists()


def test_the_lock_of_a_store_excludes_another_handle(empty_store: Path) -> None:
    with store_lock(empty_store):
        handle = os.open(open_store(empty_store).path / "store.lock", os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)


def test_other_errors_of_a_lock_stay_what_they_are(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        check_locks(empty_store)
    assert not isinstance(caught.value, StoreLocksMissing)
