"""Measurements behind docs/results.md: each script prints a table and writes JSON.

Most are run as `python benchmarks/NAME.py`; the shared parts are imported as `benchmarks.NAME`, before
PyTorch, so that waiting threads sleep here as they do in `mass`.
"""

from commands.caches import set_process_defaults

set_process_defaults()
