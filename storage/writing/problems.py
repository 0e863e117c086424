"""Problems that a check of a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Cure: TypeAlias = Literal["make again", "sweep", "remove", "by hand"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One difference between the store and what was committed."""

    scan_id: str | None
    """The scan, or None if the problem is the store's."""
    key: str
    """The file, relative to the scan's folder (or the store's)."""
    what: str
    """What is wrong, and what to do."""
    cure: Cure = "make again"
    """Its remedy: making the scan again, a sweep of the index, removing the file, or the user."""
