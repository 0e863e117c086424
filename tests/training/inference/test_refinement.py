"""Masks moved onto the target's own boundaries: by votes of the registered reference, by intensities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training.inference import refinement
from training.inference.refinement import confidence, sharpen, vote


def ball(middle: tuple[float, float, float], radius: float, shape=(24, 40, 40)) -> np.ndarray:
    squares = [(place - centre) ** 2 for place, centre in zip(np.indices(shape), middle, strict=True)]
    return np.asarray(sum(squares) < radius**2)


def image_of(masks: np.ndarray, levels: list[float], seed: int = 0, noise: float = 0.3) -> np.ndarray:
    image = np.zeros(masks.shape[1:])
    for mask, level in zip(masks, levels, strict=True):
        image[mask] = level
    return (image + noise * np.random.default_rng(seed).normal(size=image.shape)).astype(np.float32)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def shell_and_core(shift: int = 0) -> np.ndarray:
    core, whole = ball((12, 20 + shift, 20), 5), ball((12, 20 + shift, 20), 9)
    return np.stack([whole & ~core, core])


def test_a_misplaced_mask_moves_onto_the_boundary_that_the_target_shows() -> None:
    truth = shell_and_core()
    target = image_of(truth, [-1.0, 2.0])
    placed = np.stack([ndimage.gaussian_filter(m.astype(np.float32), 0.5) for m in shell_and_core(shift=2)])
    sharp = sharpen(placed, target)
    assert sharp.shape == placed.shape
    assert sharp.dtype == np.float32
    for before, after, there in zip(placed >= 0.5, sharp >= 0.5, truth, strict=True):
        assert dice(after, there) > 0.95 > 0.8 > dice(before, there)


def test_more_than_a_half_is_the_most_probable_and_no_voxel_has_two() -> None:
    truth = shell_and_core()
    sharp = sharpen(truth.astype(np.float32), image_of(truth, [0.5, 1.0], noise=0.5))
    assert ((sharp > 0.5).sum(axis=0) <= 1).all()
    assert sharp.min() >= 0
    assert sharp.max() <= 1


def test_a_structure_as_bright_as_its_surroundings_stays_where_it_was_placed() -> None:
    placed = ball((12, 20, 20), 8)[None]
    target = np.random.default_rng(0).normal(size=placed.shape[1:]).astype(np.float32)
    assert dice(sharpen(placed.astype(np.float32), target)[0] >= 0.5, placed[0]) > 0.93


@pytest.mark.parametrize("radius", [1.5, 2.1, 3, 5])
def test_a_small_structure_is_not_smoothed_away(radius: float) -> None:
    placed = ball((12, 20, 20), radius)[None]
    target = np.random.default_rng(0).normal(size=placed.shape[1:]).astype(np.float32)
    assert dice(sharpen(placed.astype(np.float32), target)[0] >= 0.5, placed[0]) > 0.95


def test_nothing_grows_beyond_the_band_around_what_was_placed() -> None:
    placed = ball((12, 20, 20), 3)[None]
    target = image_of(ball((12, 20, 20), 12)[None], [2.0])
    grown = sharpen(placed.astype(np.float32), target)[0] > 0
    reach = ndimage.distance_transform_edt(~placed[0])[grown].max()
    # The band is counted in steps along the axes, from where the smooth mask counts as placed.
    assert 0 < reach <= refinement.BAND_VOXELS + 1


def test_votes_mend_what_the_registration_left_by_up_to_two_voxels() -> None:
    truth, moved = shell_and_core(), shell_and_core(shift=2)
    target, warped = image_of(truth, [-1.0, 2.0], seed=1), image_of(moved, [-1.0, 2.0], seed=2)
    voted = vote(moved.astype(np.float32), warped, target)
    for before, after, there in zip(moved, voted >= 0.5, truth, strict=True):
        assert dice(after, there) > dice(before, there) + 0.05
    assert voted.min() >= 0
    assert voted.max() <= 1 + 1e-6


def test_votes_of_a_perfect_registration_leave_the_masks() -> None:
    truth = shell_and_core()
    target = image_of(truth, [-1.0, 2.0])
    for mask, voted in zip(truth, vote(truth.astype(np.float32), target, target) >= 0.5, strict=True):
        assert dice(voted, mask) > 0.97


def test_large_windows_are_not_voted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, moved = shell_and_core(), shell_and_core(shift=2).astype(np.float32)
    target, warped = image_of(truth, [-1.0, 2.0], seed=1), image_of(truth, [-1.0, 2.0], seed=2)
    monkeypatch.setattr(refinement, "MAX_VOTED_VOXELS", 100)
    assert vote(moved, warped, target) is moved


def test_an_empty_mask_a_flat_target_and_an_absent_structure_are_left() -> None:
    flat = np.zeros((24, 40, 40), np.float32)
    empty = np.zeros((2, 24, 40, 40), np.float32)
    assert not sharpen(empty, flat).any()
    assert vote(empty, flat, flat) is empty
    placed = ball((12, 20, 20), 8)[None].astype(np.float32)
    assert dice(sharpen(placed, flat)[0] >= 0.5, placed[0] > 0) > 0.93
    np.testing.assert_array_equal(vote(placed, flat, flat), placed)
    both = np.concatenate([placed, empty[:1]])
    assert not (sharpen(both, image_of(placed > 0, [2.0]))[1] > 0.5).any()


def test_the_same_input_gives_the_same_bytes() -> None:
    moved = shell_and_core(shift=2).astype(np.float32)
    target = image_of(shell_and_core(), [-1.0, 2.0])
    once, again = (sharpen(vote(moved, target, target), target) for _ in range(2))
    assert once.tobytes() == again.tobytes()


def test_confidence_falls_where_only_what_is_smooth_is_alike() -> None:
    truth = ball((12, 20, 20), 7)
    generator = np.random.default_rng(4)
    smooth, detail, other = (
        ndimage.gaussian_filter(generator.normal(size=truth.shape), sigma) for sigma in (10, 0.8, 0.8)
    )
    target, same, unlike = (
        (3 * smooth / smooth.std() + noise / noise.std()).astype(np.float32)
        for noise in (detail, detail, other)
    )
    sure = truth.astype(np.float32)
    assert confidence(sure, truth, same, target) > 0.99
    assert confidence(sure, truth, unlike, target) < 0.8


def test_confidence_is_high_where_probabilities_are_sharp_and_images_alike() -> None:
    truth = ball((12, 20, 20), 7)
    target, alike = image_of(truth[None], [2.0], seed=1), image_of(truth[None], [2.0], seed=2)
    other = np.random.default_rng(3).normal(size=target.shape).astype(np.float32)
    sure = truth.astype(np.float32)
    unsure = np.clip(ndimage.gaussian_filter(sure, 3), 0, 1)
    best = confidence(sure, truth, alike, target)
    assert 0.85 < best <= 1
    assert confidence(unsure, truth, alike, target) < best - 0.15
    assert 0 <= confidence(sure, truth, other, target) < 0.2
    assert confidence(sure, np.zeros_like(truth), alike, target) == 0
    assert confidence(sure, truth, alike, target, agreement=0.5) == pytest.approx(best * 0.5 ** (1 / 3))
    assert confidence(sure, truth, alike, target, agreement=-0.5) == 0
    assert confidence(sure, truth, np.zeros_like(target), target) == 0
