"""Fewer regions: the weakest are joined until there are no more than trees can be grown over.

Reads:  a `RegionGraph` and its `RegionSums`.
Writes: who joins whom, int32 (R,), numbered in the order of the first leaf; graph and sums of what they make.
Bounds: a connected graph, so that any number can be reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend
from pipeline.hierarchies.agglomeration import agglomerate, join_nearest
from pipeline.hierarchies.region_graphs import RegionGraph, merge_graph
from pipeline.hierarchies.region_totals import RegionSums, merge_sums


def merge_weakest(
    graph: RegionGraph, sums: RegionSums, max_regions: int, backend: Backend
) -> tuple[NDArray[np.int32], RegionGraph, RegionSums]:
    """Who joins whom, small and alike first, until no more than `max_regions` are left; what they make.

    The graph given is empty afterwards (`merge_graph`).
    """
    pairs, faces, strengths = (
        np.asarray(backend.to_host(array)) for array in (graph.pairs, graph.faces, graph.sums[:, 0])
    )
    if graph.num_regions > 2 * max_regions:  # much quicker than pair by pair, and these are a few voxels each
        nearest, count = join_nearest(pairs, faces, strengths, sums.voxels, sums.levels / 8)
        del pairs, faces, strengths
        joined = merge_graph(graph, nearest, count, backend), merge_sums(sums, nearest, count)
        if count <= max_regions:
            return nearest, *joined
        new_region, graph, sums = merge_weakest(*joined, max_regions, backend)
        return new_region[nearest], graph, sums
    parents = agglomerate(
        pairs,
        faces,
        strengths,
        sums.voxels,
        sums.levels / 8,
        linkage="boundary_and_contrast",
        size_exponent=0.33,
        num_remaining=max_regions,
    )
    del pairs, faces, strengths
    root = np.arange(len(parents))
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] != node:
            root[node] = root[parents[node]]
    # Leaves are numbered in scan order, so their roots in order of first leaf are so too.
    _, first, inverse = np.unique(root[: graph.num_regions], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    new_region = rank[inverse]
    count = len(first)
    return (
        new_region,
        merge_graph(graph, new_region, count, backend),
        merge_sums(sums, new_region, count),
    )
