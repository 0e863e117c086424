"""Windows: they cover, they overlap as asked, their weights leave nobody out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from training.data.windows import (
    box_of_mask,
    boxes_over,
    fit_window,
    hull_of,
    join_boxes,
    round_up,
    take,
    take_image,
    window_boxes,
    window_weights,
)

sizes = st.tuples(*[st.integers(1, 90)] * 3)
windows = st.tuples(*[st.sampled_from([16, 32, 48])] * 3)


@given(sizes, windows, st.floats(0, 0.9))
def test_windows_cover_every_voxel_and_overlap_as_asked(shape, window, overlap):
    boxes = window_boxes(shape, window, overlap)
    for axis in range(3):
        parts = sorted({(box[axis].start, box[axis].stop) for box in boxes})
        assert all(stop - start == window[axis] for start, stop in parts)
        assert parts[0][0] <= 0
        assert parts[-1][1] >= shape[axis]
        for (first, _), (second, _) in pairwise(parts):
            assert second - first <= window[axis] * (1 - overlap) + 1e-9
    assert len(boxes) == np.prod([len({box[axis].start for box in boxes}) for axis in range(3)])


@given(sizes, windows)
def test_a_window_reaches_beyond_the_volume_only_where_the_volume_is_shorter(shape, window):
    for box in window_boxes(shape, window, 0.5):
        for part, size, wide in zip(box, shape, window, strict=True):
            if size >= wide:
                assert part.start >= 0
                assert part.stop <= size
            else:
                before, after = -part.start, part.stop - size
                assert 0 <= before <= after <= before + 1


def test_windows_in_a_drawn_case():
    boxes = window_boxes((20, 48, 70), (32, 32, 32), 0.5)
    assert [part.start for part in boxes[0]] == [-6, 0, 0]
    assert sorted({box[1].start for box in boxes}) == [0, 16]
    assert sorted({box[2].start for box in boxes}) == [0, 12, 25, 38]


@given(sizes, windows)
def test_a_fitted_window_is_no_longer_than_needed(shape, window):
    fitted = fit_window(shape, window)
    for got, size, most in zip(fitted, shape, window, strict=True):
        assert got % 16 == 0
        assert got == most or size <= got < size + 16


def test_a_window_that_the_network_cannot_halve_four_times_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        fit_window((64, 64, 64), (32, 40, 32))
    with pytest.raises(ValueError, match="overlap_fraction"):
        window_boxes((64, 64, 64), (32, 32, 32), 1.0)


@given(windows)
def test_weights_are_largest_in_the_middle_and_never_zero(window):
    weights = window_weights(window)
    assert weights.dtype == np.float32
    assert weights.max() == 1
    assert weights.min() >= 1e-3
    assert weights[tuple(size // 2 for size in window)] == 1
    assert np.allclose(weights, weights[::-1, ::-1, ::-1])
    assert weights[0, 0, 0] == weights.min()


def test_weights_fall_off_as_a_gaussian_of_an_eighth_of_the_edge():
    line = window_weights((16, 16, 64))[8, 8]
    assert line[31 + 8] / line[31] == pytest.approx(np.exp(-0.5 * (7.5**2 - 0.5**2) / 8**2), rel=1e-5)


def test_the_box_of_a_mask_is_tight_and_that_of_an_empty_one_is_none():
    mask = np.zeros((6, 7, 8), bool)
    assert box_of_mask(mask) is None
    mask[2, 3:5, 7] = True
    assert box_of_mask(mask) == (slice(2, 3), slice(3, 5), slice(7, 8))


boxes = st.tuples(
    *[st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda p: slice(p[0], p[0] + p[1]))] * 3
)


@given(st.lists(boxes, min_size=1, max_size=8))
def test_joined_boxes_fit_one_window_and_each_is_in_one_group(some):
    groups = join_boxes(some, (32, 32, 32))
    assert sorted(index for group in groups for index in group) == list(range(len(some)))
    for group in groups:
        hull = hull_of(*(some[index] for index in group))
        assert len(group) == 1 or all(part.stop - part.start <= 32 for part in hull)


@given(boxes, windows)
def test_reference_windows_cover_the_mask_and_stay_in_the_volume_where_they_can(inner, window):
    shape = (90, 90, 40)
    inner = (inner[0], inner[1], slice(inner[2].start // 2, inner[2].start // 2 + 1))
    covered = np.zeros(shape, bool)
    found = boxes_over(inner, window, shape)
    for box in found:
        for part, size, wide in zip(box, shape, window, strict=True):
            assert part.stop - part.start == wide
            assert (part.start >= 0 and part.stop <= size) or size < wide
        covered[tuple(slice(max(p.start, 0), min(p.stop, n)) for p, n in zip(box, shape, strict=True))] = True
    assert covered[inner].all()
    assert len({tuple(part.start for part in box) for box in found}) == len(found)


def test_a_reference_window_is_centred_on_a_small_mask():
    (box,) = boxes_over((slice(40, 44), slice(50, 52), slice(30, 40)), (32, 32, 32), (100, 100, 100))
    assert [part.start for part in box] == [26, 35, 19]


@given(st.tuples(*[st.integers(-20, 20)] * 3), windows)
def test_taking_a_box_beyond_the_volume_fills_the_outside_only(corner, window):
    volume = np.arange(21 * 22 * 23, dtype=np.float32).reshape(21, 22, 23)
    box = tuple(slice(start, start + size) for start, size in zip(corner, window, strict=True))
    if any(part.stop <= 0 for part in box):
        return
    part = take(volume, box, fill=-1.0)
    assert part.shape == window
    padded = np.pad(volume, 64, constant_values=-1.0)
    assert (part == padded[tuple(slice(p.start + 64, p.stop + 64) for p in box)]).all()


def test_an_image_is_darkest_beyond_its_faces():
    image = np.arange(3.0, 8.0, dtype=np.float32)[None, None]
    part = take_image(image, (slice(0, 1), slice(0, 1), slice(-2, 7)))
    assert part.ravel().tolist() == [3, 3, 3, 4, 5, 6, 7, 3, 3]


def test_round_up_goes_to_multiples_of_16():
    assert [round_up(size) for size in (1, 16, 17, 128)] == [16, 16, 32, 128]
