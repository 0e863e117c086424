"""Reading of a store: the index, scans read lazily, every byte checked against its checksum.

Takes:  the path of a store.
Gives:  a `Store` (`open_store`, `create_store`) with its `Scan`s: regions of images, labels and masks.

In order: the one file of an array (`shards`), the files of a scan (`scan_files`), its volumes at any level
(`volumes`), the scan (`scans`), the index of all scans (`index`), and the store (`stores`). Readers take no
lock.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
