from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.compute.backend import Backend
from pipeline.hierarchies.components import ComponentTree, component_tree, connected_components
from pipeline.hierarchies.trees import Hierarchy
from tests.pipeline.drawn_regions import CPU, NUMPY, ON_MANY, leaf_sets, volumes

Side = Literal["bright", "dark"]


def tree_of(
    levels: NDArray[np.int32],
    *,
    thresholds: tuple[int, ...] = (0, 1, 2, 3),
    side: Side = "bright",
    limits: tuple[int, int] = (1, 10**6),
    backend: Backend = CPU,
) -> ComponentTree:
    return component_tree(
        np.asarray(levels, np.int32),
        np.array(thresholds),
        side=side,
        min_voxels=limits[0],
        max_voxels=limits[1],
        backend=backend,
    )


def masks_of(tree: ComponentTree) -> set[bytes]:
    """The voxels of every component, as the hierarchy over the zones has them."""
    count = len(tree.inside)
    hierarchy = Hierarchy.of("components", 0, count, tree.parents())
    below = leaf_sets(hierarchy)
    return {np.isin(tree.zones, list(below[2 * count - 1 - number])).tobytes() for number in range(1, count)}


def components_by_scipy(
    levels: NDArray[np.int32], thresholds: tuple[int, ...], side: Side, limits: tuple[int, int]
) -> set[bytes]:
    found = set()
    for threshold in thresholds:
        labels, count = ndimage.label(levels > threshold if side == "bright" else levels <= threshold)
        for label in range(1, count + 1):
            if limits[0] <= (labels == label).sum() <= limits[1]:
                found.add((labels == label).tobytes())
    return found


@ON_MANY
@given(volumes(top=1))
def test_components_are_scipys_and_the_same_on_both_backends(mask: NDArray[np.int32]) -> None:
    (ours, count), (theirs, num_theirs) = (connected_components(mask > 0, b) for b in (CPU, NUMPY))
    np.testing.assert_array_equal(ours, theirs, strict=True)
    expected, num_expected = ndimage.label(mask > 0)
    assert count == num_theirs == num_expected
    np.testing.assert_array_equal(ours, expected)  # SciPy numbers in scan order too


@ON_MANY
@given(volumes(top=4), st.sampled_from(["bright", "dark"]), st.sampled_from([(1, 10**6), (3, 20)]))
def test_a_tree_holds_every_component_of_every_threshold_within_the_limits(
    levels: NDArray[np.int32], side: Side, limits: tuple[int, int]
) -> None:
    tree = tree_of(levels, side=side, limits=limits)
    whole = np.ones(levels.shape, bool).tobytes()  # the root has all voxels, so this one is no component
    expected = components_by_scipy(levels, (0, 1, 2, 3), side, limits) - {whole}
    assert masks_of(tree) - {whole} == expected
    np.testing.assert_array_equal(tree.zones, tree_of(levels, side=side, limits=limits, backend=NUMPY).zones)


def test_a_component_that_the_next_threshold_leaves_as_it_was_is_listed_once() -> None:
    levels = np.array([0, 3, 3, 0, 3, 1, 0]).reshape(1, 1, 7)
    tree = tree_of(levels)
    assert tree.zones.ravel().tolist() == [0, 1, 1, 0, 3, 2, 0]
    assert tree.inside.tolist() == [0, 0, 0, 2]


def test_nothing_beyond_a_threshold_is_a_tree_of_the_background() -> None:
    tree = tree_of(np.zeros((2, 3, 4)))
    assert tree.inside.tolist() == [0]
    assert not tree.zones.any()


@pytest.mark.parametrize("side", ["bright", "dark"])
def test_corners_do_not_connect(side: Side) -> None:
    levels = np.zeros((2, 2, 2), np.int32)
    levels[0, 0, 0] = levels[1, 1, 1] = 4
    levels = levels if side == "bright" else 4 - levels
    assert len(tree_of(levels, side=side, thresholds=(0,)).inside) == 3
