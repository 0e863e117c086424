"""Where the scans of a store came from on this machine, for commands that have to read them again.

A store holds no path of its sources, which may hold a patient's name; `mass repair` needs them. So each run
of `mass prepare` leaves what it searched in the cache folder of its user.

Reads and writes: `sources/<digest of the store's path>.json` in the cache folder.
Bounds: only what this user prepared on this machine; elsewhere the user names the folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from commands.caches import cache_folder
from storage import StorePath, digest_of

MOST_SEARCHES = 20
"""Searches that are remembered of a store; the newest stay."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a run of `mass prepare` searched for scans, and how."""

    raw: str
    """Absolute path of a folder, a manifest or a file."""
    layout: str = "auto"
    follow_links: bool = False


def remember_search(store: StorePath, search: Search) -> None:
    """Remember that a store was filled from a search; a cache that cannot be written is no error."""
    others = [other for other in remembered_searches(store) if other.raw != search.raw]
    kept = [*others, search][-MOST_SEARCHES:]
    path = _path(store)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps([asdict(one) for one in kept]), encoding="utf-8")
        temporary.replace(path)


def remembered_searches(store: StorePath) -> Sequence[Search]:
    """Return the searches that a store was filled from on this machine, oldest first."""
    try:
        return tuple(Search(**one) for one in json.loads(_path(store).read_bytes()))
    except (OSError, ValueError, TypeError):
        return ()


def _path(store: StorePath) -> Path:
    place = store.resolve() if isinstance(store, Path) else store
    return cache_folder() / "sources" / f"{digest_of(str(place))[:32]}.json"
