from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.quality import atom_limit, best_overlap, interval_overlap, structure_counts


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Random proposals: what `Intervals` asks for and nothing else."""

    atoms: tuple[NDArray[np.uint16], ...]
    orders: tuple[NDArray[np.uint16], ...]
    table: NDArray[np.int32]


def drawn(
    rng: np.random.Generator, shape: tuple[int, int, int] = (5, 6, 7), num_proposals: int = 20
) -> Drawn:
    """Two layers: atoms 0..8 (one voxel missing) and 0..3 on a background; random orders and intervals."""
    base = rng.integers(0, 9, shape).astype(np.uint16)
    base[0, 0, 0] = 65535
    extra = rng.choice(np.array([0, 1, 2, 3, 65534], dtype=np.uint16), shape)
    orders = (
        np.stack([rng.permutation(9) for _ in range(3)]).astype(np.uint16),
        np.stack([rng.permutation(4) for _ in range(2)]).astype(np.uint16),
    )
    table = np.zeros((num_proposals, 11), dtype=np.int32)
    for row in table:
        row[0] = rng.integers(0, 5)
        size = 9 if row[0] < 3 else 4
        row[1] = rng.integers(0, size)
        row[2] = rng.integers(row[1] + 1, size + 1)
    return Drawn(atoms=(base, extra), orders=orders, table=table)


def masks_of(proposals: Drawn) -> NDArray[np.bool_]:
    """(N, z, y, x) every mask, built the slow way."""
    rows = [(k, r) for k, orders in enumerate(proposals.orders) for r in range(len(orders))]
    masks = []
    for order, start, stop in proposals.table[:, :3]:
        layer, row = rows[order]
        masks.append(np.isin(proposals.atoms[layer], proposals.orders[layer][row, start:stop]))
    return np.array(masks)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_overlap_from_prefix_sums_equals_overlap_from_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    proposals = drawn(rng)
    label = rng.choice(np.array([0, 0, 2, 5, 300], dtype=np.uint16), (5, 6, 7))
    overlap = interval_overlap(proposals, label)
    masks = masks_of(proposals)
    for s, value in enumerate(overlap.values):
        structure = label == value
        shared = (masks & structure).sum(axis=(1, 2, 3))
        union = (masks | structure).sum(axis=(1, 2, 3))
        assert np.array_equal(overlap.intersection[s], shared)
        assert np.allclose(overlap.iou[s], shared / np.maximum(union, 1))
    assert np.array_equal(overlap.proposal_voxels, masks.sum(axis=(1, 2, 3)))


def test_the_best_of_the_first_n_never_falls_with_n() -> None:
    rng = np.random.default_rng(0)
    overlap = interval_overlap(drawn(rng), rng.integers(0, 3, (5, 6, 7)))
    best = best_overlap(overlap, counts=(1, 5, 1000))
    assert best.counts == (1, 5, 1000, 20)
    assert (np.diff(best.iou, axis=1) >= 0).all()
    assert np.allclose(best.iou[:, 0], overlap.iou[:, 0])
    assert np.allclose(best.iou[:, -1], overlap.iou.max(axis=1))
    assert np.allclose(best.dice[:, -1], overlap.dice.max(axis=1))


def test_no_union_of_atoms_beats_the_limit() -> None:
    rng = np.random.default_rng(1)
    atoms = rng.integers(0, 8, (4, 4, 4)).astype(np.uint16)
    label = rng.integers(0, 3, (4, 4, 4)).astype(np.uint8)
    limit = atom_limit(atoms, label, num_atoms=8)
    for s, value in enumerate(limit.values):
        best_iou, best_dice = 0.0, 0.0
        for word in range(1, 1 << 8):
            mask = ((word >> atoms) & 1).astype(bool)
            shared = (mask & (label == value)).sum()
            best_iou = max(best_iou, shared / (mask | (label == value)).sum())
            best_dice = max(best_dice, 2 * shared / (mask.sum() + (label == value).sum()))
        assert limit.iou[s] == pytest.approx(best_iou)
        assert limit.dice[s] == pytest.approx(best_dice)


def test_a_label_with_fractions_or_negative_values_is_refused() -> None:
    with pytest.raises(ValueError, match="integer"):
        structure_counts(np.zeros((2, 2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        structure_counts(np.full((2, 2, 2), -1))


def test_a_label_on_another_grid_is_refused() -> None:
    proposals = drawn(np.random.default_rng(0))
    with pytest.raises(ValueError, match="share a grid"):
        interval_overlap(proposals, np.ones((5, 6, 8), dtype=np.uint8))
