"""Reading a scan and making it standard: turned to RAS, cropped, resampled, scaled to int16.

Takes:  a `Source`, and `IngestConfig`.
Gives:  a `StandardScan`: image (z, y, x) int16 with scale and offset, labels on the same grid, notes.

`read_source` reads files as they are, `standardize` does the rest. `load_source`, `find_one` and
`find_targets` serve those who need a scan outside of a store and want a result back on the scan's own grid
(`LoadedScan`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
