"""Masks packed into atom layers: each mask is exact, crossing ones lie in different layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from pipeline.exchange.packing import PackedMasks, pack_masks
from pipeline.exchange.placing import PlacedMask

SHAPE = (7, 6, 5)


def placed(mask: NDArray[np.bool_], name: str = "", score: float | None = None) -> PlacedMask:
    places = np.argwhere(mask)
    z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    return PlacedMask.of(name, score, (z, y, x), mask[z, y, x])


def unpacked(packed: PackedMasks, row: int) -> NDArray[np.bool_]:
    order, start, stop = (int(value) for value in packed.table[row, :3])
    return np.isin(packed.atoms[order], packed.orders[order][0][start:stop])


def box(*spans: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def random_masks(seed: int, number: int) -> list[NDArray[np.bool_]]:
    """Return boxes and noise: nested, crossing, equal and apart, of one voxel and of all."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(number):
        spans = [sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in SHAPE]
        mask = box(*((a, b) for a, b in spans))
        if rng.random() < 0.3:
            mask &= rng.random(SHAPE) < 0.6
        masks.append(mask if mask.any() else np.ones(SHAPE, dtype=np.bool_))
    return masks


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 25))
def test_every_mask_comes_back_voxel_for_voxel(seed: int, number: int) -> None:
    masks = random_masks(seed, number)
    packed = pack_masks([placed(mask, str(i)) for i, mask in enumerate(masks)], SHAPE)
    assert packed.names == tuple(str(i) for i in range(number))
    for row, mask in enumerate(masks):
        np.testing.assert_array_equal(unpacked(packed, row), mask)
        places = np.argwhere(mask)
        assert packed.table[row, 3:9].tolist() == [*places.min(0), *(places.max(0) + 1)]
        assert packed.table[row, 9] == mask.sum()
    for layer, order in zip(packed.atoms, packed.orders, strict=True):
        present = np.unique(layer[layer < 65_534])
        assert sorted(order[0].tolist()) == present.tolist() == list(range(len(present)))


def test_nested_and_disjoint_masks_share_a_layer_and_crossing_ones_do_not() -> None:
    liver, tumour, kidney = (
        box((0, 4), (0, 6), (0, 5)),
        box((1, 3), (1, 3), (1, 3)),
        box((5, 7), (0, 2), (0, 2)),
    )
    half = box((0, 6), (0, 6), (0, 2))
    one = pack_masks([placed(liver), placed(tumour), placed(kidney)], SHAPE)
    assert len(one.atoms) == 1
    two = pack_masks([placed(liver), placed(tumour), placed(kidney), placed(half)], SHAPE)
    assert len(two.atoms) == 2
    assert two.table[0, 0] != two.table[3, 0]


def test_equal_masks_are_one_set_of_atoms() -> None:
    mask = box((0, 3), (0, 3), (0, 3))
    packed = pack_masks([placed(mask, "a"), placed(mask, "b")], SHAPE)
    assert len(packed.atoms) == 1
    assert packed.table[0].tolist() == packed.table[1].tolist()


def test_a_mask_that_its_parts_fill_has_no_atom_of_its_own() -> None:
    left, right = box((0, 3), (0, 6), (0, 5)), box((3, 7), (0, 6), (0, 5))
    packed = pack_masks([placed(left | right), placed(left), placed(right)], SHAPE)
    assert len(packed.atoms) == 1
    assert np.unique(packed.atoms[0]).tolist() == [0, 1]
    assert unpacked(packed, 0).all()


def test_scores_give_the_order_if_every_mask_has_one() -> None:
    masks = [
        placed(box((i, i + 1), (0, 1), (0, 1)), str(i), score) for i, score in enumerate((0.2, 0.9, 0.5))
    ]
    assert pack_masks(masks, SHAPE).names == ("1", "2", "0")
    masks.append(placed(box((5, 6), (0, 1), (0, 1)), "3"))
    assert pack_masks(masks, SHAPE).names == ("0", "1", "2", "3")


def test_the_same_masks_give_the_same_atoms() -> None:
    masks = [placed(mask) for mask in random_masks(5, 20)]
    one, other = pack_masks(masks, SHAPE), pack_masks(masks, SHAPE)
    for a, b in zip(one.atoms, other.atoms, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5)])
def test_bits_of_a_mask_unpack_to_its_voxels(shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(0).random(shape) < 0.5
    voxels[0, 0, 0] = True
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    np.testing.assert_array_equal(PlacedMask.of("", None, whole, voxels).voxels, voxels)
