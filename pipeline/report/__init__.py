"""Pictures and HTML pages of stored scans, and what a browser needs to show them in 3D.

Takes:  a scan of a store (`ScanLike`, or read part by part: `StoredScan`) and its score.
Gives:  self-contained HTML pages, PNG pictures, and packs of arrays for the viewer.

`store_page` writes the page of a store from `StoreContents`, `scan_page` that of a scan from `describe_scan`.
`pack_scan` makes what the viewer shows: of `at_level(scan, level)`, or of a `LeveledScan` with `Pair`s to
compare.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
