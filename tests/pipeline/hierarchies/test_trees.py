from __future__ import annotations

import numpy as np
import pytest

from pipeline.hierarchies.region_graphs import region_graph
from pipeline.hierarchies.region_totals import region_sums
from pipeline.hierarchies.tree_methods import TREE_METHODS, TreeSpec
from pipeline.hierarchies.trees import Hierarchy, grow
from pipeline.proposals.config import DEFAULT_TREES
from tests.pipeline.drawn_regions import CPU, leaf_sets, random_evidence, random_regions

NAMES = {name.method: name.name for name in (TreeSpec(partition="fine", method=m) for m in TREE_METHODS)}

#          6
#        /   \
#       4     5
#      / \   / \
#     0   3 1   2
DRAWN = Hierarchy.of("drawn", 0, 4, np.array([4, 5, 5, 4, 6, 6, 6]))


def grown(method: str, seed: int = 0) -> Hierarchy:
    _, graph, sums = random_regions(seed)
    spec = TreeSpec.parse(NAMES[method])
    return grow(spec, partition=2, graph=graph, sums=sums, scale_column=1)


def test_a_drawn_tree_is_laid_out_depth_first() -> None:
    intervals = list(zip(DRAWN.start.tolist(), DRAWN.stop.tolist(), strict=True))
    assert intervals == [(3, 4), (1, 2), (0, 1), (2, 3), (2, 4), (0, 2), (0, 4)]  # the last child comes first


@pytest.mark.parametrize("method", TREE_METHODS)
def test_the_interval_of_a_node_is_the_set_of_its_leaves(method: str) -> None:
    tree = grown(method)
    starts = tree.start[: tree.num_leaves]
    assert sorted(starts.tolist()) == list(range(tree.num_leaves))
    leaf_at = np.argsort(starts)
    for node, below in enumerate(leaf_sets(tree)):
        assert set(leaf_at[tree.start[node] : tree.stop[node]].tolist()) == below


@pytest.mark.parametrize("method", TREE_METHODS)
def test_a_tree_has_one_root_over_all_leaves_and_parents_after_their_children(method: str) -> None:
    tree = grown(method)
    count = len(tree.parents)
    assert (tree.parents[:-1] > np.arange(count - 1)).all()
    assert tree.parents[-1] == count - 1
    assert (tree.start[-1], tree.stop[-1]) == (0, tree.num_leaves)
    assert (tree.source, tree.partition) == (NAMES[method], 2)


@pytest.mark.parametrize("method", TREE_METHODS)
def test_the_same_regions_grow_the_same_tree(method: str) -> None:
    np.testing.assert_array_equal(grown(method).parents, grown(method).parents)


def test_sums_and_minima_of_a_node_are_those_of_its_leaves() -> None:
    tree = grown("contrast")
    values = np.random.default_rng(0).integers(0, 2**32, (tree.num_leaves, 3))
    sums, minima = tree.sums(values), tree.minima(values.astype(np.uint32))
    for node, below in enumerate(leaf_sets(tree)):
        np.testing.assert_array_equal(sums[node], values[list(below)].sum(axis=0))
        np.testing.assert_array_equal(minima[node], values[list(below)].min(axis=0))


@pytest.mark.parametrize("method", ["contrast", "dynamics", "bright"])
def test_the_outline_of_a_node_is_cut_by_the_pairs_that_it_has_one_leaf_of(method: str) -> None:
    tree = grown(method)
    _, graph, _ = random_regions(0)
    found = tree.outline_sums(graph.pairs, graph.sums)
    for node, below in enumerate(leaf_sets(tree)):
        cut = np.isin(graph.pairs, list(below)).sum(axis=1) == 1
        np.testing.assert_array_equal(found[node], graph.sums[cut].sum(axis=0))


@pytest.mark.parametrize(
    ("method", "islands"), [("bright", [{1}, {3, 4}, {4}]), ("dark", [{0}, {2}, {5, 6}])]
)
def test_component_trees_have_the_peaks_or_the_valleys(method: str, islands: list[set[int]]) -> None:
    labels = np.arange(7, dtype=np.int32).reshape(1, 1, 7)
    levels = (np.array([100, 900, 200, 600, 800, 300, 300]) * 8).astype(np.int32).reshape(1, 1, 7)
    graph = region_graph(labels, 7, random_evidence(0, (1, 1, 7)), CPU)
    sums = region_sums(labels, 7, [levels], CPU)
    spec = TreeSpec(partition="fine", method=method)
    tree = grow(spec, partition=0, graph=graph, sums=sums, scale_column=0)
    found = leaf_sets(tree)
    for island in islands:
        assert island in found


def test_compact_trees_keep_together_what_lies_together() -> None:
    labels = np.arange(40, dtype=np.int32).reshape(1, 1, 40)
    levels = np.random.default_rng(0).integers(0, 8000, labels.shape).astype(np.int32)
    graph, sums = (
        region_graph(labels, 40, np.ones((1, 1, 1, 40), np.int32), CPU),
        region_sums(labels, 40, [levels], CPU),
    )
    longest = []
    for compactness in (0.01, 100.0):
        spec = TreeSpec(partition="fine", method="compact", compactness=compactness)
        tree = grow(spec, partition=0, graph=graph, sums=sums, scale_column=0)
        children = [
            leaf_sets(tree)[node] for node in np.flatnonzero(tree.parents[:-1] == len(tree.parents) - 1)
        ]
        longest.append(max(len(child) for child in children))
    assert longest[1] < 30  # where place counts for most, the last two parts are much alike in length
    assert longest[1] < longest[0]


@pytest.mark.parametrize("name", DEFAULT_TREES)
def test_a_name_reads_back_as_the_tree_it_names(name: str) -> None:
    assert TreeSpec.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fine-contrast", "did you mean 'fine-contrast-0.7mm'"),
        ("fine-compact-0.7mm", "did you mean 'fine-compact'"),
        ("coarse-bright", "did you mean 'coarse-bright-window0'"),
        ("fine-contrast-0.70mm", "did you mean 'fine-contrast-0.7mm'"),
        ("supervoxels-contrast-0.7mm", "such as fine-contrast-0.7mm"),
        ("fine-average-0.7mm", "such as fine-contrast-0.7mm"),
        ("", "such as fine-contrast-0.7mm"),
    ],
)
def test_a_wrong_name_is_answered_with_a_right_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="no tree is called") as caught:
        TreeSpec.parse(name)
    assert hint in str(caught.value)


def test_a_method_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no method is called 'average'; there are boundary, contrast"):
        TreeSpec(partition="fine", method="average")


def test_a_scale_that_is_no_number_is_no_name() -> None:
    with pytest.raises(ValueError, match="no tree is called"):
        TreeSpec.parse("fine-contrast-1.2.3mm")


@pytest.mark.parametrize("method", TREE_METHODS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_reduced_tree_has_the_same_regions_over_no_more_leaves_than_they_need(
    method: str, share: float
) -> None:
    tree = grown(method)
    nodes = np.flatnonzero(np.random.default_rng(0).random(len(tree.parents) - 1) < share)
    smaller, leaf = tree.reduced(nodes)
    assert smaller.num_leaves == len(nodes) + 1
    before, after = leaf_sets(tree), leaf_sets(smaller)
    for k, node in enumerate(nodes.tolist()):
        inside = after[smaller.num_leaves + k]
        assert {i for i in range(tree.num_leaves) if int(leaf[i]) in inside} == before[node]
