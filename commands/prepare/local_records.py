"""Records of a store on this machine: the sources of its scans, and the seconds that each took.

A store holds no paths of its sources, since they may hold a patient's name; `mass repair` needs them. It
holds no times either, so that the same work gives the same bytes; `mass inspect` shows them. So each run of
`mass prepare` writes both into the user's cache folder.

Reads and writes: in the cache folder `sources/<digest of the store's path>.json`, `seconds/<the same>.json`.
Bounds: only stores that this user prepared on this machine; elsewhere the user names the folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from commands.caches import cache_folder
from storage import StorePath, digest_of

MOST_SEARCHES = 20
"""Most searches that are remembered per store; the newest are kept."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The folder or file that a run of `mass prepare` searched for scans, with the options of the search."""

    raw: str
    """Absolute path of a folder, a manifest or a file."""
    layout: str = "auto"
    follow_links: bool = False


def remember_search(store: StorePath, search: Search) -> None:
    """Remember that a store was filled from a search; a cache that cannot be written is no error."""
    others = [other for other in remembered_searches(store) if other.raw != search.raw]
    kept = [*others, search][-MOST_SEARCHES:]
    _keep(_path(store, "sources"), [asdict(one) for one in kept])


def remembered_searches(store: StorePath) -> Sequence[Search]:
    """Return the searches that a store was filled from on this machine, oldest first."""
    try:
        return tuple(Search(**one) for one in json.loads(_path(store, "sources").read_bytes()))
    except (OSError, ValueError, TypeError):
        return ()


def remember_seconds(store: StorePath, seconds: Mapping[str, float]) -> None:
    """Add the seconds of some scans to those remembered; a cache that cannot be written is no error."""
    if seconds:
        rounded = {scan_id: round(value, 3) for scan_id, value in seconds.items()}
        _keep(_path(store, "seconds"), {**remembered_seconds(store), **rounded})


def remembered_seconds(store: StorePath) -> Mapping[str, float]:
    """Return how long scans of a store took on this machine when they were prepared last, by scan id."""
    try:
        known = json.loads(_path(store, "seconds").read_bytes())
        return {str(scan_id): float(seconds) for scan_id, seconds in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(path: Path, value: object) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)


def _path(store: StorePath, what: str) -> Path:
    place = store.resolve() if isinstance(store, Path) else store
    return cache_folder() / what / f"{digest_of(str(place))[:32]}.json"
