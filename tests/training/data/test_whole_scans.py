"""Views of whole scans: where they lie, what is read for them, and the way to a window and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from storage import Store
from training.data.boxes import Box
from training.data.sample_reader import SampleReader
from training.data.sampling import DataConfig
from training.data.whole_scans import (
    ScanView,
    draw_scan_views,
    from_window,
    labels_to_window,
    sample_linear,
    sample_nearest,
    to_window,
    visible_box,
    whole_view,
    window_for,
)
from training.data.windows import box_of_mask
from training.errors import ConfigError, DataError
from training.inference.prediction import predict_labels
from training.inference.prompts import InferenceConfig, Reference, Structure, encode_references
from training.network.preparation import TrainedOn
from training.pretraining.config import PretrainConfig, recipe, small
from training.pretraining.run import with_chosen_window

WINDOW = (16, 32, 16)
WHOLE = DataConfig(
    crop_voxels=WINDOW, cut_voxels=(24, 44, 24), masks_per_sample=5, min_mask_voxels=10, whole_fraction=1.0
)


def reader(store: Store, config: DataConfig, seed: int = 0) -> SampleReader:
    ids = store.scan_ids
    return SampleReader(store.path, ids, config, seed=seed)


@given(shape=st.tuples(*[st.integers(1, 40)] * 3), window=st.tuples(*[st.sampled_from([4, 16, 32])] * 3))
def test_a_linear_image_comes_back_from_its_window(
    shape: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    image = (2.0 * z - y + 0.5 * x).astype(np.float32)
    back = from_window(to_window(image, window), shape)
    assert back.shape == shape
    # Edges beyond the outermost centres of window voxels are flat; inside nothing is lost.
    inner = tuple(
        slice(int(np.ceil(1.5 * n / w)) + 1, n - int(np.ceil(1.5 * n / w)) - 1)
        for n, w in zip(shape, window, strict=True)
    )
    np.testing.assert_allclose(back[inner], image[inner], rtol=0, atol=1e-3 * max(shape))


def test_a_view_of_a_part_comes_back_where_it_was_and_reads_no_more_than_it_shows() -> None:
    shape, view = (40, 60, 50), ScanView(start=(8.5, -6.0, 20.0), size=(20.0, 40.0, 16.0))
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    image = (2.0 * z - y + 0.5 * x).astype(np.float32)
    values = to_window(image, (16, 16, 16), view)
    box = visible_box(view, shape)
    assert box == Box(start=(9, 0, 20), stop=(28, 34, 36))
    back = from_window(values, shape, view)
    assert back.shape == box.shape
    inner = (slice(2, -2), slice(4, -3), slice(1, -1))
    np.testing.assert_allclose(back[inner], image[box.slices][inner], rtol=0, atol=1e-3)
    image[:, 40:59] = 1e6  # beyond the view and its interpolation; the lowest value stays
    np.testing.assert_array_equal(to_window(image, (16, 16, 16), view), values)


@given(shape=st.tuples(*[st.integers(1, 50)] * 3))
def test_labels_in_a_window_are_those_of_the_nearest_voxel(shape: tuple[int, int, int]) -> None:
    labels = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    found = labels_to_window(labels, (8, 8, 8))
    z, y, x = np.unravel_index(found, shape)
    for places, count, axis in ((z, shape[0], 0), (y, shape[1], 1), (x, shape[2], 2)):
        centres = (np.arange(8) + 0.5) * count / 8 - 0.5
        apart = np.abs(np.moveaxis(places, axis, -1) - centres)
        assert (apart <= 0.5 + 1e-9).all()


def test_what_lies_outside_is_filled_and_not_interpolated_with_the_edge() -> None:
    image = np.full((4, 4, 4), 7.0, np.float32)
    places = [np.array([-0.6, -0.4, 1.5, 3.4, 3.6])] * 3
    line = sample_linear(image, places, fill=-1.0)[:, 2, 2]
    np.testing.assert_array_equal(line, [-1, 7, 7, 7, -1])
    inside = sample_nearest(image.astype(np.uint8), places, fill=9)[:, 2, 2]
    np.testing.assert_array_equal(inside, [9, 7, 7, 7, 9])


def test_a_cut_has_its_view_in_the_middle() -> None:
    view = ScanView(start=(2.0, -4.0, 0.0), size=(8.0, 16.0, 8.0))
    cut = view.grown((4, 8, 4), (8, 12, 4))
    inner = [
        places[(len(places) - n) // 2 :][:n]
        for places, n in zip(cut.positions((8, 12, 4), (1, 2, 1)), (4, 8, 4), strict=True)
    ]
    for own, wanted in zip(inner, view.positions((4, 8, 4), (1, 2, 1)), strict=True):
        np.testing.assert_allclose(own, wanted)


def test_reference_and_target_are_moved_one_without_the_other_and_no_further_than_asked() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        draw_scan_views((20, 40, 60), max_move=0.15, wide_fraction=0.0, generator=generator)
        for _ in range(200)
    ]
    moves = np.array([[np.divide(view.start, (20, 40, 60)) for view in pair] for pair in pairs])
    assert np.abs(moves[..., 0]).max() <= 0.075
    assert 0.13 < np.abs(moves[..., 1:]).max() <= 0.15
    assert all(view.size == (20, 40, 60) for pair in pairs for view in pair)
    correlation = np.corrcoef(moves[:, 0, 1], moves[:, 1, 1])[0, 1]
    assert abs(correlation) < 0.25


def test_wide_views_are_of_any_part_and_scale() -> None:
    generator = np.random.default_rng(0)
    views = [
        view
        for _ in range(300)
        for view in draw_scan_views((20, 40, 60), max_move=0.15, wide_fraction=1.0, generator=generator)
    ]
    scales = np.array([np.divide(view.size, (20, 40, 60)) for view in views])
    assert 0.4 <= scales.min() < 0.5
    assert 1.2 < scales.max() <= 1.3
    centres = np.array([np.add(view.start, np.divide(view.size, 2)) / (20, 40, 60) for view in views])
    assert centres.min() < 0.05
    assert centres.max() > 0.95


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((33, 128, 108), (16, 64, 64)), ((70, 70, 70), (32, 32, 64)), ((35, 50, 35), (32, 64, 32))],
)
def test_the_window_suits_the_scans(shape: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    window = window_for([shape], 65_536)
    assert np.prod(window) <= 65_536
    assert (np.array(shape) / window).max() <= (np.array(shape) / wanted).max()


def test_a_window_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(DataError, match="at least 4096"):
        window_for([(10, 10, 10)], 4095)


def test_a_sample_of_a_whole_scan_shows_its_masks_where_they_are(phantom_store: Store) -> None:
    """Where nothing is moved, the cut's middle is the scan at the window's voxels, masks included."""
    config = dataclasses.replace(WHOLE, whole_move_fraction=0.0)
    sample = reader(phantom_store, config).read(0)
    scan = phantom_store.scan(sample.scan_id)
    middle = tuple(slice((c - w) // 2, (c + w) // 2) for c, w in zip((24, 44, 24), WINDOW, strict=True))
    words = sample.words[0][middle]
    assert words.shape == WINDOW
    factors = scan.level_for([2 * n for n in WINDOW]).factors_zyx
    for bit, proposal in enumerate(sample.masks):
        mask = scan.masks([proposal], level=scan.level_for([2 * n for n in WINDOW]))[0]
        wanted = sample_nearest(mask, whole_view(scan.shape).positions(WINDOW, factors))
        np.testing.assert_array_equal((words >> bit) & 1, wanted)
        assert wanted.sum() >= config.min_mask_voxels
    shown = sample.cuts[0][middle] * sample.scale + sample.offset
    np.testing.assert_allclose(shown, to_window(scan.image(normalize=True), WINDOW), rtol=0, atol=0.05)


def test_samples_of_whole_scans_are_the_same_every_time_and_differ_from_each_other(
    phantom_store: Store,
) -> None:
    config = dataclasses.replace(WHOLE, wide_fraction=0.5, whole_fraction=0.7)
    first, again = reader(phantom_store, config), reader(phantom_store, config)
    again.read(3)
    for index in range(6):
        one, other = first.read(index), again.read(index)
        assert one.masks == other.masks
        for mine, theirs in zip((*one.cuts, *one.words), (*other.cuts, *other.words), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len({first.read(index).cuts[0].tobytes() for index in range(6)}) > 1


def test_a_share_of_none_leaves_the_samples_of_crops_as_they_were(phantom_store: Store) -> None:
    crops = dataclasses.replace(WHOLE, whole_fraction=0.0)
    wide = dataclasses.replace(crops, wide_fraction=1.0, whole_move_fraction=0.0)
    for index in range(3):
        one, other = reader(phantom_store, crops).read(index), reader(phantom_store, wide).read(index)
        np.testing.assert_array_equal(one.cuts[1], other.cuts[1])


def test_the_recipe_chooses_its_window_for_the_store_once() -> None:
    config = with_chosen_window(recipe("whole"), [(33, 128, 108)] * 3)
    assert config.data.crop_zyx == (16, 64, 64)
    assert config.evaluation.inference.window_voxels == (16, 64, 64)
    assert config.evaluation.inference.whole_scans
    assert with_chosen_window(config, [(33, 128, 108)] * 3) == config
    assert with_chosen_window(small(), [(33, 128, 108)]) == small()


def test_the_published_and_the_small_recipe_show_no_whole_scans() -> None:
    assert PretrainConfig().data.whole_fraction == small().data.whole_fraction == 0
    assert recipe("whole").data.whole_fraction == 1


@pytest.mark.parametrize("name", ["whole_fraction", "wide_fraction", "whole_move_fraction"])
def test_a_share_beyond_all_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        DataConfig(**{name: 1.5})  # type: ignore[arg-type]


def test_whether_whole_scans_were_shown_is_kept_with_the_weights() -> None:
    shown = TrainedOn(spacing_mm=3.0, crop_voxels=(16, 64, 64), whole_scans=True)
    assert TrainedOn.from_json(shown.to_json()) == shown
    before = TrainedOn(spacing_mm=3.0, crop_voxels=(16, 64, 64)).to_json()
    assert "whole_scans" not in before
    loaded = TrainedOn.from_json(before)
    assert loaded is not None
    assert not loaded.whole_scans


class _Echo:
    """A network whose answer is the reference's mask at the same place."""

    def encode(self, image):  # type: ignore[no-untyped-def]
        return (image,)

    def encode_tasks(self, features, masks):  # type: ignore[no-untyped-def]
        return (masks[:, :, None, None].float().flatten(2)[:, :, None],)

    def decode(self, features, priors):  # type: ignore[no-untyped-def]
        batch, count = priors[0].shape[:2]
        return (priors[0].reshape(batch, count, *features[0].shape[2:]) - 0.5) * 20


def test_a_structure_is_drawn_on_the_targets_own_grid() -> None:
    labels = np.zeros((20, 50, 40), np.uint8)
    labels[6:14, 10:30, 8:24] = 3
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    config = InferenceConfig(window_voxels=(16, 48, 32), whole_scans=True, precision="float32")
    prompt = encode_references(
        _Echo(),  # type: ignore[arg-type]
        [Reference(image=image, labels=labels)],
        [Structure(name="box", values=(3,))],
        config,
    )
    target = np.zeros((40, 100, 80), np.float32)
    found = predict_labels(_Echo(), target, prompt, config)  # type: ignore[arg-type]
    assert found.shape == target.shape
    box = box_of_mask(found > 0)
    assert box is not None
    for part, wanted in zip(box, ((12, 28), (20, 60), (16, 48)), strict=True):
        assert abs(part.start - wanted[0]) <= 2
        assert abs(part.stop - wanted[1]) <= 2
