"""Reading a scan and making it standard: turned to RAS, cropped, resampled, coded as int16.

Takes:  a `Source`, and `IngestConfig`.
Gives:  a `StandardScan`: image (z, y, x) int16 with scale and offset, labels on the same grid, notes.

`read_source` reads the files, `standardize` does the rest. `find_one`, `find_targets` and `load_source` are
for scans outside of a store whose results are written on the scan's own grid (`LoadedScan`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
