"""Known vulnerabilities of pinned packages, of those that are pinned to their newest release.

PyPI tells the vulnerabilities of a release under /pypi/NAME/VERSION/json. Mirrors often lack that address,
but have /pypi/NAME/json, which tells those of the newest release, from the same database. A pin that is older
than the newest release cannot be compared so, and is named; all that is known of it is whether it was taken
back ("yanked").
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTROL = "pycrypto"
"""A package that nobody keeps any more: its newest release has known vulnerabilities for ever. A database
that knows none of them knows nothing."""

ADDRESS = "https://pypi.org/pypi/{name}/json"
ANSWER_SECONDS = 15
TRIES = 3
REQUESTS_AT_ONCE = 4

Document = Mapping[str, Any]
"""What PyPI's JSON API says of a package."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the database says of the pins."""

    compared: tuple[str, ...]
    """Pins `name==version` that are the newest release, and were looked up."""
    older: tuple[str, ...]
    """Pins that are not: nothing is known of them."""
    found: tuple[str, ...]
    """Lines `name==version: ID, ...` of known vulnerabilities, and of releases that were taken back."""


class NoDatabaseError(OSError):
    """The database does not answer, or does not know what every database knows."""


def read_pins(path: Path) -> list[tuple[str, str]]:
    """Return names and versions of a file of requirements, and of what is to be installed beside it."""
    beside = r"(?:# To install beside it.*: )?"
    return re.findall(rf"(?m)^{beside}([A-Za-z0-9._-]+)==([^\s\\]+)", path.read_text(encoding="utf-8"))


def read_accepted(path: Path) -> frozenset[str]:
    """Return the IDs that were looked at and do not concern us: the first word of each line."""
    lines = [line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    return frozenset(words[0] for words in lines if words)


def ask(name: str) -> Document:
    """Return what PyPI says of a package.

    Raises:
        NoDatabaseError: It does not answer, after `TRIES` tries.
    """
    for remaining in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(ADDRESS.format(name=name), timeout=ANSWER_SECONDS) as answer:
                document: Document = json.load(answer)
                return document
        except (OSError, ValueError) as error:
            if not remaining:
                raise NoDatabaseError(f"PyPI does not answer for {name}: {error}") from error
    raise AssertionError("unreachable")


def compare(
    pins: Iterable[tuple[str, str]], accepted: frozenset[str], *, fetch: Callable[[str], Document] = ask
) -> Compared:
    """Look up the vulnerabilities of pins.

    Args:
        pins: Names and versions.
        accepted: IDs of vulnerabilities that do not concern us.
        fetch: Returns what PyPI says of a package.

    Raises:
        NoDatabaseError: It does not answer, or knows no vulnerability of `CONTROL`.
    """
    if not fetch(CONTROL).get("vulnerabilities"):
        raise NoDatabaseError(f"the database knows no vulnerability of {CONTROL}, which has some")
    wanted = sorted(set(pins))
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        documents = dict(zip(wanted, threads.map(lambda pin: fetch(pin[0]), wanted), strict=True))
    newest = {pin for pin, document in documents.items() if document["info"]["version"] == pin[1]}
    found = [
        f"{name}=={version}: {', '.join(words)}"
        for (name, version), document in documents.items()
        if (words := _known(version, document, accepted, is_newest=(name, version) in newest))
    ]
    return Compared(
        compared=tuple("==".join(pin) for pin in wanted if pin in newest),
        older=tuple("==".join(pin) for pin in wanted if pin not in newest),
        found=tuple(found),
    )


def _known(version: str, document: Document, accepted: frozenset[str], *, is_newest: bool) -> list[str]:
    """Return what is known against a release, in words."""
    words = []
    for vulnerability in document["vulnerabilities"] if is_newest else ():
        ids = [vulnerability["id"], *vulnerability.get("aliases", ())]
        if not vulnerability.get("withdrawn") and accepted.isdisjoint(ids):
            words.append(ids[0])
    files = document.get("releases", {}).get(version, ())
    if files and all(file.get("yanked") for file in files):
        words.append(f"taken back ({files[0].get('yanked_reason') or 'no reason given'})")
    return words
