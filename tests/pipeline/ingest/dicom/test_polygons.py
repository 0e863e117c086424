"""Polygons are filled by the even-odd rule, voxel by voxel, against analytic shapes and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage.measure import points_in_poly

from pipeline.ingest.dicom.polygons import fill_polygons

SHAPE = (40, 50)
Y, X = np.indices(SHAPE)


def circle(x: float, y: float, radius: float, count: int = 1000) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def clear(x: float, y: float, near: float) -> float:
    """A radius near the wanted one whose circle passes as far as possible from all voxel centres."""
    distances = np.sort(np.hypot(X - x, Y - y).ravel())
    distances = distances[np.abs(distances - near) < 0.3]
    widest = int(np.argmax(np.diff(distances)))
    return float(distances[widest : widest + 2].mean())


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Voxels whose centres lie in a disc; a centre very near the outline would be a matter of the polygon."""
    distance = np.hypot(X - x, Y - y)
    assert np.abs(distance - radius).min() > 0.001
    return distance < radius


def test_a_disc_with_a_hole_is_exact() -> None:
    outer, inner = clear(24.3, 19.6, 15.2), clear(26.1, 18.2, 6.4)
    made = fill_polygons([circle(24.3, 19.6, outer), circle(26.1, 18.2, inner)], SHAPE)
    np.testing.assert_array_equal(made, disc(24.3, 19.6, outer) & ~disc(26.1, 18.2, inner))


def test_nested_rings_alternate() -> None:
    radii = [clear(24.3, 19.6, near) for near in (17.2, 13.3, 9.4, 4.1)]
    made = fill_polygons([circle(24.3, 19.6, r) for r in radii], SHAPE)
    a, b, c, d = (disc(24.3, 19.6, r) for r in radii)
    np.testing.assert_array_equal(made, (a & ~b) | (c & ~d))


def test_a_keyhole_leaves_its_hole_and_no_trace_of_its_channel() -> None:
    far, near = clear(24.3, 19.6, 15.2), clear(24.3, 19.6, 6.4)
    outer, inner = circle(24.3, 19.6, far), circle(24.3, 19.6, near)[::-1]
    start, turn = int(np.argmax(outer[:, 0])), int(np.argmax(inner[:, 0]))
    outer, inner = np.roll(outer, -start, axis=0), np.roll(inner, -turn, axis=0)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    np.testing.assert_array_equal(
        fill_polygons([keyhole], SHAPE), disc(24.3, 19.6, far) & ~disc(24.3, 19.6, near)
    )


def test_a_keyhole_channel_along_voxel_centres_leaves_no_trace() -> None:
    outer = [(5, 5), (30, 5), (30, 20), (20, 20)]
    inner = [(20, 10), (10, 10), (10, 20), (20, 20), (30, 20)]
    keyhole = np.array([*outer, *inner, (30, 30), (5, 30)])
    hole = (X >= 10) & (X < 20) & (Y >= 10) & (Y < 20)
    square = (X >= 5) & (X < 30) & (Y >= 5) & (Y < 30)
    np.testing.assert_array_equal(fill_polygons([keyhole.astype(float)], SHAPE), square & ~hole)


def test_polygons_with_a_common_edge_through_centres_share_no_voxel_and_leave_none_out() -> None:
    left = np.array([(3, 4), (12, 4), (20, 25), (3, 25)], float)
    right = np.array([(12, 4), (33, 4), (33, 25), (20, 25)], float)
    both = np.array([(3, 4), (33, 4), (33, 25), (3, 25)], float)
    one, two = fill_polygons([left], SHAPE), fill_polygons([right], SHAPE)
    assert not (one & two).any()
    np.testing.assert_array_equal(one | two, fill_polygons([both], SHAPE))


def test_a_square_on_voxel_corners_has_its_area_exactly() -> None:
    square = np.array([(9.5, 9.5), (19.5, 9.5), (19.5, 14.5), (9.5, 14.5)])
    made = fill_polygons([square], SHAPE)
    assert made.sum() == 50
    assert made[10:15, 10:20].all()


def test_what_lies_outside_is_cut_off_and_nothing_wraps_around() -> None:
    made = fill_polygons([circle(-3.2, 38.4, 12.21)], SHAPE)
    np.testing.assert_array_equal(made, np.hypot(X + 3.2, Y - 38.4) < 12.21)
    assert not fill_polygons([circle(500, 500, 10)], SHAPE).any()
    assert fill_polygons([circle(25, 20, 500)], SHAPE).all()


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((1, 2)), np.array([[1, 1], [9, 9.0]])])
def test_fewer_than_three_points_enclose_nothing(points: np.ndarray) -> None:
    assert not fill_polygons([points], SHAPE).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 9))
def test_any_polygon_even_one_that_crosses_itself_agrees_with_scikit_image(seed: int, count: int) -> None:
    corners = np.random.default_rng(seed).uniform(-5, 45, (count, 2))
    expected = points_in_poly(np.stack([X.ravel(), Y.ravel()], axis=1), corners).reshape(SHAPE)
    np.testing.assert_array_equal(fill_polygons([corners], SHAPE), expected)
