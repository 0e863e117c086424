"""Masks of named structures become label maps; overlapping ones never share a map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.ingest.packing import map_names, pack

SHAPE = (2, 3, 4)


def mask(*voxels: int) -> np.ndarray:
    flat = np.zeros(24, bool)
    flat[list(voxels)] = True
    return flat.reshape(SHAPE)


def test_structures_that_do_not_overlap_share_the_first_map() -> None:
    (only,) = pack([("liver", mask(0, 1)), ("spleen", mask(2)), ("kidney", mask(5, 6))], SHAPE)
    assert only.value_names == {1: "liver", 2: "spleen", 3: "kidney"}
    np.testing.assert_array_equal(only.array.ravel()[:7], [1, 1, 2, 0, 0, 3, 3])
    assert only.array.dtype == np.uint8


def test_an_overlapping_structure_goes_to_a_further_map_and_later_ones_back_to_the_first() -> None:
    first, second = pack([("body", mask(0, 1, 2)), ("liver", mask(1)), ("arm", mask(9))], SHAPE)
    assert (first.value_names, second.value_names) == ({1: "body", 3: "arm"}, {2: "liver"})
    assert (first.array == 1).sum() == 3
    assert second.array.ravel()[1] == 2


def test_an_empty_mask_keeps_its_name_and_no_masks_give_an_empty_map() -> None:
    (only,) = pack([("absent", mask()), ("present", mask(3))], SHAPE)
    assert only.value_names == {1: "absent", 2: "present"}
    (empty,) = pack([], SHAPE)
    assert not empty.value_names
    assert not empty.array.any()


def test_values_above_255_widen_their_map_only() -> None:
    masks = [(str(i), mask(i % 24)) for i in range(300)]
    maps = pack(masks, SHAPE)
    assert {m.array.dtype for m in maps} == {np.dtype(np.uint8), np.dtype(np.uint16)}
    for value, (_, one) in enumerate(masks, start=1):
        assert sum(np.array_equal(m.array == value, one) for m in maps) == 1


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the shape"):
        pack([("x", np.zeros((1, 1, 1), bool))], SHAPE)


@given(st.lists(st.sets(st.integers(0, 23)), max_size=8))
def test_every_mask_comes_back_from_the_maps(voxels: list[set[int]]) -> None:
    maps = pack([(f"s{i}", mask(*v)) for i, v in enumerate(voxels)], SHAPE)
    for value, v in enumerate(voxels, start=1):
        (home,) = [m for m in maps if value in m.value_names]
        np.testing.assert_array_equal(home.array == value, mask(*v))


def test_further_maps_are_numbered() -> None:
    assert map_names("seg", 3) == ("seg", "seg_2", "seg_3")
