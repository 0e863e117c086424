"""Small volumes and region graphs for the tests of proposals: random ones, with plateaus and ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.compute.backend import get_backend
from pipeline.hierarchies.region_graphs import RegionGraph, region_graph
from pipeline.hierarchies.region_totals import RegionSums, region_sums
from pipeline.hierarchies.supervoxels import basins
from pipeline.hierarchies.trees import Hierarchy

CPU = get_backend("cpu", num_threads=1)
NUMPY = get_backend("numpy", num_threads=1)

ON_MANY = settings(max_examples=60)
"""The first example compiles, so there is no deadline."""


def volumes(*, top: int = 3, low: int = 0, max_side: int = 6, dtype: Any = np.int32) -> Any:
    """A strategy: integer volumes (z, y, x) of few values, so with plateaus and ties."""
    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=max_side)
    return hnp.arrays(dtype, shapes, elements=st.integers(low, top))


def spacings() -> Any:
    """A strategy: voxel sizes in mm, up to five times as long one way as the other."""
    return st.tuples(*[st.sampled_from([0.7, 1.0, 1.5, 3.3])] * 3)


def random_evidence(seed: int, shape: tuple[int, int, int] = (8, 9, 10), count: int = 2) -> NDArray[np.int32]:
    """(count, z, y, x) of noise."""
    return np.random.default_rng(seed).integers(0, 1000, (count, *shape)).astype(np.int32)


def random_regions(
    seed: int, shape: tuple[int, int, int] = (8, 9, 10)
) -> tuple[NDArray[np.int32], RegionGraph, RegionSums]:
    """Basins of noise, with their graph over two evidence volumes and their sums over two windows."""
    evidence = random_evidence(seed, shape)
    labels, count = basins(evidence[0], CPU)
    windows = [volume * 8 for volume in random_evidence(seed + 1000, shape)]
    return labels, region_graph(labels, count, evidence, CPU), region_sums(labels, count, windows, CPU)


def leaf_sets(hierarchy: Hierarchy) -> list[set[int]]:
    """The leaves below each node, climbed from each leaf by the parents."""
    below: list[set[int]] = [set() for _ in hierarchy.parents]
    for leaf in range(hierarchy.num_leaves):
        node = leaf
        below[node].add(leaf)
        while hierarchy.parents[node] != node:
            node = int(hierarchy.parents[node])
            below[node].add(leaf)
    return below


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())
