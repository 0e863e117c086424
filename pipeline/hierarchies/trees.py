"""Hierarchies over a partition of the voxels: trees whose nodes are nested regions.

    region graph --method of the tree--> parents --depth-first order--> leaf interval of each node

Reads:  `RegionGraph`, `RegionSums`.
Writes: `Hierarchy` values.
Bounds: at least two regions. The methods are in `pipeline.hierarchies.tree_methods`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.hierarchies.region_graphs import RegionGraph
from pipeline.hierarchies.region_totals import RegionSums
from pipeline.hierarchies.tree_methods import TREE_METHODS, TreeSpec


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """A rooted tree of regions. Its R leaves are the regions of a partition; it has M nodes."""

    source: str
    """Name of the tree."""
    partition: int
    """Index of the partition whose regions are the leaves."""
    num_leaves: int
    """Number of leaves R."""
    parents: NDArray[np.int64]
    """(M,) leaves first, children before parents; the last node is the root and its own parent."""
    start: NDArray[np.int64]
    """(M,) first leaf of each node, in depth-first order of the leaves."""
    stop: NDArray[np.int64]
    """(M,) one past the last leaf of each node."""
    level_sets: bool
    """Whether its regions are level sets of the image (above or below a threshold). Their outlines are
    exact."""

    @classmethod
    def of(
        cls,
        source: str,
        partition: int,
        num_leaves: int,
        parents: NDArray[np.int64],
        *,
        level_sets: bool = False,
    ) -> Hierarchy:
        """Return the hierarchy with these parents; computes the leaf interval of each node.

        Args:
            source: Name of the tree.
            partition: Index of its partition.
            num_leaves: Number of leaves R.
            parents: int64 (M,), leaves first, children before parents; the root last.
            level_sets: Whether the regions are level sets.
        """
        start, stop = _depth_first(np.ascontiguousarray(parents, dtype=np.int64), num_leaves)
        return cls(
            source=source,
            partition=partition,
            num_leaves=num_leaves,
            parents=parents,
            start=start,
            stop=stop,
            level_sets=level_sets,
        )

    def reduced(self, nodes: NDArray[np.int64]) -> tuple[Hierarchy, NDArray[np.int64]]:
        """Return the tree of some nodes only; leaves that no node separates become one leaf.

        Args:
            nodes: int64 (N,) ascending, without the root.

        Returns:
            The hierarchy with N + 1 leaves: leaf 0 has the voxels in none of the nodes, and `nodes[k]`
            becomes node N + 1 + k. And int64 (R,) the new leaf of each old leaf.
        """
        count = len(nodes) + 1
        inner = np.zeros(len(self.parents), np.int64)  # 1 + index in `nodes`; 0 for other nodes
        inner[nodes] = np.arange(1, count)
        nearest = _nearest_marked(self.parents, inner)
        parents = np.full(2 * count, 2 * count - 1, np.int64)
        parents[1:count] = np.arange(count, 2 * count - 1)
        outer = nearest[self.parents[nodes]]
        parents[count:-1] = np.where(outer > 0, count - 1 + outer, 2 * count - 1)
        tree = Hierarchy.of(self.source, self.partition, count, parents, level_sets=self.level_sets)
        return tree, nearest[: self.num_leaves]

    def sums(self, leaf_values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 (M, F) sums over each node of leaf values, int64 (R, F)."""
        return np.asarray(_node_sums(self.parents, np.ascontiguousarray(leaf_values)))

    def outline_sums(self, pairs: NDArray[np.int32], values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return sums over the outline of each node.

        Args:
            pairs: int32 (E, 2) touching leaves.
            values: int64 (E, F) values of the common boundary of each pair, such as its faces.

        Returns:
            int64 (M, F).
        """
        heads = _heavy_path_heads(self.parents, self.stop - self.start)
        return np.asarray(_outline_sums(self.parents, heads, self.num_leaves, pairs, values))

    def minima(self, leaf_values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return uint32 (M, F) minima over each node of leaf values, uint32 (R, F)."""
        return np.asarray(_node_minima(self.parents, np.ascontiguousarray(leaf_values)))


def grow(
    spec: TreeSpec,
    *,
    partition: int,
    graph: RegionGraph,
    sums: RegionSums,
    scale_column: int,
) -> Hierarchy:
    """Return the tree that a spec describes.

    Args:
        spec: Settings of the tree.
        partition: Index of the partition; kept in the result.
        graph: Region graph of the partition on the host: connected, at least two regions.
        sums: Sums of its regions.
        scale_column: Column of the graph's evidence at the spec's scale.
    """
    method = TREE_METHODS[spec.method]
    parents = method.parents(spec, graph, sums, scale_column)
    return Hierarchy.of(spec.name, partition, graph.num_regions, parents, level_sets=method.level_sets)


@numba.njit(cache=True, nogil=True)
def _depth_first(parents: NDArray[np.int64], num_leaves: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    count = len(parents)
    size = np.zeros(count, np.int64)
    size[:num_leaves] = 1
    for i in range(count - 1):
        size[parents[i]] += size[i]
    start = np.zeros(count, np.int64)
    taken = np.zeros(count, np.int64)
    for i in range(count - 2, -1, -1):
        parent = parents[i]
        start[i] = start[parent] + taken[parent]
        taken[parent] += size[i]
    return start, start + size


@numba.njit(cache=True, nogil=True)
def _nearest_marked(parents: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 (M,) the first value above 0 on each node's path to the root; 0 if there is none."""
    out = own.copy()
    for i in range(len(parents) - 2, -1, -1):
        if out[i] == 0:
            out[i] = out[parents[i]]
    return out


@numba.njit(cache=True, nogil=True)
def _heavy_path_heads(parents: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 (M,) the top node of each node's heavy path; a path goes down to the largest child.

    From any node to the root there are at most log2(R) paths, however deep the tree is.
    """
    count = len(parents)
    largest = np.full(count, -1, np.int64)
    for i in range(count - 1):
        rival = largest[parents[i]]
        if rival < 0 or sizes[i] > sizes[rival]:
            largest[parents[i]] = i
    heads = np.arange(count)
    for i in range(count - 2, -1, -1):
        if largest[parents[i]] == i:
            heads[i] = heads[parents[i]]
    return heads


@numba.njit(cache=True, nogil=True)
def _outline_sums(
    parents: NDArray[np.int64], heads: NDArray[np.int64], num_leaves: int, pairs: NDArray[np.int32],
    values: NDArray[np.int64],
) -> NDArray[np.int64]:  # fmt: skip
    """Return the same as `Hierarchy.outline_sums`.

    A pair's value is added to both leaves and subtracted twice at their lowest common ancestor; then children
    are added to their parents.
    """
    width = values.shape[1]
    out = np.zeros((len(parents), width), np.int64)
    for e in range(len(pairs)):
        a, b = np.int64(pairs[e, 0]), np.int64(pairs[e, 1])
        for k in range(width):
            out[a, k] += values[e, k]
            out[b, k] += values[e, k]
        while heads[a] != heads[b]:  # climb from the path with the lower head
            if heads[a] < heads[b]:
                a = parents[heads[a]]
            else:
                b = parents[heads[b]]
        both = max(a, b)
        for k in range(width):
            out[both, k] -= 2 * values[e, k]
    for i in range(len(parents) - 1):
        for k in range(width):
            out[parents[i], k] += out[i, k]
    return out


@numba.njit(cache=True, nogil=True)
def _node_sums(parents: NDArray[np.int64], leaf_values: NDArray[np.int64]) -> NDArray[np.int64]:
    num_leaves, width = leaf_values.shape
    out = np.zeros((len(parents), width), np.int64)
    out[:num_leaves] = leaf_values
    for i in range(len(parents) - 1):
        for k in range(width):
            out[parents[i], k] += out[i, k]
    return out


@numba.njit(cache=True, nogil=True)
def _node_minima(parents: NDArray[np.int64], leaf_values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    num_leaves, width = leaf_values.shape
    out = np.full((len(parents), width), np.uint32(0xFFFFFFFF), np.uint32)
    out[:num_leaves] = leaf_values
    for i in range(len(parents) - 1):
        for k in range(width):
            out[parents[i], k] = min(out[parents[i], k], out[i, k])
    return out
