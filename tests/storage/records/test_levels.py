from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from storage import InvalidSelection, Level, Scan, ScanRecord, commit_scan, create_store, open_store
from storage.records.levels import (
    FULL,
    Triple,
    coarse_boxes,
    coarse_shape,
    divides,
    downsample_image,
    downsample_labels,
    plan_levels,
    ratio,
    steps_to,
)
from storage.records.regions import Region
from tests.storage.drawn_record import draw_record, record_masks

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
FACTORS = st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3)


def blocks(array: np.ndarray, step: Triple) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """The blocks of an array continued by its last slice, by brute force."""
    padded = np.pad(array, [(0, -n % s) for n, s in zip(array.shape, step, strict=True)], mode="edge")
    places = product(*(range(n // s) for n, s in zip(padded.shape, step, strict=True)))
    return [
        (place, padded[tuple(slice(p * s, p * s + s) for p, s in zip(place, step, strict=True))])
        for place in places
    ]


def halvings(factors: Triple) -> list[Triple]:
    steps = []
    while max(factors) > 1:
        steps.append(tuple(min(f, 2) for f in factors))
        factors = tuple(max(f // 2, 1) for f in factors)
    return steps


@settings(max_examples=100)
@given(seed=st.integers(0, 99), shape=SHAPES, factors=FACTORS)
def test_a_coarse_code_is_the_mean_of_its_block_rounded_to_even(
    seed: int, shape: Triple, factors: Triple
) -> None:
    codes = np.random.default_rng(seed).integers(-32_768, 32_768, shape).astype(np.int16)
    expected = codes
    for step in halvings(factors):
        coarse = np.zeros(coarse_shape(expected.shape, step), np.int16)
        for place, block in blocks(expected, step):
            coarse[place] = np.rint(block.astype(np.float64).mean())
        expected = coarse
    found = downsample_image(codes, factors)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 99),
    shape=SHAPES,
    factors=FACTORS,
    dtype=st.sampled_from([np.uint8, np.uint16]),
    high=st.integers(1, 6),
)
def test_a_coarse_id_is_the_most_frequent_around_the_centre_of_its_block(
    seed: int, shape: Triple, factors: Triple, dtype: type, high: int
) -> None:
    top = np.iinfo(dtype).max
    ids = (top - np.random.default_rng(seed).integers(0, high, shape)).astype(dtype)
    expected = np.zeros(coarse_shape(shape, factors), dtype)
    for place, block in blocks(ids, factors):
        centre = block[tuple(slice(max(f // 2 - 1, 0), f // 2 + 1) for f in factors)]
        values, counts = np.unique(centre, return_counts=True)
        expected[place] = values[np.argmax(counts)]
    found = downsample_labels(ids, factors)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=200)
@given(
    shape=st.tuples(*[st.integers(1, 700)] * 3),
    window=st.tuples(*[st.integers(1, 130)] * 3),
)
def test_the_last_level_is_the_finest_that_fits_the_window(shape: Triple, window: Triple) -> None:
    plan = plan_levels(shape, window)
    assert plan[0] == FULL
    for finer, coarser in pairwise(plan):
        long = [n > w for n, w in zip(coarse_shape(shape, finer), window, strict=True)]
        assert ratio(finer, coarser) == tuple(2 if is_long else 1 for is_long in long)
    for size, factor, most in zip(shape, plan[-1], window, strict=True):
        assert -(-size // factor) <= most
        assert factor == 1 or -(-size // (factor // 2)) > most


def test_an_axis_no_longer_than_the_window_stays() -> None:
    assert plan_levels((33, 128, 108)) == ((1, 1, 1), (1, 2, 2))
    assert coarse_shape((33, 128, 108), (1, 2, 2)) == (33, 64, 54)
    assert plan_levels((64, 64, 64)) == ((1, 1, 1),)
    assert plan_levels((65, 64, 129)) == ((1, 1, 1), (2, 1, 2), (2, 1, 4))


@pytest.mark.parametrize(
    ("shape", "window"), [((0, 1, 1), (1, 1, 1)), ((1, 1, 1), (0, 1, 1)), ((1, 1), (1,))]
)
def test_sizes_that_are_none_are_refused(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three sizes"):
        plan_levels(shape, window)


def test_factors_must_be_powers_of_two() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        downsample_image(np.zeros((3, 3, 3), np.int16), (3, 1, 1))


@settings(max_examples=200)
@given(
    shape=st.tuples(*[st.integers(1, 700)] * 3), window=st.tuples(*[st.integers(1, 130)] * 3), data=st.data()
)
def test_the_way_to_a_level_is_the_same_whichever_levels_are_stored(
    shape: Triple, window: Triple, data: st.DataObject
) -> None:
    plan = plan_levels(shape)
    target = plan_levels(shape, window)[-1]
    averaged = data.draw(st.booleans())
    whole = steps_to(target, plan, [FULL], averaged=averaged)
    assert whole[0] == FULL
    assert whole[-1] == target
    assert all(divides(finer, coarser) for finer, coarser in pairwise(whole))
    stored = {FULL} | data.draw(st.sets(st.sampled_from(plan)))
    short = steps_to(target, plan, sorted(stored), averaged=averaged)
    assert short == whole[len(whole) - len(short) :]
    assert short[0] in stored


SHAPE = (70, 50, 150)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    path = tmp_path_factory.mktemp("levels") / "store"
    create_store(path, spacing_mm=1.5, config={})
    commit_scan(path, draw_record(shape=SHAPE))
    return open_store(path).scan("scan-1")


@pytest.fixture(scope="module")
def drawn() -> ScanRecord:
    return draw_record(shape=SHAPE)


@pytest.fixture(scope="module", params=[0, 1, 2, "small", "flat"])
def level(request: pytest.FixtureRequest, scan: Scan) -> Level:
    windows = {"small": (16, 32, 32), "flat": (64, 16, 160)}
    return scan.level_for(windows[request.param]) if request.param in windows else scan.level(request.param)


def coarse(array: np.ndarray, level: Level) -> np.ndarray:
    """An array of the drawn scan at a level, from level 0."""
    averaged = array.dtype == np.int16
    downsample = downsample_image if averaged else downsample_labels
    way = steps_to(level.factors_zyx, plan_levels(SHAPE), [FULL], averaged=averaged)
    for finer, coarser in pairwise(way):
        array = downsample(array, ratio(finer, coarser))
    return array


def regions(shape: tuple[int, ...]) -> st.SearchStrategy[Region]:
    axes = [
        st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ends: slice(*sorted(ends)))
        for size in shape
    ]
    return st.tuples(*axes)


def test_a_scan_tells_its_levels(scan: Scan) -> None:
    assert scan.num_levels == 3
    assert [level.shape_zyx for level in scan.levels] == [(70, 50, 150), (35, 50, 75), (35, 50, 38)]
    assert [level.factors_zyx for level in scan.levels] == [(1, 1, 1), (2, 1, 2), (2, 1, 4)]
    assert scan.level(2).spacing_zyx_mm == (4.0, 1.5, 5.0)
    assert scan.level(2).origin_zyx_mm == (1.0, 0.0, 1.875)
    assert scan.level(2).index == 2


def test_the_finest_level_that_fits_is_a_stored_one_where_there_is_one(scan: Scan) -> None:
    assert scan.level_for((70, 50, 150)) == scan.level(0)
    assert scan.level_for((64, 64, 64)) == scan.level(2)
    assert scan.level_for((64, 64, 80)) == scan.level(1)
    small = scan.level_for((32, 64, 64))
    assert (small.shape_zyx, small.factors_zyx, small.index) == ((18, 50, 38), (4, 1, 4), None)
    assert scan.level_for((64, 64, 160)).factors_zyx == (2, 1, 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_region_of_a_level_is_what_slicing_the_whole_gives(
    scan: Scan, drawn: ScanRecord, level: Level, data: st.DataObject
) -> None:
    region = data.draw(regions(level.shape_zyx))
    np.testing.assert_array_equal(scan.image_codes(region, level=level), coarse(drawn.image, level)[region])
    atoms = [coarse(layer, level) for layer in drawn.atoms]
    for layer in range(2):
        np.testing.assert_array_equal(scan.atoms(layer, region, level=level), atoms[layer][region])
    labels = scan.labels("organs", region, level=level)
    np.testing.assert_array_equal(labels, coarse(drawn.labels[0].array, level)[region])
    real = scan.image(region, level=level)
    np.testing.assert_array_equal(real, scan.image_codes(region, level=level) * np.float32(0.5) - 3)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ids=st.lists(st.integers(0, 6), max_size=16))
def test_a_mask_at_a_level_is_the_union_of_its_atoms_there(
    scan: Scan, drawn: ScanRecord, level: Level, data: st.DataObject, ids: list[int]
) -> None:
    region = data.draw(regions(level.shape_zyx))
    at_level = tuple(coarse(layer, level) for layer in drawn.atoms)
    rows = [(layer, row) for layer, some in enumerate(drawn.orders) for row in some]
    masks = []
    for order, start, stop in drawn.table[:, :3]:
        layer, row = rows[order]
        masks.append(np.isin(at_level[layer], row[start:stop]))
    truth = np.stack(masks)
    np.testing.assert_array_equal(scan.masks(ids, region, level=level), truth[ids][(slice(None), *region)])
    np.testing.assert_array_equal(
        scan.crop(ids, region, level=level).words, scan.words(ids, region, level=level)
    )
    np.testing.assert_array_equal(scan.voxels_at(level), truth.sum(axis=(1, 2, 3)))
    for mask, box in zip(truth, coarse_boxes(drawn.table[:, 3:9], level.factors_zyx), strict=True):
        outside = mask.copy()
        outside[tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))] = False
        assert not outside.any()


def test_level_voxels_says_what_is_visible_at_each_level(scan: Scan, drawn: ScanRecord) -> None:
    voxels = scan.level_voxels
    assert voxels.dtype == np.int32
    assert voxels.shape == (7, 3)
    np.testing.assert_array_equal(voxels[:, 0], record_masks(drawn).sum(axis=(1, 2, 3)))
    for k in range(3):
        np.testing.assert_array_equal(voxels[:, k], scan.masks(range(7), level=k).sum(axis=(1, 2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        voxels[0, 0] = 1


def test_a_level_that_the_scan_lacks_is_named(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(InvalidSelection, match=r"level 3 is not in 0\.\.2"):
        scan.image_codes(level=3)
    with pytest.raises(InvalidSelection, match="level -1"):
        scan.words([0], level=-1)
    with pytest.raises(InvalidSelection, match="leaves the array of shape"):
        scan.atoms(region=(slice(0, 36), slice(0, 1), slice(0, 1)), level=1)
    other = Level(factors_zyx=(2, 2, 2), shape_zyx=(3, 3, 3), spacing_zyx_mm=(1.0, 1.0, 1.0))
    with pytest.raises(InvalidSelection, match="of another scan"):
        scan.labels("organs", level=other)
