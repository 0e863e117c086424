"""Samples against the store they were read from: every voxel of every mask, and what is missing is said."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from storage import Store, commit_scan, create_store, finish, open_store
from storage.layout import INDEX_FILE
from tests.storage.drawn_record import differently, draw_record
from training.data.boxes import Box, overlap_fraction
from training.data.sample_reader import Sample, SampleReader
from training.data.sampling import DataConfig
from training.errors import DataError

SHAPES = {"large": (70, 50, 90), "flat": (8, 25, 41), "tiny": (6, 21, 22), "thin": (21, 22, 5)}
CONFIG = DataConfig(
    crop_voxels=(16, 24, 20),
    cut_voxels=(22, 24, 26),
    masks_per_sample=4,
    min_mask_voxels=10,
    max_mask_fraction=1.0,
)


def make_store(folder: Path) -> Store:
    create_store(folder, spacing_mm=1.5, config={})
    for number, (name, shape) in enumerate(SHAPES.items()):
        record = draw_record(name, shape=shape, seed=number, layers=1 + number % 2)
        commit_scan(folder, replace(record, dataset=f"of {name}"))
    finish(folder)
    return open_store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("samples") / "store")


def reader_of(store: Store, *scan_ids: str, seed: int = 3, **changes: object) -> SampleReader:
    ids = scan_ids or store.scan_ids
    return SampleReader(store.path, ids, replace(CONFIG, **changes), seed=seed)


def padded(volume: np.ndarray, view: Box, margin: tuple[int, int, int], value: float) -> np.ndarray:
    """What a cut must hold, voxel by voxel: the volume with a wide border, cut by plain slicing."""
    wide = 64
    around = np.pad(volume, [(0, 0)] * (volume.ndim - 3) + [(wide, wide)] * 3, constant_values=value)
    cut = view.grow(margin)
    return around[(..., *(slice(a + wide, b + wide) for a, b in zip(cut.start, cut.stop, strict=True)))]


def same_sample(first: Sample, second: Sample) -> bool:
    arrays = zip(first.cuts + first.words, second.cuts + second.words, strict=True)
    return (first.scan_id, first.views, first.masks) == (second.scan_id, second.views, second.masks) and all(
        np.array_equal(a, b) for a, b in arrays
    )


@settings(max_examples=40)
@given(index=st.integers(0, 2**40))
def test_words_and_codes_are_the_stores(store: Store, index: int) -> None:
    sample = reader_of(store).read(index)
    scan = store.scan(sample.scan_id)
    masks = scan.masks(list(sample.masks))
    low = (scan.intensity.low - scan.intensity.mean) / scan.intensity.std
    for view, codes, words in zip(sample.views, sample.cuts, sample.words, strict=True):
        for bit, mask in enumerate(masks):
            np.testing.assert_array_equal(words >> bit & 1, padded(mask, view, CONFIG.margin_zyx, 0))
        assert (words >> len(masks) == 0).all()
        z_scores = codes * sample.scale + sample.offset
        expected = padded(scan.image(normalize=True), view, CONFIG.margin_zyx, low)
        np.testing.assert_allclose(z_scores, expected, atol=0.51 * sample.scale)


@settings(max_examples=40)
@given(index=st.integers(0, 2**40))
def test_every_mask_is_visible_in_both_views(store: Store, index: int) -> None:
    sample = reader_of(store).read(index)
    for mask in store.scan(sample.scan_id).masks(list(sample.masks)):
        for view in sample.views:
            assert padded(mask, view, (0, 0, 0), 0).sum() >= CONFIG.min_mask_voxels
    assert overlap_fraction(*sample.views) >= CONFIG.min_view_overlap - 1e-6


def test_a_mask_that_covers_the_view_says_no_more_than_all_ones(store: Store) -> None:
    everything = int(np.argmax(store.scan("tiny").proposals.voxels))  # its whole scan
    allowed = reader_of(store, "tiny", masks_per_sample=16)
    assert all(everything in allowed.read(index).masks for index in range(5))
    refused = reader_of(store, "tiny", masks_per_sample=16, max_mask_fraction=0.9)
    assert not any(everything in refused.read(index).masks for index in range(5))


def test_too_few_masks_are_repeated_so_that_k_stays_the_same(store: Store) -> None:
    sample = reader_of(store, "flat", masks_per_sample=16).read(5)
    kinds = len(set(sample.masks))
    assert len(sample.masks) == 15
    assert 1 <= kinds <= len(store.scan("flat").proposals) < 15
    assert sample.masks == (sample.masks[:kinds] * 15)[:15]


def test_a_sample_depends_on_the_seed_and_its_index_only(store: Store) -> None:
    reader = reader_of(store)
    first = [reader.read(index) for index in range(6)]
    other = pickle.loads(pickle.dumps(reader))
    for index in (4, 2, 5):
        assert same_sample(other.read(index), first[index])
    assert not same_sample(reader_of(store, seed=4).read(2), first[2])
    assert len({(sample.scan_id, sample.views) for sample in first}) > 3


def test_no_visible_mask_anywhere_names_the_scans_and_what_to_change(store: Store) -> None:
    with pytest.raises(DataError, match=r"sample 8: .* at least 9999999 voxels .* flat.* Lower min_mask"):
        reader_of(store, "flat", "tiny", min_mask_voxels=9_999_999).read(8)


def test_a_damaged_scan_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    reader = reader_of(store, "flat")
    reader.read(0)
    path = store.scan("flat").path / "0" / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"sample 1 needs scan flat.*checksum[\s\S]*resume.*exclude"):
        reader.read(1)


def test_a_vanished_scan_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    seen, unseen = reader_of(store, "tiny"), reader_of(store, "tiny")
    seen.read(0)
    shutil.rmtree(store.scan("tiny").path)
    for reader in (seen, unseen):
        with pytest.raises(DataError, match=r"sample 1 needs scan tiny.*missing"):
            reader.read(1)


def test_a_scan_replaced_while_training_is_an_error_not_another_sample(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    seen, unseen = reader_of(store, "thin"), reader_of(store, "thin")
    seen.read(0)
    record = differently(draw_record("thin", shape=SHAPES["thin"], seed=3))
    commit_scan(store.path, record, replace=True)
    with pytest.raises(DataError, match=r"sample 1 needs scan thin.*replaced"):
        seen.read(1)
    with pytest.raises(DataError, match=r"sample 1 needs scan thin.*replaced since the run began"):
        unseen.read(1)


def test_a_scan_added_while_training_changes_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    unseen, before = reader_of(store), reader_of(store).read(3)
    commit_scan(store.path, draw_record("added", shape=SHAPES["flat"]))
    assert same_sample(unseen.read(3), before)


def test_a_run_whose_scan_left_the_index_says_so(store: Store) -> None:
    with pytest.raises(DataError, match="scan 'gone': the run trains on it"):
        reader_of(store, "flat", "gone")


def test_a_worker_reads_the_same_samples_without_the_index(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    reader = reader_of(store)
    sent = pickle.dumps(reader)
    (store.path / INDEX_FILE).write_bytes(b"")
    assert same_sample(pickle.loads(sent).read(3), reader.read(3))
