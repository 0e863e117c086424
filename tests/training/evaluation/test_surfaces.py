"""Surface distances against the definition, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from training.evaluation.surfaces import surface_distances

SPACING = (3.0, 1.5, 0.7)


def ball(centre: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (14, 22, 30)), indexing="ij"), axis=-1)
    return (((places - centre) * SPACING) ** 2).sum(axis=-1) <= radius_mm**2


def surface_mm(mask: np.ndarray) -> np.ndarray:
    inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))  # outside counts as outside
    return np.argwhere(mask & ~inner) * SPACING


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ball((6, 10, 15), 9), ball((7, 11, 12), 7)),
        (ball((1, 3, 3), 8), ball((0, 2, 4), 8)),  # cut off by the volume's faces
        (ball((3, 5, 5), 4) | ball((10, 17, 25), 4), ball((3, 5, 5), 5)),
    ],
)
def test_distances_are_those_of_the_definition_in_mm(one: np.ndarray, other: np.ndarray) -> None:
    first, second = surface_mm(one), surface_mm(other)
    apart = np.linalg.norm(first[:, None] - second[None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    found = surface_distances(one, other, SPACING)
    assert found.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-4)
    assert found.asd_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-4)


def test_the_axes_have_each_their_own_spacing() -> None:
    one, moved = np.zeros((9, 9, 9), bool), []
    one[2:4, 2:4, 2:4] = True
    for axis in range(3):
        found = surface_distances(one, np.roll(one, 4, axis), SPACING)
        moved.append(found.hd95_mm / SPACING[axis])
    assert moved == pytest.approx([4, 4, 4])


def test_a_mask_against_itself_is_at_no_distance_and_an_empty_one_at_none_that_is_known() -> None:
    one, empty = ball((6, 10, 15), 9), np.zeros((14, 22, 30), bool)
    assert surface_distances(one, one, SPACING).hd95_mm == 0
    assert surface_distances(one, one, SPACING).asd_mm == 0
    for pair in ((one, empty), (empty, one), (empty, empty)):
        assert math.isnan(surface_distances(*pair, SPACING).hd95_mm)
        assert math.isnan(surface_distances(*pair, SPACING).asd_mm)
