"""Setting of the C library: freed memory is returned to the system at once.

Without it, the peaks of several stages add up: the C library keeps freed blocks of up to 32 MB, in one arena
per thread, and they fragment; a few hundred MB per scan. Threads come and go with every step, and few blocks
are small, so two arenas are enough.

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
    """Make this process take arrays of 1 MiB and more from the system, and return them when freed."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_ARENA_MAX, _NUM_ARENAS)
