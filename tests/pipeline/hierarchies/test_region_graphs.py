from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from pipeline.compute.backend import Backend
from pipeline.hierarchies.region_graphs import RegionGraph, merge_graph_consuming, region_graph
from pipeline.hierarchies.region_totals import RegionSums, merge_sums, region_sums
from pipeline.hierarchies.supervoxels import number_in_scan_order
from tests.pipeline.drawn_regions import CPU, NUMPY, ON_MANY, random_evidence, random_regions, volumes


def assert_same(ours: RegionGraph | RegionSums, theirs: RegionGraph | RegionSums) -> None:
    for field in dataclasses.fields(ours):
        np.testing.assert_array_equal(
            getattr(ours, field.name), getattr(theirs, field.name), field.name, strict=True
        )


def graph_of(labels: NDArray[np.int32], backend: Backend = CPU) -> RegionGraph:
    return region_graph(labels, int(labels.max()) + 1, random_evidence(7, labels.shape), backend)


def sums_of(labels: NDArray[np.int32], backend: Backend = CPU) -> RegionSums:
    return region_sums(labels, int(labels.max()) + 1, list(random_evidence(8, labels.shape)), backend)


def graph_by_dictionary(labels: NDArray[np.int32], evidence: NDArray[np.int32]) -> dict[Any, list[Any]]:
    """The evidence on each face of each pair."""
    found = defaultdict(list)
    for place in np.ndindex(labels.shape):
        for axis in range(3):
            other = tuple(p + (d == axis) for d, p in enumerate(place))
            if other[axis] < labels.shape[axis] and labels[place] != labels[other]:
                pair = tuple(sorted((int(labels[place]), int(labels[other]))))
                found[pair].append(np.maximum(evidence[:, *place], evidence[:, *other]))
    return found


@ON_MANY
@given(volumes(top=5))
def test_numba_and_numpy_give_the_same_graph_and_sums(raw: NDArray[np.int32]) -> None:
    labels, _ = number_in_scan_order(raw, NUMPY)
    assert_same(graph_of(labels), graph_of(labels, NUMPY))
    assert_same(sums_of(labels), sums_of(labels, NUMPY))


@ON_MANY
@given(volumes(top=5, max_side=5))
def test_the_graph_counts_every_face_between_two_regions(raw: NDArray[np.int32]) -> None:
    labels, _ = number_in_scan_order(raw, NUMPY)
    graph, expected = graph_of(labels), graph_by_dictionary(labels, random_evidence(7, labels.shape))
    assert [tuple(pair) for pair in graph.pairs.tolist()] == sorted(expected)
    for e, pair in enumerate(sorted(expected)):
        assert graph.faces[e] == len(expected[pair])
        np.testing.assert_array_equal(graph.sums[e], np.sum(expected[pair], axis=0))
        np.testing.assert_array_equal(graph.lows[e], np.min(expected[pair], axis=0))


@ON_MANY
@given(volumes(top=5, max_side=5))
def test_sums_are_those_over_the_voxels_of_each_region(raw: NDArray[np.int32]) -> None:
    labels, count = number_in_scan_order(raw, NUMPY)
    sums, windows = sums_of(labels), random_evidence(8, labels.shape)
    for region in range(count):
        mask = labels == region
        assert sums.voxels[region] == mask.sum()
        np.testing.assert_array_equal(sums.levels[region], windows[:, mask].sum(axis=1))
        np.testing.assert_array_equal(sums.coordinates[region], np.argwhere(mask).sum(axis=0))


@ON_MANY
@given(st.integers(0, 100), st.integers(1, 30))
def test_joining_regions_in_the_graph_is_joining_them_in_the_volume(seed: int, most: int) -> None:
    labels, graph, sums = random_regions(seed, (5, 6, 7))
    raw = np.random.default_rng(seed).integers(0, most, graph.num_regions)
    joined, count = number_in_scan_order(raw, NUMPY)
    windows = [volume * 8 for volume in random_evidence(seed + 1000, labels.shape)]
    evidence = random_evidence(seed, labels.shape)
    assert_same(
        merge_graph_consuming(graph, joined, count), region_graph(joined[labels], count, evidence, CPU)
    )
    assert_same(merge_sums(sums, joined, count), region_sums(joined[labels], count, windows, CPU))


def test_a_single_region_has_no_pairs() -> None:
    for backend in (CPU, NUMPY):
        graph = graph_of(np.zeros((2, 3, 4), np.int32), backend)
        assert graph.pairs.shape == (0, 2)
        assert graph.sums.shape == graph.lows.shape == (0, 2)


def test_more_pairs_than_the_first_table_holds_are_all_found() -> None:
    labels = np.arange(20**3 * 2, dtype=np.int32).reshape(
        20, 20, 40
    )  # 46,000 pairs; the table begins at 65,536
    assert_same(graph_of(labels), graph_of(labels, NUMPY))
