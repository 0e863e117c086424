"""Supervoxels of a scan and the trees grown over them; every node of a tree is a region inside its parent.

Takes:  an image (z, y, x) on a backend.
Gives:  a `Hierarchy` a `TreeSpec`: parents, sizes, criteria; leaves are supervoxels or basins.

In order: boundary evidence (`boundaries`), watershed basins (`basins`), their graph and sums (`region_graph`,
`region_sums`), merging of the weakest (`merge_weakest`), trees by many criteria (`grow`), trees of connected
components (`component_tree`), MinHash sketches that find nodes alike (`leaf_sketches`, `similar_pairs`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
