"""Fine views: structures are shown whole, together where they fit, in few views finer than the scan."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from training.data.fine_views import MARGIN_FRACTION, MAX_VOXELS, MIN_GAIN, fine_views, jittered
from training.data.whole_scans import ScanView, visible_box
from training.data.windows import Slices

WINDOW = (16, 32, 16)


def box(*edges: tuple[int, int]) -> Slices:
    z, y, x = (slice(low, high) for low, high in edges)
    return z, y, x


@st.composite
def scans_with_boxes(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[Slices]]:
    shape = draw(st.tuples(*[st.integers(4, 300)] * 3))
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        edges = [sorted((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1)))) for n in shape]
        boxes.append(box(*((low, high + 1) for low, high in edges)))
    return shape, boxes


@given(scan=scans_with_boxes(), most=st.integers(1, 9))
def test_views_are_few_and_finer_than_the_scan_and_show_all_or_would_not_be_finer(
    scan: tuple[tuple[int, int, int], list[Slices]], most: int
) -> None:
    shape, boxes = scan
    views = fine_views(boxes, shape, WINDOW, most=most)
    assert len(views) <= most
    assert len(set(views)) == len(views)
    for view in views:
        assert max(np.divide(shape, view.size)) >= MIN_GAIN
        assert all(size >= side for size, side in zip(view.size, WINDOW, strict=True))
    shown = np.zeros(shape, bool)
    for view in views:
        shown[visible_box(view, shape).slices] = True
    if views and len(boxes) == 1:
        assert shown[boxes[0]].all()


def test_neighbours_share_a_view_with_a_margin_and_others_have_their_own() -> None:
    shape, far = (80, 200, 160), box((60, 70), (150, 170), (140, 150))
    near = [box((10, 20), (20, 40), (10, 20)), box((12, 24), (30, 50), (12, 25))]
    (view,) = fine_views(near, shape, WINDOW, most=8)
    assert view.start[1] == 20 - math.ceil(20 * MARGIN_FRACTION)
    assert view.size == (19, 38, 20)
    assert len(fine_views([*near, far], shape, WINDOW, most=8)) == 2
    (both,) = fine_views([*near, far], shape, WINDOW, most=1)
    assert all(size > 120 for size in both.size[1:])


def test_a_large_structure_has_several_views_of_the_finest_resolution_that_is_asked_for() -> None:
    views = fine_views([box((5, 20), (0, 200), (5, 20))], (80, 200, 160), WINDOW, most=8)
    assert len(views) == 4
    assert all(view.size[1] == MAX_VOXELS * WINDOW[1] for view in views)
    assert [view.start[1] for view in views] == sorted(view.start[1] for view in views)
    assert (views[0].start[1], views[-1].start[1] + views[-1].size[1]) == (0, 200)


@pytest.mark.parametrize("shape", [(16, 32, 16), (19, 38, 19), (10, 35, 12)])
def test_a_scan_that_fits_the_window_takes_one_level(shape: tuple[int, int, int]) -> None:
    middle = box(*((n // 3, n // 2 + 1) for n in shape))
    assert fine_views([middle], shape, WINDOW, most=8) == ()


def test_nothing_seen_and_none_allowed_give_no_view() -> None:
    assert fine_views([], (80, 200, 160), WINDOW, most=8) == ()
    assert fine_views([box((5, 9), (5, 9), (5, 9))], (80, 200, 160), WINDOW, most=0) == ()


def test_jitter_moves_and_scales_a_view_a_little_and_each_axis_by_itself() -> None:
    generator = np.random.default_rng(0)
    view = ScanView(start=(10.0, 20.0, 30.0), size=(16.0, 32.0, 64.0))
    drawn = [jittered(view, generator) for _ in range(300)]
    sizes = np.array([one.size for one in drawn]) / view.size
    centres = np.array([np.array(one.start) + np.array(one.size) / 2 for one in drawn])
    moves = (centres - (18, 36, 62)) / view.size
    assert 0.8 <= sizes.min() < 0.83 < 1.2 < sizes.max() <= 1.25
    assert 0.09 < np.abs(moves).max() <= 0.1
    assert abs(np.corrcoef(sizes[:, 0], sizes[:, 1])[0, 1]) < 0.2
