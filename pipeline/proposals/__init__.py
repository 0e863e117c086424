"""Mask proposals of a scan: the best nodes of all trees, stored as sets of atoms.

Takes:  an image (z, y, x) int16 with its scale, intensity range and voxel size, and `ProposalConfig`.
Gives:  a `ProposalSet`: an atom volume (z, y, x), orders of the atoms, and a table, best proposal first.

`propose` does all of it. In order: candidates of all trees, selection without near-duplicates (`selection`),
smooth outlines, common refinement of the selected regions (`splitting`, `refinement`), removal of slivers,
atoms. An atom is a set of voxels that no proposal separates.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
