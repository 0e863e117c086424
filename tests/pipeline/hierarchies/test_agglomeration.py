from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from pipeline.hierarchies.agglomeration import Dissimilarity, agglomerate, join_flat, join_nearest
from pipeline.hierarchies.tree_methods import (
    boundary,
    contact,
    contrast,
    neck,
    piecewise,
    roundness,
    ward,
)
from tests.pipeline.drawn_regions import ON_MANY, random_regions

CHAIN = [(0, 1), (1, 2), (2, 3)]


def merged(
    pairs: Sequence[tuple[int, int]],
    strengths: Sequence[float],
    *,
    faces: Sequence[int] | None = None,
    voxels: Sequence[int] | None = None,
    means: Sequence[float] | None = None,
    dissimilarity: Dissimilarity = boundary,
    **options: Any,
) -> list[int]:
    """Parents of a graph drawn by hand; a strength is the mean over a pair's faces."""
    count = max(max(pair) for pair in pairs) + 1
    num_faces = np.array(faces or [1] * len(pairs))
    sizes = np.array(voxels or [1] * count)
    features = (np.array(means or [0.0] * count) * sizes)[:, None]
    sums = (np.array(strengths) * num_faces).astype(np.int64)
    drawn = np.array(pairs, np.int32)
    return agglomerate(
        drawn, num_faces, sums, sizes, features, dissimilarity=dissimilarity, **options
    ).tolist()


def naive_average_linkage(
    pairs: NDArray[np.int32], faces: NDArray[np.int64], sums: NDArray[np.int64], count: int
) -> list[set[frozenset[int]]]:
    """The pair of regions, as sets of leaves, joined in each step."""
    clusters = [frozenset([r]) for r in range(count)]
    steps = []
    while True:
        best = None
        for a in clusters:
            for b in clusters:
                between = [
                    e for e, (p, q) in enumerate(pairs.tolist()) if (p in a and q in b) or (p in b and q in a)
                ]
                if a is not b and between:
                    mean = sums[between].sum() / faces[between].sum()
                    if best is None or mean < best[0]:
                        best = (mean, a, b)
        if best is None:
            return steps
        _, a, b = best
        steps.append({a, b})
        clusters = [c for c in clusters if c not in (a, b)] + [a | b]


def steps_of(parents: NDArray[np.int64], count: int) -> list[set[frozenset[int]]]:
    """The children of each node, as sets of leaves, in the order in which the nodes were made."""
    leaves: list[frozenset[int]] = [frozenset([i]) if i < count else frozenset() for i in range(len(parents))]
    steps = []
    for node in range(len(parents)):
        children = [i for i in range(node) if parents[i] == node]
        if children:
            leaves[node] = frozenset().union(*(leaves[i] for i in children))
            steps.append({leaves[i] for i in children})
    return steps


def test_the_weakest_boundary_goes_first() -> None:
    assert merged(CHAIN, [5, 1, 3]) == [6, 4, 4, 5, 5, 6, 6]


def test_equals_go_in_the_order_of_the_pairs() -> None:
    assert merged(CHAIN, [1, 1, 1]) == [4, 4, 5, 6, 5, 6, 6]
    assert merged(CHAIN[::-1], [1, 1, 1]) == [6, 5, 4, 4, 5, 6, 6]


@pytest.mark.parametrize(("last", "parents"), [(6, [4, 4, 5, 6, 5, 6, 6]), (5, [4, 4, 5, 5, 6, 6, 6])])
def test_a_boundary_of_two_pairs_is_averaged_over_all_their_faces(last: int, parents: list[int]) -> None:
    # 0 and 1 join first; their boundary with 2 then has a mean of (1 x 9 + 3 x 4) / 4 = 5.25.
    pairs = [(0, 1), (0, 2), (1, 2), (2, 3)]
    assert merged(pairs, [1, 9, 4, last], faces=[1, 1, 3, 1]) == parents


def test_contrast_parts_what_a_boundary_would_join() -> None:
    means = [0.0, 50.0, 51.0, 90.0]
    assert merged(CHAIN, [1, 2, 3], means=means)[0] == 4
    parents = merged(CHAIN, [1, 2, 3], means=means, dissimilarity=contrast)
    assert parents[1] == parents[2] == 4


def test_ward_joins_a_small_region_before_two_large_ones_that_are_more_alike() -> None:
    drawn = {"means": [0.0, 2.0, 5.0], "voxels": [100, 100, 1]}
    alike = merged(CHAIN[:2], [0, 0], dissimilarity=contrast, **drawn)
    assert alike == [3, 3, 4, 4, 4]
    assert merged(CHAIN[:2], [0, 0], dissimilarity=ward, **drawn) == [4, 3, 3, 4, 4]  # 8.9 against 200


def test_with_a_size_exponent_small_regions_go_first() -> None:
    drawn = {"voxels": [100, 100, 1, 1]}
    assert merged(CHAIN, [2, 9, 3], **drawn)[:2] == [4, 4]
    assert merged(CHAIN, [2, 9, 3], size_exponent=0.5, **drawn)[2:4] == [4, 4]


def test_it_stops_when_as_many_regions_are_left_as_asked_for() -> None:
    assert merged(CHAIN, [5, 1, 3], num_remaining=3) == [0, 4, 4, 3, 4]
    assert merged(CHAIN, [5, 1, 3], num_remaining=4) == [0, 1, 2, 3]


def test_parts_that_do_not_touch_are_joined_under_one_root() -> None:
    assert merged([(0, 1), (2, 3)], [2, 1]) == [5, 5, 4, 4, 6, 6, 6]


def test_arguments_are_left_as_they_were() -> None:
    _, graph, sums = random_regions(0)
    features = sums.levels.astype(float)
    before = features.copy(), graph.faces.copy(), graph.sums.copy(), sums.voxels.copy()
    agglomerate(graph.pairs, graph.faces, graph.sums[:, 0], sums.voxels, features, dissimilarity=ward)
    for old, new in zip(before, (features, graph.faces, graph.sums, sums.voxels), strict=True):
        np.testing.assert_array_equal(old, new)


@ON_MANY
@given(st.integers(0, 10_000))
def test_average_linkage_merges_as_the_naive_search_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 8))
    pairs = np.array([(a, b) for a in range(count) for b in range(a + 1, count)], np.int32)
    pairs = pairs[rng.random(len(pairs)) < 0.7]
    faces = rng.integers(1, 9, len(pairs))
    sums = faces * rng.integers(1, 10**9, len(pairs))  # no ties
    ones = np.ones(count, np.int64)
    parents = agglomerate(pairs, faces, sums, ones, ones[:, None].astype(float), dissimilarity=boundary)
    expected = naive_average_linkage(pairs, faces, sums, count)
    assert steps_of(parents, count)[: len(expected)] == expected


def test_a_neck_keeps_apart_what_a_wide_contact_joins() -> None:
    # The same boundary evidence: 1 face of two bodies of 1,000 voxels, 100 faces of the next two.
    drawn: dict[str, Any] = {"faces": [1, 100], "voxels": [1000, 1000, 1000]}
    assert merged(CHAIN[:2], [5, 5], **drawn) == [3, 3, 4, 4, 4]
    assert merged(CHAIN[:2], [5, 5], dissimilarity=neck, **drawn) == [4, 3, 3, 4, 4]


def test_a_region_that_lies_in_the_dent_of_another_joins_it_first() -> None:
    # Of the surface of region 0 a tenth touches region 1; of that of region 3 all touches region 2.
    pairs = [(0, 1), (0, 4), (1, 2), (2, 3)]
    drawn: dict[str, Any] = {"faces": [10, 90, 100, 50], "voxels": [1000] * 5}
    assert merged(pairs, [5, 9, 9, 6], **drawn)[:2] == [5, 5]
    assert merged(pairs, [5, 9, 9, 6], dissimilarity=contact, **drawn)[2:4] == [5, 5]


def test_what_makes_a_round_body_joins_first() -> None:
    # Regions 1 and 2 together have 40 faces outwards, 0 and 1 have 120, at nearly the same evidence.
    pairs = [(0, 1), (1, 2), (0, 3)]
    drawn: dict[str, Any] = {"faces": [20, 100, 100], "voxels": [1000] * 4}
    assert merged(pairs, [5, 6, 9], **drawn)[:2] == [4, 4]
    assert merged(pairs, [5, 6, 9], dissimilarity=roundness, **drawn)[1:3] == [4, 4]


def test_piecewise_counts_the_error_for_each_face() -> None:
    # A step of 2 over 10 faces costs less a face than a step of 1 over 1.
    drawn: dict[str, Any] = {"means": [0, 2, 3], "faces": [10, 1], "voxels": [8, 8, 8]}
    assert merged(CHAIN[:2], [0, 0], dissimilarity=ward, **drawn) == [4, 3, 3, 4, 4]
    assert merged(CHAIN[:2], [0, 0], dissimilarity=piecewise, **drawn) == [3, 3, 4, 4, 4]


@pytest.mark.parametrize("dissimilarity", [boundary, contrast, ward, neck, contact, roundness, piecewise])
def test_a_tree_over_thousands_of_regions_has_one_root_and_two_children_a_node(
    dissimilarity: Dissimilarity,
) -> None:
    _, graph, sums = random_regions(3, (24, 24, 24))
    levels = sums.levels / 8
    parents = agglomerate(
        graph.pairs, graph.faces, graph.sums[:, 0], sums.voxels, levels, dissimilarity=dissimilarity
    )
    assert len(parents) == 2 * graph.num_regions - 1
    assert (parents[:-1] > np.arange(len(parents) - 1)).all()
    assert parents[-1] == len(parents) - 1
    assert (np.bincount(parents[:-1])[graph.num_regions :] == 2).all()


def test_flat_joins_over_passes_without_evidence_only() -> None:
    joined, count = join_flat(np.array(CHAIN, np.int32), np.array([0, 7, 0], np.int32), 5)
    assert joined.tolist() == [0, 0, 1, 1, 2]
    assert count == 3
    assert joined.dtype == np.int32


def test_flat_follows_a_chain_of_plateaus_whatever_the_order_of_its_pairs() -> None:
    pairs = np.array([(3, 4), (0, 4), (1, 2), (0, 2)], np.int32)
    joined, count = join_flat(pairs, np.zeros(4, np.int32), 5)
    assert joined.tolist() == [0, 0, 0, 0, 0]
    assert count == 1


@pytest.mark.parametrize(
    ("strengths", "means", "joined"),
    [
        ([5, 1, 3], [0, 0, 0, 0], [0, 0, 0, 0]),  # 0 and 3 have one neighbour each
        ([1, 5, 1], [0, 0, 0, 0], [0, 0, 1, 1]),
        ([2, 2, 1], [0, 0, 0, 0], [0, 0, 1, 1]),  # 1 has two as near: the first pair wins
        ([0, 9, 0], [0, 40, 40, 0], [0, 0, 0, 0]),  # contrast counts too: 1 and 2 are nearest
    ],
)
def test_every_region_joins_its_nearest_neighbour(
    strengths: list[int], means: list[float], joined: list[int]
) -> None:
    ones = np.ones(4, np.int64)
    features = np.array(means, float)[:, None]
    found, count = join_nearest(np.array(CHAIN, np.int32), ones[:3], np.array(strengths), ones, features)
    assert found.tolist() == joined
    assert count == max(joined) + 1


@ON_MANY
@given(st.integers(0, 1000))
def test_after_a_round_at_most_half_the_regions_are_left(seed: int) -> None:
    _, graph, sums = random_regions(seed)
    joined, count = join_nearest(graph.pairs, graph.faces, graph.sums[:, 0], sums.voxels, sums.levels / 8)
    assert np.bincount(joined, minlength=count).min() >= 2
    firsts = [int(np.argmax(joined == region)) for region in range(count)]
    assert firsts == sorted(firsts)
