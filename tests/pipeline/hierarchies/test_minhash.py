from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.hierarchies.minhash import NUM_HASHES, leaf_sketches, similar_pairs
from tests.pipeline.drawn_regions import iou

SHAPE = (16, 16, 16)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
VOXEL_SKETCHES = leaf_sketches(VOXELS, VOXELS.size)


def boxes(count: int, seed: int = 0, size: int = 12) -> list[NDArray[np.bool_]]:
    """Masks of boxes that mostly overlap."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        low = rng.integers(0, 5, 3)
        mask = np.zeros(SHAPE, bool)
        mask[tuple(slice(a, a + n) for a, n in zip(low, rng.integers(size - 4, size, 3), strict=True))] = True
        masks.append(mask)
    return masks


def sketches_of(masks: list[NDArray[np.bool_]]) -> NDArray[np.uint32]:
    return np.stack([VOXEL_SKETCHES[mask.ravel()].min(axis=0) for mask in masks])


def volumes_of(masks: list[NDArray[np.bool_]]) -> NDArray[np.int64]:
    return np.array([mask.sum() for mask in masks])


def test_the_share_of_places_that_agree_estimates_the_iou() -> None:
    masks = boxes(60)
    sketches = sketches_of(masks)
    pairs = [(a, b) for a in range(60) for b in range(a)]
    exact = np.array([iou(masks[a], masks[b]) for a, b in pairs])
    estimated = np.array([(sketches[a] == sketches[b]).mean() for a, b in pairs])
    assert exact.min() < 0.2
    assert exact.max() > 0.8
    error = estimated - exact
    assert abs(error.mean()) < 0.02
    assert np.sqrt((error**2).mean()) < 0.1  # at most sqrt(1/4/32) = 0.088 is expected
    assert np.abs(error).max() < 0.4


def test_a_regions_sketch_is_the_least_of_its_parts() -> None:
    labels = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int32)
    parts = leaf_sketches(labels, 9)
    whole = leaf_sketches(np.where(labels < 4, 0, labels).astype(np.int32), 9)
    np.testing.assert_array_equal(whole[0], parts[:4].min(axis=0))
    np.testing.assert_array_equal(parts, sketches_of([labels == k for k in range(9)]))


def test_different_voxels_have_different_sketches() -> None:
    assert len(np.unique(VOXEL_SKETCHES, axis=0)) == VOXELS.size
    assert VOXEL_SKETCHES.shape == (VOXELS.size, NUM_HASHES)
    assert (np.diff(np.sort(VOXEL_SKETCHES.mean(axis=0))) > 0).all()  # no place repeats another


def test_regions_that_nearly_coincide_are_found_and_strangers_are_not() -> None:
    masks = boxes(60)
    first, second, share = similar_pairs(sketches_of(masks), volumes_of(masks), 0.5)
    found = {(int(a), int(b)): float(s) for a, b, s in zip(first, second, share, strict=True)}
    assert all(b < a for a, b in found)
    assert min(found.values()) >= 0.5
    likely = [(a, b) for a in range(60) for b in range(a) if iou(masks[a], masks[b]) > 0.7]
    assert len(likely) > 20
    assert np.mean([pair in found for pair in likely]) > 0.9
    assert all(iou(masks[a], masks[b]) > 0.2 for a, b in found)


def test_a_pair_is_listed_once() -> None:
    masks = boxes(30)
    first, second, _ = similar_pairs(sketches_of(masks), volumes_of(masks), 0.4)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(first)


def test_the_same_region_many_times_over_costs_no_more_than_a_chain() -> None:
    mask = boxes(1)[0]
    sketches = np.repeat(sketches_of([mask]), 1000, axis=0)
    first, _, share = similar_pairs(sketches, np.full(1000, mask.sum()), 0.4)
    assert (share == 1).all()
    assert np.bincount(first).max() <= 200


@pytest.mark.parametrize("larger", [1, 3])
def test_volumes_that_differ_too_much_are_no_pair_whatever_their_sketches(larger: int) -> None:
    sketches = np.repeat(sketches_of(boxes(1)), 2, axis=0)
    first, _, _ = similar_pairs(sketches, np.array([100, 100 * larger]), 0.4)
    assert len(first) == (larger == 1)


def test_no_regions_are_no_pairs() -> None:
    none = similar_pairs(np.empty((0, 32), np.uint32), np.empty(0, np.int64), 0.4)
    assert [(len(part), part.dtype) for part in none] == [(0, np.int32), (0, np.int32), (0, np.float32)]
