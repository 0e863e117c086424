from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.proposals.outlines import Outlines, paint_smoothed, region_boxes

AXIS = np.arange(48)
DISTANCE = np.sqrt(sum((grid - 23.5) ** 2 for grid in np.meshgrid(AXIS, AXIS, AXIS, indexing="ij")))


OUTLINES = Outlines(fraction=0.1, max_sigma_voxels=9.0)


def painted(
    regions: list[NDArray[np.bool_]], parents: list[int], sigmas: list[float]
) -> list[NDArray[np.bool_]]:
    """The regions after smoothing; nested as `parents` says, outermost first, one after the other."""
    innermost = np.zeros(regions[0].shape, np.int64)
    for rank, region in enumerate(regions):
        innermost[region] = rank + 1
    last = list(range(len(regions)))
    for rank in range(len(regions) - 1, -1, -1):
        if parents[rank] >= 0:
            last[parents[rank]] = max(last[parents[rank]], last[rank])
    leaves, labels = np.unique(innermost, return_inverse=True)
    labels = labels.reshape(innermost.shape).astype(np.int32)
    leaf_boxes = np.array(
        [
            [*(axis.start for axis in box), *(axis.stop for axis in box)]
            for box in ndimage.find_objects(labels + 1)
        ],
        np.int32,
    )
    boxes = region_boxes(leaf_boxes, leaves.astype(np.uint16), np.array(parents))
    out = paint_smoothed(
        labels,
        leaves.astype(np.uint16),
        np.array(parents),
        np.array(last),
        np.array(sigmas, np.float64),
        boxes,
        OUTLINES,
    )
    return [(out >= rank + 1) & (out <= last[rank] + 1) for rank in range(len(regions))]


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5, 3.3])
def test_a_blurred_region_is_where_a_gaussian_exceeds_a_half(sigma: float) -> None:
    rng = np.random.default_rng(0)
    ragged = DISTANCE + ndimage.gaussian_filter(rng.normal(size=DISTANCE.shape), 1) * 8 < 16
    (smooth,) = painted([ragged], [-1], [sigma])
    gauss = ndimage.gaussian_filter(ragged.astype(np.float64), sigma) > 0.5
    assert iou(smooth, gauss) > 0.95
    assert iou(smooth, gauss) > iou(ragged, gauss)


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_a_ragged_ball_comes_nearer_to_the_ball(sigma: float) -> None:
    rng = np.random.default_rng(1)
    ragged = DISTANCE + ndimage.gaussian_filter(rng.normal(size=DISTANCE.shape), 1) * 8 < 16
    (smooth,) = painted([ragged], [-1], [sigma])
    assert iou(smooth, DISTANCE < 16) > iou(ragged, DISTANCE < 16) + 0.02


def test_a_region_goes_on_at_the_edge_of_the_scan() -> None:
    slab = np.zeros((24, 24, 24), np.bool_)
    slab[:12] = True
    (smooth,) = painted([slab], [-1], [2.0])
    np.testing.assert_array_equal(smooth, slab)


def test_a_sheet_that_a_blur_would_wipe_out_stays_as_it_is() -> None:
    sheet = np.zeros((24, 24, 24), np.bool_)
    sheet[11] = True
    (kept,) = painted([sheet], [-1], [2.0])
    np.testing.assert_array_equal(kept, sheet)


def test_no_blur_changes_nothing() -> None:
    ragged = np.random.default_rng(2).random((12, 12, 12)) < 0.5
    (kept,) = painted([ragged], [-1], [0.2])
    np.testing.assert_array_equal(kept, ragged)


def test_a_region_stays_within_the_one_around_it_although_its_blur_is_narrower() -> None:
    outer = DISTANCE < 16
    inner = (DISTANCE < 16) & (DISTANCE > 13)
    outer_now, inner_now = painted([outer, inner], [-1, 0], [4.0, 0.0])
    assert (outer_now | ~inner_now).all()
    assert inner_now.sum() < inner.sum()


def test_a_thin_region_is_blurred_half_as_often() -> None:
    off_axis = np.hypot(AXIS - 23.5, (AXIS - 23.5)[:, None])[:, :, None]
    rod = (DISTANCE < 22) & (off_axis < 4.5)
    (smooth,) = painted([rod], [-1], [2.2])
    full, half = (ndimage.gaussian_filter(rod.astype(np.float64), 2.2 / np.sqrt(n)) > 0.5 for n in (1, 2))
    assert full.sum() < OUTLINES.least_volume * rod.sum()
    assert iou(smooth, half) > 0.97
    assert iou(smooth, half) > iou(smooth, full) + 0.1


def test_no_blur_narrow_and_wide_blurs_are_painted_apart() -> None:
    outlines = Outlines(fraction=0.12, max_sigma_voxels=4.0)
    volumes = np.array([240, 450, 4000, 5000, 10_000_000])
    np.testing.assert_allclose(outlines.sigmas(volumes), [0.0, 0.92, 1.905, 2.052, 4.0], atol=1e-3)
    assert outlines.widths(volumes).tolist() == [0, 1, 1, 2, 2]
