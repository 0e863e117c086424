from __future__ import annotations

import numpy as np
from hypothesis import given
from numpy.typing import NDArray

from pipeline.hierarchies.supervoxels import basins, join_lowest_pass_in_place, number_in_scan_order
from tests.pipeline.drawn_regions import CPU, NUMPY, ON_MANY, volumes

_FACES = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)]


def walk_down(evidence: NDArray[np.int32], start: tuple[int, ...]) -> tuple[int, ...]:
    """Where a drop of water comes to rest: always on to the lowest neighbour, the first among equals."""
    here = start
    while True:
        near = [here, *(tuple(np.add(here, step)) for step in _FACES)]
        near = [p for p in near if all(0 <= i < n for i, n in zip(p, evidence.shape, strict=True))]
        lowest = min(near, key=lambda p: (evidence[p], p))
        if lowest == here:
            return here
        here = lowest


def first_places(labels: NDArray[np.int32]) -> list[int]:
    return [int(np.flatnonzero(labels.ravel() == label)[0]) for label in range(labels.max() + 1)]


@ON_MANY
@given(volumes())
def test_numba_finds_the_basins_of_numpy(evidence: NDArray[np.int32]) -> None:
    (ours, num_ours), (theirs, num_theirs) = basins(evidence, CPU), basins(evidence, NUMPY)
    np.testing.assert_array_equal(ours, theirs, strict=True)
    assert num_ours == num_theirs == ours.max() + 1


@ON_MANY
@given(volumes(max_side=5))
def test_two_voxels_share_a_basin_when_water_from_them_comes_to_rest_together(
    evidence: NDArray[np.int32],
) -> None:
    rests = [walk_down(evidence, place) for place in np.ndindex(evidence.shape)]
    numbers = {rest: number for number, rest in enumerate(dict.fromkeys(rests))}
    labels, count = basins(evidence, CPU)
    assert labels.ravel().tolist() == [numbers[rest] for rest in rests]
    assert count == len(numbers)


@ON_MANY
@given(volumes(low=0, top=10))
def test_numbers_follow_the_scan_and_tell_the_same_voxels_apart(labels: NDArray[np.int32]) -> None:
    numbered, count = number_in_scan_order(labels, NUMPY)
    assert first_places(numbered) == sorted(first_places(numbered))
    assert count == len(np.unique(labels)) == len({*zip(labels.ravel(), numbered.ravel(), strict=True)})


def test_a_ridge_parts_two_basins_and_falls_to_the_first() -> None:
    evidence = np.array([3, 1, 2, 9, 2, 1, 3], np.int32).reshape(1, 1, 7)
    assert basins(evidence, CPU)[0].ravel().tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_plateau_drains_to_its_first_voxel() -> None:
    labels, count = basins(np.zeros((3, 4, 5), np.int32), CPU)
    assert count == 1
    assert not labels.any()


@ON_MANY
@given(volumes())
def test_numba_joins_over_the_lowest_pass_as_numpy_does(evidence: NDArray[np.int32]) -> None:
    labels, count = basins(evidence, CPU)
    theirs = labels.copy()
    num_ours = join_lowest_pass_in_place(labels, count, evidence, CPU)
    num_theirs = join_lowest_pass_in_place(theirs, count, evidence, NUMPY)
    np.testing.assert_array_equal(labels, theirs, strict=True)
    assert num_ours == num_theirs == labels.max() + 1


def test_a_basin_overflows_over_its_lowest_side_and_one_that_stands_alone_stays() -> None:
    evidence = np.array([[[0, 9, 1, 3, 0, 8, 2]]], np.int32)
    labels, count = basins(evidence, CPU)
    np.testing.assert_array_equal(labels.ravel(), [0, 0, 1, 2, 2, 2, 3])
    num_joined = join_lowest_pass_in_place(labels, count, evidence, CPU)
    # Over 3 the second runs into the third, and over 8 the fourth too; the first has only the 9.
    np.testing.assert_array_equal(labels.ravel(), 0)
    assert num_joined == 1
    lone = np.zeros((2, 2, 2), np.int32)
    assert join_lowest_pass_in_place(lone, 1, np.ones((2, 2, 2), np.int32), CPU) == 1
    assert lone.max() == 0


def test_only_pairs_that_share_a_lowest_pass_are_joined() -> None:
    evidence = np.array([[[0, 2, 0, 9, 0, 2, 0]]], np.int32)
    labels, count = basins(evidence, CPU)
    num_joined = join_lowest_pass_in_place(labels, count, evidence, CPU)
    assert count == 4
    assert num_joined == 2
    assert labels[0, 0, 0] == labels[0, 0, 2] != labels[0, 0, 4] == labels[0, 0, 6]
