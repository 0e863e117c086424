"""Union-find: sets that are joined two at a time, for compiled loops.

Reads, writes: the parent of each member, integers (N,). The root of a set is its lowest member and its own
parent.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def unite(root: Any, a: Any, b: Any) -> None:
    """Join the sets of two members; the lower root becomes the root of both. Halves the paths on the way.

    Args:
        root: Integers (N,) parent of each member; updated.
        a: A member.
        b: Another member.
    """
    while root[a] != a:
        root[a] = root[root[a]]
        a = np.int64(root[a])
    while root[b] != b:
        root[b] = root[root[b]]
        b = np.int64(root[b])
    root[max(a, b)] = min(a, b)
