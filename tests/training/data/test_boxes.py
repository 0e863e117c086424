"""Where views lie: inside the scan or around it, and overlapping as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from training.data.boxes import Box, draw_crop_views, overlap_fraction, whole

sizes = st.tuples(*[st.integers(1, 90)] * 3)
crops = st.tuples(*[st.integers(1, 48)] * 3)
overlaps = st.sampled_from([0.0, 0.3, 0.67, 0.95, 1.0])
seeds = st.integers(0, 2**32)


def brute_overlap(first: Box, second: Box) -> float:
    """Voxels counted one by one on a canvas that holds both."""
    low = np.minimum(first.start, second.start)
    canvas = np.zeros(np.maximum(first.stop, second.stop) - low, dtype=int)
    for box in (first, second):
        canvas[tuple(slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, low, strict=True))] += 1
    return float((canvas == 2).sum() / first.voxels)


@given(shape=sizes, crop=crops, min_overlap=overlaps, seed=seeds)
def test_views_overlap_as_much_as_asked(shape, crop, min_overlap, seed) -> None:
    first, second = draw_crop_views(
        shape, crop, min_overlap=min_overlap, generator=np.random.default_rng(seed)
    )
    assert overlap_fraction(first, second) == pytest.approx(brute_overlap(first, second))
    assert overlap_fraction(first, second) >= min_overlap - 1e-6


@given(shape=sizes, crop=crops, min_overlap=overlaps, seed=seeds)
def test_a_view_lies_in_the_scan_or_the_scan_in_the_view(shape, crop, min_overlap, seed) -> None:
    for view in draw_crop_views(shape, crop, min_overlap=min_overlap, generator=np.random.default_rng(seed)):
        assert view.shape == crop
        for start, stop, size in zip(view.start, view.stop, shape, strict=True):
            assert (start >= 0 and stop <= size) or (start <= 0 and size <= stop)


def test_views_reach_every_place() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        draw_crop_views((20, 9, 16), (16, 16, 16), min_overlap=0.67, generator=generator) for _ in range(900)
    ]
    starts = [np.array([pair[which].start for pair in pairs]) for which in (0, 1)]
    for some in starts:
        assert [sorted(set(some[:, axis].tolist())) for axis in range(3)] == [
            list(range(5)),
            list(range(-7, 1)),
            [0],
        ]
    # Neither the target nor what it shares with the reference stays in one place.
    assert (np.abs(starts[0] - starts[1]).max(axis=1) > 0).mean() > 0.9


def test_boxes_intersect_and_enclose() -> None:
    first, second = Box(start=(-2, 0, 4), stop=(6, 5, 9)), Box(start=(1, 3, 2), stop=(9, 4, 5))
    assert first.intersect(second) == Box(start=(1, 3, 4), stop=(6, 4, 5))
    assert first.enclose(second) == Box(start=(-2, 0, 2), stop=(9, 5, 9))
    assert first.grow((1, 0, 2)).shape == (10, 5, 9)
    assert first.intersect(whole((3, 3, 3))).voxels == 0
    assert second.within(first).slices == (slice(3, 11), slice(3, 4), slice(-2, 1))
