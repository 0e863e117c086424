"""Augmentation: drawn first, applied deterministically; image and words move together."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from training.data.augmentation import (
    AugmentationConfig,
    Drawn,
    ViewAugmentation,
    affine_matrix,
    apply_drawn,
    augment,
    draw,
    strong,
    warp,
)
from training.data.batches import Batch
from training.data.words import unpack_words
from training.errors import ConfigError

CUT, CROP = (20, 28, 24), (16, 20, 16)
NOTHING = ViewAugmentation(affine_probability=0.0, intensity_probability=0.0)
ALWAYS = ViewAugmentation(affine_probability=1.0, intensity_probability=1.0, max_shear=0.1)


def drawn_batch(num: int = 2, *, cut=CUT, crop=CROP, seed: int = 0, first: int = 0) -> Batch:
    """Ellipsoids of code 1000 on 0, the same in mask 0; noise in masks 1 and 2; padding code -500."""
    generator = torch.Generator().manual_seed(seed)
    z, y, x = (torch.linspace(-1, 1, size) for size in cut)
    codes, words = [], []
    for _ in range(2 * num):
        middle = torch.rand(3, generator=generator) * 0.6 - 0.3
        inside = (
            ((z[:, None, None] - middle[0]) / 0.5) ** 2
            + ((y[:, None] - middle[1]) / 0.7) ** 2
            + ((x - middle[2]) / 0.4) ** 2
        ) < 1
        codes.append(1000 * inside.short())
        words.append(inside.short() + 2 * torch.randint(0, 4, cut, generator=generator).short())
    return Batch(
        reference_codes=torch.stack(codes[:num])[:, None],
        target_codes=torch.stack(codes[num:])[:, None],
        reference_words=torch.stack(words[:num]),
        target_words=torch.stack(words[num:]),
        scale=torch.full((num,), 0.002),
        offset=torch.full((num,), -1.0),
        padding_codes=torch.full((num,), -500, dtype=torch.int16),
        sample_indices=torch.arange(first, first + num),
        scan_ids=("drawn",) * num,
        seed=7,
        num_masks=4,
        crop_zyx=crop,
    )


def middle_of(volume: torch.Tensor) -> torch.Tensor:
    starts = [(whole - part) // 2 for whole, part in zip(CUT, CROP, strict=True)]
    return volume[(..., *(slice(a, a + part) for a, part in zip(starts, CROP, strict=True)))]


def identity(num: int) -> Drawn:
    return draw(NOTHING, [np.random.default_rng(k) for k in range(num)])


def same(first: object, second: object) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(first)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_without_augmentation_views_are_the_middles_of_the_cuts() -> None:
    batch = drawn_batch()
    views = augment(batch, AugmentationConfig(reference=NOTHING, target=NOTHING))
    torch.testing.assert_close(views.reference, middle_of(batch.reference), rtol=0, atol=0)
    torch.testing.assert_close(views.target, middle_of(batch.target), rtol=0, atol=0)
    for bit in range(3):
        expected = middle_of(batch.target_words) >> bit & 1
        assert torch.equal(views.target_masks[:, bit], expected.bool())
    assert views.target_masks[:, 3].all()
    assert views.reference_masks.dtype == torch.bool


def test_the_grid_of_the_identity_is_the_identity() -> None:
    batch = drawn_batch()
    nearly = torch.eye(3).repeat(2, 1, 1)
    nearly[:, 0, 1] = 1e-9  # not equal to the identity: goes through the sampling
    image, words = warp(batch.target_codes, batch.target_words, batch, nearly)
    torch.testing.assert_close(image, middle_of(batch.target), rtol=0, atol=1e-4)
    assert torch.equal(words, middle_of(batch.target_words))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_image_and_words_are_warped_as_scipy_warps_them(seed) -> None:
    batch = drawn_batch(1, seed=seed % 5)
    drawn = draw(replace(ALWAYS, intensity_probability=0.0), [np.random.default_rng(seed)])
    image, words = apply_drawn(batch.target_codes, batch.target_words, batch, drawn)
    matrix = drawn.matrix[0].double().numpy()
    shift = (np.array(CUT) - 1) / 2 - matrix @ ((np.array(CROP) - 1) / 2)
    codes = batch.target_codes[0, 0].numpy().astype(float)
    asked = {"matrix": matrix, "offset": shift, "output_shape": CROP, "mode": "grid-constant"}
    expected = ndimage.affine_transform(codes, order=1, cval=-500.0, **asked)
    np.testing.assert_allclose(image[0, 0].numpy(), expected * 0.002 - 1, atol=2e-3)
    nearest = ndimage.affine_transform(batch.target_words[0].numpy(), order=0, cval=0, **asked)
    assert (words[0].numpy() != nearest).mean() < 2e-3  # ties


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_a_mask_stays_on_its_structure(seed) -> None:
    batch = drawn_batch(2, seed=seed % 5)
    generators = [np.random.default_rng((seed, k)) for k in range(2)]
    image, words = apply_drawn(
        batch.target_codes,
        batch.target_words,
        batch,
        draw(replace(ALWAYS, intensity_probability=0.0), generators),
    )
    mask = unpack_words(words, 4)[:, :1]
    # The image is 1 inside and -1 outside: where it is clearly one, the mask must say the same.
    assert mask[image > 0.95].all()
    assert not mask[image < -0.95].any()


def test_what_comes_from_outside_is_padding_and_no_mask() -> None:
    batch = drawn_batch(1)
    matrix = torch.diag(torch.tensor([5.0, 1.0, 1.0]))[None]  # looks far beyond the cut along z
    image, words = warp(batch.target_codes, batch.target_words | 7, batch, matrix)
    assert torch.all(image[0, 0, 0] == -500 * 0.002 - 1)
    assert torch.all(words[0, 0] == 0)
    assert unpack_words(words, 4)[0, 3].all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scale_above_one_shows_more_along_its_axis_only(axis: int) -> None:
    scale = np.ones(3)
    scale[axis] = 1.3
    np.testing.assert_allclose(affine_matrix(scale, np.zeros(3), np.zeros(6)), np.diag(scale))


@given(angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3))
def test_a_rotation_keeps_lengths_and_orientation(angles) -> None:
    matrix = affine_matrix(np.ones(3), np.array(angles), np.zeros(6))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) > 0


def test_a_batch_is_augmented_as_its_samples_alone_and_again_the_same() -> None:
    batch = drawn_batch(3)
    config = AugmentationConfig(reference=ALWAYS, target=ALWAYS)
    together = augment(batch, config)
    assert same(augment(batch, config), together)
    alone = replace(
        batch,
        **{
            field.name: getattr(batch, field.name)[1:2]
            for field in fields(batch)
            if field.name not in ("seed", "num_masks", "crop_zyx")
        },
    )
    for field in fields(together):
        torch.testing.assert_close(
            getattr(augment(alone, config), field.name)[0], getattr(together, field.name)[1]
        )


def test_both_views_share_nothing_and_samples_differ() -> None:
    batch = drawn_batch(2)
    twin = replace(batch, target_codes=batch.reference_codes, target_words=batch.reference_words)
    views = augment(twin, AugmentationConfig(reference=ALWAYS, target=ALWAYS))
    assert (views.reference - views.target).abs().mean() > 0.1
    other = augment(replace(twin, sample_indices=twin.sample_indices + 2), AugmentationConfig(target=ALWAYS))
    assert (views.target - other.target).abs().mean() > 0.1


def test_augmentation_leaves_the_global_generator_and_the_batch_alone() -> None:
    batch = drawn_batch(2)
    before, codes = torch.random.get_rng_state(), batch.target_codes.clone()
    augment(batch, AugmentationConfig(reference=ALWAYS, target=ALWAYS))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(batch.target_codes, codes)


def test_each_change_is_drawn_as_often_and_as_strongly_as_asked() -> None:
    drawn = draw(strong(), [np.random.default_rng(k) for k in range(3000)])
    moved = (drawn.matrix != torch.eye(3)).flatten(1).any(dim=1)
    assert moved.float().mean().item() == pytest.approx(0.8, abs=0.03)
    for name, neutral, low, high in [
        ("brightness", 1, 0.8, 1.3),
        ("gamma", 1, 0.8, 1.3),
        ("contrast", 1, 0.8, 1.3),
        ("blur_voxels", 0, 0.7, 1.5),
        ("noise_std", 0, 0.04, 0.04),
    ]:
        values = getattr(drawn, name)
        changed = values[values != neutral]
        assert len(changed) / 3000 == pytest.approx(0.2, abs=0.03), name
        assert low - 1e-6 <= changed.min() <= low + 0.02, name
        assert high - 0.02 <= changed.max() <= high + 1e-6, name
    shift = drawn.brightness_shift[drawn.brightness_shift != 0]
    assert shift.std().item() == pytest.approx(0.15, rel=0.1)


def test_another_probability_moves_no_other_number() -> None:
    strict, often = strong(), replace(strong(), intensity_probability=1.0)
    first = draw(strict, [np.random.default_rng(k) for k in range(50)])
    second = draw(often, [np.random.default_rng(k) for k in range(50)])
    assert torch.equal(first.matrix, second.matrix)
    changed = first.gamma != 1
    assert torch.equal(first.gamma[changed], second.gamma[changed])


def only(name: str, value: float) -> torch.Tensor:
    """The target of one sample, changed in one way."""
    batch = drawn_batch(1)
    drawn = replace(identity(1), **{name: torch.tensor([value])})
    return apply_drawn(batch.target_codes, batch.target_words, batch, drawn)[0]


def test_each_change_does_what_its_name_says() -> None:
    plain = middle_of(drawn_batch(1).target)
    torch.testing.assert_close(only("brightness", 1.2), plain * 1.2)
    torch.testing.assert_close(only("brightness_shift", 0.3), plain + 0.3)
    for change in ("gamma", "contrast"):
        changed = only(change, 1.3)
        assert changed.min() == pytest.approx(plain.min().item(), abs=1e-6)
        assert changed.max() == pytest.approx(plain.max().item(), abs=1e-6)
    torch.testing.assert_close(only("contrast", 0.5), (plain - plain.mean()) * 0.5 + plain.mean())
    noise = only("noise_std", 0.04) - plain
    assert noise.std().item() == pytest.approx(0.04, rel=0.05)


def test_gamma_bends_the_values_between() -> None:
    ramp = torch.arange(-5, 5, dtype=torch.int16).repeat(1, 1, 10, 10, 1) * 100
    batch = replace(
        drawn_batch(1, crop=(10, 10, 10)), target_codes=ramp, target_words=torch.zeros(1, 10, 10, 10).short()
    )
    drawn = replace(identity(1), gamma=torch.tensor([2.0]))
    image, _ = apply_drawn(batch.target_codes, batch.target_words, batch, drawn)
    plain = batch.target
    expected = ((plain + 2) / 1.8) ** 2 * 1.8 - 2  # from -2 to -0.2
    torch.testing.assert_close(image, expected)


def test_blur_is_scipys_inside_and_keeps_a_flat_image_flat() -> None:
    blurred, plain = only("blur_voxels", 1.1), middle_of(drawn_batch(1).target)
    expected = ndimage.gaussian_filter(plain[0, 0].double().numpy(), 1.1, truncate=8)
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(blurred[0, 0].numpy()[inner], expected[inner], atol=1e-5)
    batch = drawn_batch(1)
    flat = torch.full_like(batch.target_codes, 300)
    drawn = replace(identity(1), blur_voxels=torch.tensor([1.5]))
    image, _ = apply_drawn(flat, batch.target_words, batch, drawn)
    torch.testing.assert_close(image, torch.full_like(image, 300 * 0.002 - 1))


@pytest.mark.parametrize(
    "change",
    [
        {"affine_probability": 1.5},
        {"max_scale_change": 1.0},
        {"noise_std": -0.1},
        {"gamma": (1.2, 0.8)},
        {"blur_voxels": (0.0, 1.0)},
    ],
)
def test_strengths_that_cannot_be_are_refused(change) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        ViewAugmentation(**change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_augments_as_the_cpu_does() -> None:
    batch = drawn_batch(3)
    quiet = replace(ALWAYS, noise_std=0.0)
    config = AugmentationConfig(reference=quiet, target=quiet)
    here, there = augment(batch, config), augment(batch.to("cuda"), config)
    torch.testing.assert_close(there.target.cpu(), here.target, rtol=0, atol=5e-3)
    assert (there.target_masks.cpu() != here.target_masks).float().mean() < 2e-3


def test_a_curve_exchanges_tissues_but_keeps_the_background_and_the_masks() -> None:
    batch = drawn_batch(1)
    codes = torch.randint(0, 3000, batch.target_codes.shape, dtype=torch.int16)
    plain, words = apply_drawn(codes, batch.target_words, batch, identity(1))
    curve = torch.tensor([[0.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1]])
    image, kept = apply_drawn(codes, batch.target_words, batch, replace(identity(1), curve=curve))
    assert torch.equal(kept, words)
    low, top = plain.min(), plain.mean() + 3 * plain.std()
    knots = low + (top - low) * torch.arange(7) / 6
    expected = np.interp(plain, knots, low + (top - low) * curve[0])
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-3)
    assert image.argmin() == plain.argmin()
    bright, brighter = (plain - knots[1]).abs().argmin(), (plain - knots[3]).abs().argmin()
    assert image.flatten()[bright] > image.flatten()[brighter]


def test_a_bias_field_is_smooth_and_leaves_the_lowest_voxels() -> None:
    batch = drawn_batch(1)
    plain, words = apply_drawn(batch.target_codes, batch.target_words, batch, identity(1))
    bias = torch.full((1, 4, 4, 4), math.log(2.0))
    doubled, kept = apply_drawn(
        batch.target_codes, batch.target_words, batch, replace(identity(1), bias=bias)
    )
    torch.testing.assert_close(doubled - plain.min(), 2 * (plain - plain.min()), rtol=1e-4, atol=1e-4)
    assert torch.equal(kept, words)


def test_appearance_is_drawn_for_each_view_and_only_where_wanted() -> None:
    batch, weak = drawn_batch(), ViewAugmentation()
    wanted = replace(weak, curve_probability=1.0, bias_probability=1.0)
    first, second = (draw(wanted, [np.random.default_rng(seed)]) for seed in (1, 2))
    assert not torch.equal(first.curve, second.curve)
    assert not torch.equal(first.bias, second.bias)
    assert same(
        draw(weak, [np.random.default_rng(1)]),
        draw(replace(wanted, curve_probability=0.0, bias_probability=0.0), [np.random.default_rng(1)]),
    )
    old = {field.name for field in fields(first)} - {"curve", "bias"}
    before = draw(weak, [np.random.default_rng(1)])
    assert all(torch.equal(getattr(first, name), getattr(before, name)) for name in old)
    views = augment(batch, AugmentationConfig(reference=wanted, target=wanted))
    assert torch.isfinite(views.reference).all()
    assert torch.isfinite(views.target).all()
