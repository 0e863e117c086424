"""Mask proposals: the nodes of all trees that are worth keeping, and how they are stored.

Takes:  an image (z, y, x) int16 with its scale, window and voxel size, and `ProposalConfig`.
Gives:  a `ProposalSet`: an atom volume (z, y, x), rows of atom intervals, a table, best proposal first.

`propose` is the door. In order: candidates of all trees, a choice without near-duplicates (`selection`),
smooth outlines, refinement of the partition (`splitting`, `refinement`), removal of slivers, atoms: the
regions that no proposal separates further.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
