"""Pictures show the slice that matters, head up, with the right outlines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.report import slices
from pipeline.report.slices import PLANES, cut
from training.inference.pictures import (
    DRAWN_COLOR,
    EDGES,
    EXPECTED_COLOR,
    Case,
    best_slice,
    draw_cases,
    turned,
    write_png,
)

ORANGE, BLUE = DRAWN_COLOR, EXPECTED_COLOR


@pytest.fixture
def case() -> Case:
    image = np.random.default_rng(0).normal(size=(20, 24, 30)).astype(np.float32)
    mask, expected = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    mask[12:18, 4:10, 20:28] = True
    expected[2:8, 4:10, 3:9] = True
    return Case(
        reference=image, mask=mask, target=image, prediction=expected, expected=expected, title="case"
    )


def places(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((np.asarray(picture) == colour).all(axis=-1))


def test_the_slice_with_most_of_the_mask_is_shown():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2, 3] = mask[3, 2:4, 3] = True
    assert [best_slice(mask, axis) for axis in range(3)] == [3, 2, 3]
    assert best_slice(np.zeros((5, 6, 7), bool), 0) == 2


def test_what_lies_towards_the_head_is_drawn_towards_the_top(case):
    picture = draw_cases([replace(case, prediction=case.mask, expected=None)], height=200)
    coronal_reference = picture.crop((picture.width // 3, 14, picture.width // 2, 214))
    rows = places(coronal_reference, ORANGE)[:, 0]
    # z from 12 to 17 of 20: the upper part of the panel.
    assert rows.min() == pytest.approx(200 * (20 - 18) / 20, abs=2)
    assert rows.max() == pytest.approx(200 * (20 - 12) / 20, abs=2)


def test_the_right_of_the_patient_is_on_the_left_as_in_reports(case):
    # The mask lies at x from 20 to 27 of 30, towards the patient's right, and at y from 4 to 9 of 24: behind.
    picture = draw_cases([replace(case, prediction=case.mask, expected=None)], height=240)
    axial = places(picture.crop((0, 14, 300, 254)), ORANGE)
    assert axial[:, 1].max() < 150
    assert axial[:, 0].min() > 120
    sagittal = picture.crop((picture.width - 288 - 4, 14, picture.width - 4, 254))
    assert places(sagittal, ORANGE)[:, 1].min() > 144, "the front is on the left"


@pytest.mark.parametrize("axis", range(3))
def test_slices_and_their_letters_are_those_of_reports(axis):
    volume = np.random.default_rng(1).normal(size=(4, 5, 6))
    plane = PLANES[axis]
    np.testing.assert_array_equal(turned(np.take(volume, 2, axis=axis)), cut(volume, plane, 2))
    assert EDGES[axis] == slices.EDGES[plane][:2]


def test_letters_stand_at_the_edges_of_every_panel(case):
    blank = np.zeros_like(case.reference)
    nothing = np.zeros_like(case.mask)
    picture = draw_cases(
        [replace(case, reference=blank, target=blank, mask=nothing, prediction=nothing, expected=None)]
    )
    lit = (np.asarray(picture.convert("L"))[60:120] > 128).any(axis=0)
    assert np.flatnonzero(lit).min() < 12
    assert np.flatnonzero(lit).max() > picture.width - 4 - 14


def test_the_prediction_is_orange_and_the_expectation_blue(case):
    nothing = np.zeros_like(case.mask)
    assert len(places(draw_cases([replace(case, mask=nothing, prediction=nothing)]), BLUE))
    assert not len(places(draw_cases([replace(case, mask=nothing, prediction=nothing)]), ORANGE))
    assert len(places(draw_cases([replace(case, mask=nothing, expected=None)]), ORANGE))
    assert not len(places(draw_cases([replace(case, expected=None)]), BLUE))


def test_voxels_are_drawn_in_proportion_to_their_millimetres(case):
    square = draw_cases([case], height=100)
    flat = draw_cases([replace(case, spacing_zyx_mm=(2.0, 1.0, 1.0))], height=100)
    axial = round(100 * 30 / 24)  # its axes are not concerned
    assert square.width == 2 * (axial + round(100 * 30 / 20) + round(100 * 24 / 20)) + 6 * 4
    assert flat.width == 2 * (axial + round(100 * 30 / 40) + round(100 * 24 / 40)) + 6 * 4


def test_dice_stands_in_the_case(case):
    assert case.dice == 1.0
    assert replace(case, prediction=case.mask).dice == 0.0
    assert replace(case, expected=None).dice is None


def test_a_picture_is_written_with_a_row_a_case(case, tmp_path):
    write_png(tmp_path / "new" / "cases.png", [case, case])
    one = draw_cases([case])
    with Image.open(tmp_path / "new" / "cases.png") as picture:
        assert picture.size == (one.width, 2 * one.height)


def test_a_mask_on_another_grid_is_refused(case):
    with pytest.raises(ValueError, match="one grid"):
        replace(case, mask=case.mask[1:])
    with pytest.raises(ValueError, match="expected"):
        replace(case, expected=case.mask[1:])
