"""Merging of small, similar regions until few enough are left to grow trees over.

Reads:  a `RegionGraph` and its `RegionSums`.
Writes: the new number of each region, int32 (R,), in scan order; graph and sums of the merged regions.
Bounds: the graph must be connected, or the wanted number of regions may not be reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend
from pipeline.hierarchies.agglomeration import agglomerate, join_nearest
from pipeline.hierarchies.region_graphs import RegionGraph, merge_graph_consuming
from pipeline.hierarchies.region_totals import RegionSums, merge_sums
from pipeline.hierarchies.tree_methods import contrast


def merge_weakest_consuming(
    graph: RegionGraph, sums: RegionSums, max_regions: int, backend: Backend
) -> tuple[NDArray[np.int32], RegionGraph, RegionSums]:
    """Merge small, similar regions until no more than `max_regions` are left.

    Args:
        graph: Graph of R regions on the backend. It is empty afterwards (see `merge_graph_consuming`).
        sums: Sums of the R regions.
        max_regions: The most regions that may be left.
        backend: Backend that holds the graph.

    Returns:
        int32 (R,) new number of each region, 0..R'-1 in scan order; graph and sums of the merged regions.
    """
    pairs, faces, strengths = (
        np.asarray(backend.to_host(array)) for array in (graph.pairs, graph.faces, graph.sums[:, 0])
    )
    # Far too many regions have a few voxels each: joining each with its nearest neighbour is much faster.
    if graph.num_regions > 2 * max_regions:
        nearest, count = join_nearest(pairs, faces, strengths, sums.voxels, sums.levels / 8)
        del pairs, faces, strengths
        joined = merge_graph_consuming(graph, nearest, count, backend), merge_sums(sums, nearest, count)
        if count <= max_regions:
            return nearest, *joined
        new_region, graph, sums = merge_weakest_consuming(*joined, max_regions, backend)
        return new_region[nearest], graph, sums
    parents = agglomerate(
        pairs,
        faces,
        strengths,
        sums.voxels,
        sums.levels / 8,
        dissimilarity=contrast,
        size_exponent=0.33,
        num_remaining=max_regions,
    )
    del pairs, faces, strengths
    root = np.arange(len(parents))
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] != node:
            root[node] = root[parents[node]]
    # Leaves are numbered in scan order, so roots that are numbered by their first leaf are too.
    _, first, inverse = np.unique(root[: graph.num_regions], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    new_region = rank[inverse]
    count = len(first)
    return (
        new_region,
        merge_graph_consuming(graph, new_region, count, backend),
        merge_sums(sums, new_region, count),
    )
