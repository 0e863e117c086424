"""Pieces: voxels are together exactly where all volumes agree, however they are split."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pipeline.proposals.splitting import Pieces, different_rows
from tests.pipeline.drawn_regions import CPU, ON_MANY

SHAPE = (7, 6, 5)


def volumes(seed: int, count: int) -> list[NDArray[np.uint16]]:
    """Blocks of a few values, as painted regions are; some volumes hold nothing."""
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, rng.integers(1, 4), (4, 3, 3)) for _ in range(count)]
    whole = [np.kron(block, np.ones((2, 2, 2), int))[: SHAPE[0], : SHAPE[1], : SHAPE[2]] for block in blocks]
    return [volume.astype(np.uint16) for volume in whole]


def expected(split_by: list[NDArray[np.uint16]]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """By brute force: a piece for each combination of values, numbered by its first voxel."""
    rows = np.stack([volume.ravel() for volume in split_by], axis=1)
    values, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    return place[number.ravel()].reshape(SHAPE), values[order]


@ON_MANY
@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 12), st.integers(1, 2))
def test_voxels_are_together_where_all_volumes_agree(
    seed: int, count: int, num_threads: int, at_once: int
) -> None:
    split_by = volumes(seed, count)
    pieces = Pieces(SHAPE, replace(CPU, num_threads=num_threads), at_once=at_once)
    for column in np.random.default_rng(seed).permutation(count).tolist():
        pieces.split(column, split_by[column])
    atoms, ranks = pieces.numbered(count)
    atoms_expected, ranks_expected = expected(split_by)
    np.testing.assert_array_equal(atoms, atoms_expected)
    np.testing.assert_array_equal(ranks, ranks_expected)


@pytest.mark.parametrize("num_threads", [2, 5])
def test_many_threads_may_bring_volumes_at_once(num_threads: int) -> None:
    split_by = volumes(5, 60)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        pieces = Pieces(SHAPE, replace(CPU, num_threads=num_threads), at_once=num_threads)
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(pieces.split, range(len(split_by)), split_by))
        atoms, ranks = pieces.numbered(len(split_by))
    finally:
        sys.setswitchinterval(switch)
    atoms_expected, ranks_expected = expected(split_by)
    np.testing.assert_array_equal(atoms, atoms_expected)
    np.testing.assert_array_equal(ranks, ranks_expected)


@ON_MANY
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2)))
def test_equal_rows_have_one_number_in_the_order_of_the_first(rows: NDArray[np.uint16]) -> None:
    number, first = different_rows(rows)
    assert first.tolist() == sorted({rows.tolist().index(row) for row in rows.tolist()})
    np.testing.assert_array_equal(rows[first][number], rows)
