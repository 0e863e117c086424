"""Writing of a store: a scan is stored completely or not at all, also after a kill or on a full disk.

Takes:  a `ScanRecord`, entries of the ledger.
Gives:  files of a store, the same bytes for the same record.

In order: the files of a scan (`write_scan`), its commit, removal and repair (`commit_scan`, `remove_scan`,
`sweep`, `finish`), the ledger (`write_ledger`), the check of all bytes (`verify`), and scans of older
versions (`lift_scan`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
