"""Supervoxels of a scan, and the trees grown over them. Every node of a tree is a region inside its parent.

Takes:  an image (z, y, x) on a backend.
Gives:  one `Hierarchy` per `TreeSpec`: parents and leaf intervals of its nodes; leaves are supervoxels.

In order: boundary evidence (`boundaries`), watershed basins (`basins`), their graph and sums (`region_graph`,
`region_sums`), merging of small and similar regions (`merge_weakest_consuming`), trees by several criteria
(`grow`), trees of connected components (`component_tree`), MinHash sketches that find similar nodes
(`leaf_sketches`, `similar_pairs`).

Volumes and graphs are large. A function whose name ends in `_in_place` writes its result into its first
argument; after one that ends in `_consuming`, its first arguments hold nothing any more. Both do so on every
backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
