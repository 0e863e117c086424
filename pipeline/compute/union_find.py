"""Sets that are joined two by two (union-find), for compiled loops.

Reads, writes: the root of each member, integers (N,): itself for the lowest of a set, which stands for it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def unite(root: Any, a: Any, b: Any) -> None:
    """Make the sets of two members one, by the lower root; paths are halved on the way."""
    while root[a] != a:
        root[a] = root[root[a]]
        a = np.int64(root[a])
    while root[b] != b:
        root[b] = root[root[b]]
        b = np.int64(root[b])
    root[max(a, b)] = min(a, b)
