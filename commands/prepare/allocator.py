"""Freed memory goes back to the system at once, so that peaks of one stage do not add to those of the next.

The C library keeps freed blocks of up to 32 MB, in one arena per thread, and they fragment: a few hundred MB
per scan. Threads come and go with every step, and few blocks are small, so two arenas are enough.

Reads: nothing. Writes: nothing.
Bounds: glibc (Linux); elsewhere nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3)."""

_LARGE_BYTES = 1 << 20

_ARENA_MAX = -8
"""M_ARENA_MAX of mallopt(3)."""

_NUM_ARENAS = 2


def return_large_arrays() -> None:
    """Have this process take arrays of 1 MiB and more from the system, and give each back once freed."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_ARENA_MAX, _NUM_ARENAS)
