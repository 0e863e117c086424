"""Small files of a store that change: store.json, the index, the ledger. No update is ever lost.

On disk, writers hold the store's lock and replace the file in one step. On an object store there are no
locks: an update is a conditional put, which the service refuses if another writer was faster; it is then made
again from the new bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from storage.access.client import ObjectConflictError, client_of
from storage.access.urls import StorePath, StoreUrl
from storage.errors import StoreUnreachable
from storage.files import full_disk_named, replace_file, store_lock

_MOST_CONFLICTS = 100
"""Most refused tries of one update; after more, the service is taken to be at fault."""


def read_file(store: StorePath, name: str) -> bytes:
    """Return a file of a store; raises FileNotFoundError (or NotADirectoryError)."""
    if isinstance(store, StoreUrl):
        return client_of(store).get((store / name).key)[0]
    return (store / name).read_bytes()


def read_if_there(store: StorePath, name: str) -> bytes | None:
    """Return a file of a store; None if there is none."""
    with suppress(FileNotFoundError):
        return read_file(store, name)
    return None


def update_file(store: StorePath, name: str, change: Callable[[bytes | None], bytes], *, doing: str) -> None:
    """Replace a file of a store by the bytes that `change` returns, in one step.

    Args:
        store: The store.
        name: The file.
        change: Given the present bytes, None if there are none, returns the new ones. May be called again.
        doing: The action in words, for the message if there is no space left.
    """
    if isinstance(store, StoreUrl):
        update_object(store, name, change)
        return
    with full_disk_named(store, doing), store_lock(store):
        before = read_if_there(store, name)
        after = change(before)
        if after != before:
            replace_file(store, name, after)


def update_object(store: StoreUrl, name: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace an object by the bytes that `change` returns; see `update_file`."""
    client, key = client_of(store), (store / name).key
    for _ in range(_MOST_CONFLICTS):
        try:
            before, stamp = client.get(key)
        except FileNotFoundError:
            before, stamp = None, None
        after = change(before)
        if after == before:
            return
        with suppress(ObjectConflictError):
            client.put_if(key, after, unchanged=stamp)
            return
    raise StoreUnreachable(
        f"{store / name}: was changed by others {_MOST_CONFLICTS} times while it was being updated. The "
        "service must have conditional puts (docs/object-stores.md); run the same command again"
    )


def require_conditional_puts(store: StoreUrl, name: str, data: bytes) -> None:
    """Raise StoreUnreachable unless the service refuses to create an object that is there.

    Args:
        store: The store.
        name: An object that is there.
        data: Its bytes.
    """
    try:
        client_of(store).put_if((store / name).key, data + b"\n", unchanged=None)  # never what is there
    except ObjectConflictError:
        return
    raise StoreUnreachable(
        f"{store}: the service has no conditional puts (it ignores If-None-Match), so two writers could harm "
        "each other. Use one that has them, or a store on disk (docs/object-stores.md)"
    )
