"""The store: the only code that knows how scans are stored on disk.

Format version 2, one Zarr v3 group per scan (`storage.layout`). Four rooms: `access` (files on disk or at a
URL), `records` (a scan as values and arrays), `reading` and `writing`.

    from storage import open_store

    store = open_store("STORE")
    scan = store.scan(store.scan_ids[0])
    scan.image()                      # float32 (z, y, x) in real units
    scan.proposals.voxels             # int32 (N,), best proposal first
    scan.masks([3, 17])               # bool (2, z, y, x)
    scan.words([3, 17, 40], region)   # uint16 (z, y, x): bit k is mask k
    level = scan.level_for((64, 64, 64))     # the finest level at which the whole scan fits a window
    scan.image(level=level), scan.masks([3, 17], level=level), scan.voxels_at(level)

Writers use `create_store`, `commit_scan`, `finish`. `sweep` repairs a store, `verify` checks it, `lift_scan`
rewrites its scans in the newest version. Names are loaded at first use, so that importing `storage` is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
