"""Samples of labelled scans: what is in the crop is what is in the store, whoever reads it and whenever."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage import Store
from training.data.augmentation import ViewAugmentation
from training.data.loader import Share
from training.errors import ConfigError
from training.finetuning.labelled_samples import (
    LabelledDataConfig,
    LabelReader,
    augment_labelled,
    box_anywhere,
    box_around,
    make_labelled_loader,
)
from training.finetuning.scans import find_structures
from training.inference.prompts import Structure

CONFIG = LabelledDataConfig(crop_voxels=32, cut_voxels=36)


def reader(store: Store, config: LabelledDataConfig = CONFIG, *, values: tuple[int, ...] = ()) -> LabelReader:
    structures = find_structures(store, "structures", store.scan_ids, values)
    return LabelReader(store.path, store.scan_ids, "structures", structures, config, seed=0)


def test_words_are_the_labels_and_codes_the_image_of_the_crop(phantom_store: Store) -> None:
    read = reader(phantom_store)
    seen = set()
    for index in range(8):
        sample = read.read(index)
        scan = phantom_store.scan(sample.scan_id)
        low = [max(0, start) for start in sample.crop.start]
        high = [min(stop, size) for stop, size in zip(sample.crop.stop, scan.shape, strict=True)]
        region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        labels = scan.labels("structures", region)
        corner = [a - start + 2 for a, start in zip(low, sample.crop.start, strict=True)]  # margin of the cut
        inside = tuple(slice(c, c + n) for c, n in zip(corner, labels.shape, strict=True))
        for bit, structure in enumerate(sample.structures):
            drawn = (sample.words[inside] >> bit) & 1
            np.testing.assert_array_equal(drawn, labels == structure + 1)
        z_scores = sample.codes[inside] * sample.scale + sample.offset
        np.testing.assert_allclose(z_scores, scan.image(region, normalize=True), atol=1e-4)
        seen.add(sample.scan_id)
    assert len(seen) > 1


def test_a_sample_is_the_same_in_every_process_and_differs_from_the_next(phantom_store: Store) -> None:
    first, second = (list(batches(phantom_store, workers=workers)) for workers in (0, 2))
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        assert one.scan_ids == other.scan_ids
        for name in ("codes", "words", "structures", "scale", "offset", "padding_codes", "sample_indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(first[0].codes, first[1].codes)


def batches(store: Store, *, workers: int):
    share = Share(first_sample=0, num_samples=4, batch_size=2)
    return make_labelled_loader(reader(store), CONFIG, share, seed=0, num_workers=workers)


def test_a_crop_laid_around_foreground_shows_some(phantom_store: Store) -> None:
    small = LabelledDataConfig(crop_voxels=16, cut_voxels=16, foreground_fraction=1.0)
    samples = [reader(phantom_store, small, values=(2,)).read(index) for index in range(12)]
    assert all(sample.words.any() for sample in samples)
    anywhere = LabelledDataConfig(crop_voxels=16, cut_voxels=16, foreground_fraction=0.0)
    others = [reader(phantom_store, anywhere, values=(2,)).read(index) for index in range(12)]
    assert not all(sample.words.any() for sample in others)


def test_of_many_structures_a_sample_draws_some_and_the_one_in_its_middle(phantom_store: Store) -> None:
    config = LabelledDataConfig(crop_voxels=16, cut_voxels=16, foreground_fraction=1.0, structures_at_once=2)
    drawn = [reader(phantom_store, config).read(index) for index in range(16)]
    assert all(len(sample.structures) == 2 and sample.words.any() for sample in drawn)
    assert {k for sample in drawn for k in sample.structures} == {0, 1, 2, 3, 4}


def test_an_unchanged_view_is_the_middle_of_the_cut(phantom_store: Store) -> None:
    (batch, _) = batches(phantom_store, workers=0)
    plain = ViewAugmentation(affine_probability=0.0, intensity_probability=0.0)
    views = augment_labelled(batch, plain)
    assert views.image.shape == (2, 1, 32, 32, 32)
    assert views.masks.shape == (2, 5, 32, 32, 32)
    words = batch.words[:, 2:-2, 2:-2, 2:-2]
    for bit in range(5):
        assert torch.equal(views.masks[:, bit], (words >> bit) & 1 == 1)
    warped = augment_labelled(batch, ViewAugmentation(affine_probability=1.0))
    assert not torch.equal(warped.masks, views.masks)
    again = augment_labelled(batch, ViewAugmentation(affine_probability=1.0))
    assert torch.equal(warped.image, again.image)


def test_crops_lie_in_the_scan_and_small_scans_in_the_crop() -> None:
    generator = np.random.default_rng(0)
    shape, crop = (40, 16, 20), (32, 32, 16)
    for _ in range(50):
        voxel = np.array([generator.integers(0, size) for size in shape], dtype=np.int16)
        for box in (
            box_around(voxel, shape, crop, generator.random(3)),
            box_anywhere(shape, crop, generator.random(3)),
        ):
            assert box.shape == crop
            for start, stop, size, side in zip(box.start, box.stop, shape, crop, strict=True):
                assert (start >= 0 and stop <= size) if size >= side else (start <= 0 and stop >= size)
        around = box_around(voxel, shape, crop, generator.random(3))
        assert all(a <= v < b for a, v, b in zip(around.start, voxel, around.stop, strict=True))


@pytest.mark.parametrize(
    "change",
    [{"crop_voxels": 24}, {"structures_at_once": 16}, {"foreground_fraction": 1.1}, {"cut_voxels": 31}],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        LabelledDataConfig(**({"crop_voxels": 32, "cut_voxels": 36} | change))


def test_structures_have_the_values_and_names_of_the_label_maps(phantom_store: Store) -> None:
    assert find_structures(phantom_store, "structures", phantom_store.scan_ids, (3, 1)) == (
        Structure(name="organ", values=(1,)),
        Structure(name="lung", values=(3,)),
    )
