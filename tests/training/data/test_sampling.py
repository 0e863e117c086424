"""Which scans and masks are drawn: by weight, balanced, and counted to the voxel."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from storage import IndexEntry, Proposals, ScanRecord
from tests.storage.drawn_record import SMALL, draw_record, record_masks
from training.data.boxes import Box, whole
from training.data.sampling import (
    DataConfig,
    ScanChoice,
    candidates,
    cases_in_turn,
    draw_masks,
    generator_of,
    make_choice,
    of_other_cases,
    split_scans,
    visible_voxels,
)
from training.errors import ConfigError, DataError

RECORD = draw_record(shape=SMALL)


def entry(scan_id: str, dataset: str = "a", split: str = "train", case: str = "") -> IndexEntry:
    return IndexEntry(
        scan_id=scan_id,
        shape_zyx=(9, 9, 9),
        spacing_zyx_mm=(1.5, 1.5, 1.5),
        modality="ct",
        dataset=dataset,
        split=split,
        num_proposals=3,
        labels=(),
        digests={},
        digest=f"of {scan_id}",
        case=case,
    )


def entries(*made: IndexEntry) -> dict[str, IndexEntry]:
    return {one.scan_id: one for one in made}


def proposals_of(record: ScanRecord) -> Proposals:
    counts = [len(orders) for orders in record.orders]
    return Proposals(
        table=record.table,
        scores=record.scores,
        sources=record.sources,
        layer_of_order=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )


corners = st.tuples(*[st.tuples(st.integers(0, size - 1), st.integers(1, size)) for size in SMALL])


@given(corners=corners)
def test_visible_voxels_are_those_of_the_masks_in_each_view(corners) -> None:
    start, stop = zip(*[(min(a, b - 1), b) for a, b in corners], strict=True)
    views = (Box(start=start, stop=stop), Box(start=(0, 3, 5), stop=(7, 25, 40)))
    counts = [
        sum(
            np.bincount(atoms[view.slices].ravel(), minlength=65_536) << shift
            for view, shift in zip(views, (0, 32), strict=True)
        )
        for atoms in RECORD.atoms
    ]
    ids = np.arange(len(RECORD.table))
    found = visible_voxels(ids, proposals_of(RECORD), RECORD.orders, counts)
    masks = record_masks(RECORD)
    expected = [masks[(slice(None), *view.slices)].sum(axis=(1, 2, 3)) for view in views]
    np.testing.assert_array_equal(found, expected)


def test_voxels_are_counted_in_every_layer_or_not_at_all() -> None:
    count = np.zeros(65_536, np.int64)
    with pytest.raises(ValueError, match="shorter"):
        visible_voxels(np.arange(2), proposals_of(RECORD), RECORD.orders, [count])


@given(corners=corners, least=st.integers(1, 400))
def test_the_filter_by_boxes_loses_no_visible_mask(corners, least) -> None:
    start, stop = zip(*[(min(a, b - 1), b) for a, b in corners], strict=True)
    views = (Box(start=start, stop=stop), whole(SMALL))
    masks = record_masks(RECORD)
    visible = np.all([masks[(slice(None), *v.slices)].sum(axis=(1, 2, 3)) >= least for v in views], axis=0)
    assert set(np.flatnonzero(visible)) <= set(candidates(proposals_of(RECORD), views, least))


def test_the_filter_by_boxes_drops_what_cannot_be_seen() -> None:
    # A thin plate at z 3..6, y 1..3, x 20..41: 126 voxels, 6 of them at x < 21.
    plate = [tuple(row[:3]) for row in RECORD.table.tolist()].index((2, 1, 2))
    view = Box(start=(0, 0, 0), stop=(8, 25, 21))
    assert plate in candidates(proposals_of(RECORD), [view], 6)
    assert plate not in candidates(proposals_of(RECORD), [view], 7)
    assert plate in candidates(proposals_of(RECORD), [whole(SMALL)], 126)
    assert plate not in candidates(proposals_of(RECORD), [whole(SMALL)], 127)
    for stop in ((8, 25, 20), (8, 1, 20), (3, 1, 41)):  # apart along one axis, and along two
        assert plate not in candidates(proposals_of(RECORD), [Box(start=(0, 0, 0), stop=stop)], 1)


def test_masks_are_balanced_over_octaves_then_sources() -> None:
    # One octave has a hundred masks of one source and one of another, another octave has one mask.
    voxels = np.array([40] * 100 + [41] + [5000])
    sources = np.array([0] * 100 + [1] + [0], dtype=np.int32)
    generator = np.random.default_rng(0)
    drawn = Counter(int(draw_masks(voxels, sources, 1, generator)[0]) for _ in range(4000))
    assert drawn[101] / 4000 == pytest.approx(1 / 2, abs=0.03)
    assert drawn[100] / 4000 == pytest.approx(1 / 4, abs=0.03)


@given(count=st.integers(1, 20), num=st.integers(1, 30), seed=st.integers(0, 999))
def test_no_mask_is_drawn_twice(count, num, seed) -> None:
    generator = np.random.default_rng(seed)
    drawn = draw_masks(
        generator.integers(1, 10**6, num), generator.integers(0, 5, num, dtype=np.int32), count, generator
    )
    assert len(drawn) == len(set(drawn.tolist())) == min(count, num)


def test_data_sets_are_drawn_by_their_weight() -> None:
    made = [entry(f"a{k}", "a") for k in range(9)] + [entry("b0", "b"), entry("c0", "c")]
    generator = np.random.default_rng(0)
    choice = make_choice(made, {"a": 1.0, "b": 3.0, "c": 0.0})
    drawn = Counter(choice.draw(generator)[0] for _ in range(4000))
    assert drawn["b"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn["c"] == 0
    plain = make_choice(made, {})
    drawn = Counter(plain.draw(generator) for _ in range(4400))
    assert len(drawn) == 11
    assert min(drawn.values()) > 300


def test_a_data_set_of_weight_0_has_no_scan_to_draw() -> None:
    made = [entry("a1", "a"), entry("a0", "a"), entry("b0", "b"), entry("c0", "c")]
    choice = make_choice(made, {"a": 0.5, "b": 0.0, "c": 0.5})
    assert choice == ScanChoice(scan_ids=(("a0", "a1"), ("c0",)), cumulative=(0.5, 1.0))


def test_probabilities_that_round_to_less_than_1_still_give_a_scan_of_the_last_data_set() -> None:
    choice = ScanChoice(scan_ids=(("a",), ("b",)), cumulative=(0.0, 0.0))
    assert choice.draw(np.random.default_rng(0)) == "b"


def test_a_choice_among_no_scans_is_refused() -> None:
    with pytest.raises(DataError, match="no scans to draw from"):
        make_choice([], {})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "bb": 1.0}, "data set 'bb': no scan is of it; did you mean 'b'"),
        ({"a": 1.0}, "data set 'b': it has scans but no weight"),
    ],
)
def test_weights_and_data_sets_must_name_each_other(weights, message) -> None:
    with pytest.raises(DataError, match=message):
        make_choice([entry("1", "a"), entry("2", "b")], weights)


def test_scans_are_left_out_and_held_out_by_id_alone() -> None:
    known = entries(*[entry(f"s{k}") for k in range(400)], entry("t", split="test"))
    config = DataConfig(splits=("train",), exclude=("s7",), holdout_fraction=0.25)
    split = split_scans(known, config)
    assert "t" not in split.training + split.holdout
    assert "s7" not in split.training + split.holdout
    assert len(split.training) + len(split.holdout) == 399
    assert 60 < len(split.holdout) < 140
    fewer = split_scans({name: one for name, one in known.items() if name != split.training[0]}, config)
    assert fewer.holdout == split.holdout


def test_the_hash_that_holds_a_scan_out_stays_the_same_in_every_version() -> None:
    # A scan that was held out of a training must never be trained on after an update.
    share = int.from_bytes(hashlib.sha256(b"s7").digest()[8:16], "big") / 2**64
    known = entries(entry("s7"), entry("t"))
    assert split_scans(known, DataConfig(holdout_fraction=np.nextafter(share, 1))).holdout == ("s7",)
    assert "s7" in split_scans(known, DataConfig(holdout_fraction=share)).training


def test_a_case_is_held_out_as_a_whole_and_scans_without_one_as_before() -> None:
    alone = entries(*[entry(f"s{k}") for k in range(200)])
    of_cases = entries(*[entry(f"p{k}_{c}", case=f"p{k}") for k in range(100) for c in ("t1", "t2", "flair")])
    config = DataConfig(holdout_fraction=0.3)
    split = split_scans(alone | of_cases, config)
    cases = [{name.split("_")[0] for name in part if "_" in name} for part in (split.training, split.holdout)]
    assert cases[0].isdisjoint(cases[1])
    assert min(map(len, cases)) > 15
    assert [name for name in split.holdout if "_" not in name] == list(split_scans(alone, config).holdout)


def test_scans_in_turn_begin_with_one_of_each_case() -> None:
    known = entries(entry("a1", case="a"), entry("a2", case="a"), entry("b"), entry("c1", case="c"))
    assert cases_in_turn(["a2", "a1", "c1", "b"], known) == ["a2", "c1", "b", "a1"]
    assert of_other_cases(["a2", "b", "c1"], ["a1", "b"], known) == ["c1"]


def test_no_scan_left_says_why() -> None:
    with pytest.raises(DataError, match=r"the store has 0 scans \(splits no scans\)"):
        split_scans({}, DataConfig())
    with pytest.raises(DataError, match=r"splits 'train'.*leave 0"):
        split_scans(entries(entry("a")), DataConfig(splits=("tarin",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut_voxels": 127}, "even number or none"),
        ({"crop_voxels": (32, 48, 33), "cut_voxels": (32, 48, 34)}, "even number or none"),
        ({"crop_voxels": 0}, "even number or none"),
        ({"crop_voxels": 130, "cut_voxels": 128}, "even number or none"),
        ({"masks_per_sample": 1}, "masks_per_sample must be 2 to 16"),
        ({"masks_per_sample": 17}, "masks_per_sample must be 2 to 16"),
        ({"max_window_voxels": -1}, "max_window_voxels must be 0 or more"),
        ({"whole_fraction": -0.1}, "whole_fraction must be 0 to 1"),
        ({"min_view_overlap": 1.2}, "min_view_overlap must be 0 to 1"),
        ({"min_mask_voxels": 0}, "min_mask_voxels must be at least 1"),
        ({"dataset_weights": {"a": 0.0}}, "not all 0"),
        ({"dataset_weights": {"a": 2.0, "b": -1.0}}, "dataset_weights must be >= 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(DataConfig(), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_voxels": 1, "cut_voxels": 1},
        {"masks_per_sample": 2},
        {"masks_per_sample": 16},
        {"min_mask_voxels": 1},
        {"min_view_overlap": 0.0, "wide_fraction": 1.0},
        {"dataset_weights": {"a": 0.5, "b": 0.0}},
    ],
)
def test_the_ends_of_a_setting_are_allowed(change) -> None:
    for name, value in change.items():
        assert getattr(replace(DataConfig(), **change), name) == value


def test_the_margin_is_what_a_cut_has_beyond_its_crop_on_each_side() -> None:
    config = DataConfig(crop_voxels=(16, 32, 48), cut_voxels=(16, 36, 58))
    assert config.margin_zyx == (0, 2, 5)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63), sample=st.integers(0, 2**40))
def test_streams_of_a_sample_differ(seed, sample) -> None:
    drawn = {
        generator_of(*where).integers(2**63)
        for where in [
            (seed, sample, "scan"),
            (seed, sample, "target"),
            (seed, sample + 1, "scan"),
            (seed + 1, sample, "scan"),
        ]
    }
    assert len(drawn) == 4
