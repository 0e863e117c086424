"""Masks made elsewhere, read onto a stored scan's grid; and stored scans, written as other tools read them.

Takes:  files of masks and the grids of a stored scan; or images, labels and masks on a grid.
Gives:  `PackedMasks`: atom layers in which no two masks cross; or files in one of four formats.

`find_masks` finds which files belong to which scan, `read_masks` reads and places them, `pack_masks` packs
them. `begin` begins an export, which takes `ExportScan`s one after the other.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
