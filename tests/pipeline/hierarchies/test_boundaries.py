from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.hierarchies.boundaries import boundary_evidence, gaussian_weights, smooth, window_levels
from tests.pipeline.drawn_regions import CPU, NUMPY, ON_MANY, spacings, volumes


def evidence_of(levels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of 1 mm voxels, next to unsmoothed."""
    found = boundary_evidence([levels], sigma_mm=0.1, spacing_zyx_mm=(1.0, 1.0, 1.0), backend=CPU)
    return np.asarray(found)


def wedge(axis: int, step: int = 80) -> NDArray[np.int32]:
    """Levels that rise by `step` a voxel along one axis."""
    index = np.indices((12, 12, 12))[axis]
    return (index * step).astype(np.int32)


@ON_MANY
@given(volumes(top=8184), spacings(), st.sampled_from([0.3, 0.7, 2.2]))
def test_numba_smooths_and_differentiates_to_the_bit_as_numpy(
    levels: NDArray[np.int32], spacing: tuple[float, float, float], sigma_mm: float
) -> None:
    np.testing.assert_array_equal(smooth(levels, spacing, CPU), smooth(levels, spacing, NUMPY), strict=True)
    both = [
        boundary_evidence([levels, levels // 3], sigma_mm=sigma_mm, spacing_zyx_mm=spacing, backend=backend)
        for backend in (CPU, NUMPY)
    ]
    np.testing.assert_array_equal(*both, strict=True)


@given(st.floats(0.1, 12))
def test_weights_sum_to_one_exactly_and_are_symmetric(sigma_voxels: float) -> None:
    weights = gaussian_weights(sigma_voxels)
    assert weights.sum() == 1024
    assert (weights >= 0).all()
    np.testing.assert_array_equal(weights, weights[::-1])


def test_smoothing_is_scipys_gaussian_to_a_level() -> None:
    levels = np.random.default_rng(0).integers(0, 8185, (16, 17, 18)).astype(np.int32)
    expected = ndimage.gaussian_filter(levels.astype(float), (1.5, 0.8, 2.0), mode="nearest", truncate=3.0)
    assert np.abs(smooth(levels, (1.5, 0.8, 2.0), CPU) - expected).max() < 24  # 8 steps are a level of 1,023


def test_what_is_smooth_has_no_boundary_and_keeps_its_level() -> None:
    levels = np.full((5, 6, 7), 4711, np.int32)
    np.testing.assert_array_equal(smooth(levels, (1.0, 2.0, 3.0), CPU), levels)
    assert not evidence_of(levels).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slope_has_the_same_evidence_along_every_axis(axis: int) -> None:
    inner = evidence_of(wedge(axis))[2:-2, 2:-2, 2:-2]
    np.testing.assert_array_equal(inner, 20)  # 10 levels a voxel, 8 steps each, over two voxels


def test_a_step_counts_for_more_along_a_shorter_voxel_edge() -> None:
    along = [
        boundary_evidence([wedge(axis)], sigma_mm=0.1, spacing_zyx_mm=(4.0, 1.0, 2.0), backend=CPU)[6, 6, 6]
        for axis in range(3)
    ]
    assert along[0] < along[2] < along[1]
    assert along[1] == pytest.approx(4 * along[0], rel=0.1)


def test_windows_add_up() -> None:
    both = boundary_evidence([wedge(0), wedge(1)], sigma_mm=0.1, spacing_zyx_mm=(1.0, 1.0, 1.0), backend=CPU)
    assert both[6, 6, 6] == evidence_of(wedge(0))[6, 6, 6] + evidence_of(wedge(1))[6, 6, 6]


def test_a_window_clips_what_lies_outside_and_spans_the_levels_within() -> None:
    codes = np.array([-32768, -100, 0, 50, 100, 200, 32767], np.int16).reshape(1, 1, 7)
    levels = window_levels(codes, scale=2.0, offset=100.0, window=(100.0, 300.0), backend=CPU)
    assert levels.dtype == np.int16
    # 0 is code 0, the top is code 100; half of 1,023 rounds to the even 512.
    assert levels.ravel().tolist() == [0, 0, 0, 512 * 8, 1023 * 8, 1023 * 8, 1023 * 8]
