"""Samples of two patients against both scans in the store; pairs on disk that cannot be used are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import Store
from tests.training.phantom_store import make_phantom_store
from training.data import paired_samples
from training.data.boxes import whole
from training.data.region_pairs import (
    LEAST_REGIONS,
    RegionPairs,
    file_name,
    read_pair_table,
    read_pairs,
    write_pairs,
)
from training.data.sample_reader import KnownScans, Sample, SampleReader
from training.data.sampling import DataConfig
from training.data.whole_scans import ResampledCut, whole_view
from training.errors import ConfigError, DataError

WINDOW = (16, 32, 16)
CUT = (24, 44, 24)
CONFIG = DataConfig(
    crop_voxels=WINDOW, cut_voxels=CUT, masks_per_sample=5, min_mask_voxels=8, whole_fraction=1.0
)
FIRST, SECOND = "phantom-0", "phantom-1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_phantom_store(tmp_path_factory.mktemp("paired") / "store", num_scans=3)


def pairs_of(store: Store, reference: str = FIRST, target: str = SECOND, shift: int = 3) -> RegionPairs:
    """Proposals of two scans, with numbers of their own in each."""
    count = min(len(store.scan(reference).proposals), len(store.scan(target).proposals)) - shift
    return RegionPairs(
        reference=reference,
        target=target,
        digests=(store.entries[reference].digest, store.entries[target].digest),
        agreement=0.5,
        proposals=np.stack([np.arange(count), np.arange(count) + shift]).astype(np.int32),
        overlaps=np.full(count, 0.6, np.float32),
    )


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs", pairs_of(store))
    return tmp_path / "pairs"


def reader(store: Store, folder: Path | None, **changes: object) -> SampleReader:
    config = replace(
        CONFIG, **{"pairs": str(folder or ""), "pair_fraction": 1.0 if folder else 0.0, **changes}
    )
    ids = store.scan_ids
    return SampleReader(store.path, ids, config, seed=0)


def test_pairs_come_back_from_their_file_and_write_the_same_bytes(store: Store, tmp_path: Path) -> None:
    pairs = pairs_of(store)
    for name in ("a", "b"):
        write_pairs(tmp_path / name, pairs)
    first, second = (tmp_path / name / file_name(FIRST, SECOND) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    found = read_pairs(first)
    assert (found.reference, found.target, found.digests) == (FIRST, SECOND, pairs.digests)
    assert found.agreement == pairs.agreement
    np.testing.assert_array_equal(found.proposals, pairs.proposals)
    np.testing.assert_array_equal(found.overlaps, pairs.overlaps)


def test_a_paired_sample_shows_each_scan_with_its_own_masks(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole_views(shape: tuple[int, int, int], **_: object) -> tuple[object, object]:
        return whole_view(shape), whole_view(shape)

    monkeypatch.setattr(paired_samples, "draw_scan_views", whole_views)
    seen = set()
    for index in range(6):
        sample = reader(store, folder).read(index)
        first, second = (FIRST, SECOND) if sample.scan_id == FIRST else (SECOND, FIRST)
        step = 3 if first == FIRST else -3
        seen.add(first)
        proposals = (list(sample.masks), [mask + step for mask in sample.masks])
        for number, name in enumerate((first, second)):
            scan = store.scan(name)
            cut = ResampledCut(view=whole_view(scan.shape).grown(WINDOW, CUT), shape=CUT, factors=(1, 1, 1))
            whole_scan = cut.box.intersect(whole(scan.shape))
            for bit, mask in enumerate(scan.masks(proposals[number])):
                part = mask[whole_scan.slices].astype(np.int16)
                expected = cut.take(part, whole_scan, padding=0, image=False)
                np.testing.assert_array_equal(sample.words[number] >> bit & 1, expected)
            codes = scan.image_codes(whole_scan.slices)
            low = round((scan.intensity.low - scan.offset) / scan.scale)
            shown = cut.take(codes, whole_scan, padding=low, image=True).astype(np.float64)
            own = (scan.scale / scan.intensity.std, (scan.offset - scan.intensity.mean) / scan.intensity.std)
            expected_scores = shown * own[0] + own[1]
            found = sample.cuts[number] * sample.scale + sample.offset
            np.testing.assert_allclose(found, expected_scores, atol=0.51 * sample.scale + 1e-4)
    assert seen == {FIRST, SECOND}  # which of both is the reference is drawn


def test_the_same_index_gives_the_same_sample(store: Store, folder: Path) -> None:
    for index in range(5):
        first, second = (reader(store, folder).read(index) for _ in range(2))
        assert (first.scan_id, first.masks, first.views) == (second.scan_id, second.masks, second.views)
        for one, other in zip(first.cuts + first.words, second.cuts + second.words, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_part_of_the_samples_is_paired_and_without_pairs_none(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    true_draw = paired_samples.draw_paired_sample

    def noted(*arguments: object) -> Sample | None:
        drawn.append(1)
        return true_draw(*arguments)

    monkeypatch.setattr("training.data.sample_reader.draw_paired_sample", noted)
    some = reader(store, folder, pair_fraction=0.25)
    for index in range(60):
        some.read(index)
    assert 5 <= len(drawn) <= 26  # 15 of 60, within 3.2 standard deviations
    drawn.clear()
    plain = reader(store, None)
    for index in range(5):
        assert plain.read(index).scan_id in store.scan_ids
    assert not drawn


def test_a_folder_that_cannot_be_used_is_told(store: Store, tmp_path: Path) -> None:
    def table(folder: Path, ids: tuple[str, ...] = store.scan_ids) -> object:
        return read_pair_table(folder, KnownScans(store, ids).digests)

    with pytest.raises(DataError, match="mass pair STORE"):
        table(tmp_path / "none")
    old = replace(pairs_of(store), digests=("another", store.entries[SECOND].digest))
    write_pairs(tmp_path / "old", old)
    with pytest.raises(DataError, match="prepared anew since"):
        table(tmp_path / "old")
    few = pairs_of(store)
    few = replace(
        few, proposals=few.proposals[:, : LEAST_REGIONS - 1], overlaps=few.overlaps[: LEAST_REGIONS - 1]
    )
    write_pairs(tmp_path / "few", few)
    with pytest.raises(DataError, match="no pair of the training scans"):
        table(tmp_path / "few")
    write_pairs(tmp_path / "good", pairs_of(store))
    with pytest.raises(DataError, match="no pair of the training scans"):
        table(tmp_path / "good", (FIRST, "phantom-2"))  # the other scan is kept out


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "renamed"])
def test_a_damaged_file_is_named(store: Store, folder: Path, damage: str) -> None:
    path = folder / file_name(FIRST, SECOND)
    good = path.read_bytes()
    if damage == "renamed":
        path = path.rename(folder / file_name(FIRST, "phantom-2"))
    else:
        middle = good.index(b"proposals.npy") + 200
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        path.write_bytes({"cut": good[:-100], "flip": flipped, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"damaged .*mass pair"):
        read_pair_table(folder, KnownScans(store, store.scan_ids).digests)


def test_a_run_goes_on_with_the_pairs_that_it_began_with(store: Store, folder: Path) -> None:
    digest = read_pair_table(folder, KnownScans(store, store.scan_ids).digests).digest
    reader(store, folder, pairs_digest=digest).read(0)
    write_pairs(folder, pairs_of(store, SECOND, "phantom-2"))
    with pytest.raises(DataError, match="made anew since the run began"):
        reader(store, folder, pairs_digest=digest).read(0)


def test_pairs_are_for_views_of_whole_scans() -> None:
    with pytest.raises(ConfigError, match="--recipe whole"):
        DataConfig(pairs="PAIRS", pair_fraction=0.5)
    for changes in ({"pairs": "PAIRS"}, {"pair_fraction": 0.5}, {"pairs": "PAIRS", "pair_fraction": 1.5}):
        with pytest.raises(ConfigError, match="pair_fraction"):
            replace(CONFIG, **changes)
