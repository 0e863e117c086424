"""A scan as values and arrays: its record, checked when made, and what is computed from it. No I/O.

Takes:  arrays of a scan.
Gives:  a `ScanRecord`, valid whenever it exists; levels, orders, boxes of voxels, words of masks.

In order: boxes (`Region`), the levels of a volume (`plan_levels`), the stored form of orders (`pack_orders`),
the exact check of a proposal table (`proposal_checks`), the record, imported masks in it (`with_imports`),
and words of masks (`build_lookup`, `add_words`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
