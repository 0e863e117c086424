from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from storage.records.orders import pack_orders, unpack_orders


def table_of(runs: list[tuple[int, int, int]]) -> np.ndarray:
    table = np.zeros((len(runs), 11), np.int32)
    table[:, :3] = runs
    return table


def sets(orders: tuple[tuple[np.ndarray, ...], ...], table: np.ndarray) -> list[set[int]]:
    rows = [row for layer in orders for row in layer]
    return [set(rows[order][start:stop].tolist()) for order, start, stop in table[:, :3]]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[tuple[np.ndarray, ...], list[int], np.ndarray]:
    """Orders of one or two layers and intervals that nest and overlap at will."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=2))
    orders = tuple(
        np.stack([rng.permutation(size) for _ in range(draw(st.integers(1, 4)))]).astype(np.uint16)
        for size in sizes
    )
    lengths = [row.size for layer in orders for row in layer]
    runs = []
    for _ in range(draw(st.integers(1, 12))):
        order = int(rng.integers(len(lengths)))
        start = int(rng.integers(lengths[order]))
        runs.append((order, start, int(rng.integers(start + 1, lengths[order] + 1))))
    return orders, sizes, table_of(runs)


@settings(max_examples=200)
@given(drawn())
def test_every_proposal_has_the_same_atoms_after_packing(drawn) -> None:
    orders, sizes, table = drawn
    packed, moved = pack_orders(orders, sizes, table)
    rows = tuple(unpack_orders(segments) for segments in packed)
    assert sets(rows, moved) == sets(orders, table)
    np.testing.assert_array_equal(moved[:, 3:], table[:, 3:])
    np.testing.assert_array_equal(moved[:, 0], table[:, 0])
    for row, order in zip([row for layer in rows for row in layer], range(99), strict=False):
        mine = [s for s, o in zip(sets(rows, moved), moved[:, 0], strict=True) if o == order]
        assert set(row.tolist()) == set().union(*mine)  # nothing that no proposal needs
        assert row.dtype == np.uint16


@settings(max_examples=100)
@given(drawn())
def test_packing_again_changes_nothing(drawn) -> None:
    orders, sizes, table = drawn
    packed, moved = pack_orders(orders, sizes, table)
    again, table_again = pack_orders([unpack_orders(segments) for segments in packed], sizes, moved)
    np.testing.assert_array_equal(table_again, moved)
    for one, other in zip(packed, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_the_example_of_the_docstring() -> None:
    order = np.array([[7, 2, 9, 4, 1, 3, 0, 5, 6, 8]], np.uint16)
    (segments,), table = pack_orders((order,), [10], table_of([(0, 0, 3), (0, 0, 4), (0, 4, 6)]))
    assert segments[:, 0].tolist() == [0, 3, 1, 3, 2, 0, 0, 1, 0, 1]
    assert segments.dtype == np.uint8
    assert unpack_orders(segments)[0].tolist() == [2, 7, 9, 4, 1, 3]
    assert table[:, 1:3].tolist() == [[0, 3], [0, 4], [4, 6]]


def test_what_lies_between_proposals_is_left_out_and_later_ones_move_up() -> None:
    order = np.arange(10, dtype=np.uint16)[None, ::-1]
    (segments,), table = pack_orders((order,), [10], table_of([(0, 7, 10), (0, 1, 3), (0, 2, 3)]))
    assert unpack_orders(segments)[0].tolist() == [8, 7, 0, 1, 2]
    assert table[:, 1:3].tolist() == [[2, 5], [0, 2], [1, 2]]


def test_a_tree_without_a_proposal_is_an_empty_row() -> None:
    orders = np.stack([np.arange(4), np.arange(4)]).astype(np.uint16)
    (segments,), _ = pack_orders((orders,), [4], table_of([(1, 0, 2)]))
    assert [row.tolist() for row in unpack_orders(segments)] == [[], [0, 1]]


def test_many_segments_take_two_bytes() -> None:
    order = np.arange(300, dtype=np.uint16)[None]
    (segments,), _ = pack_orders((order,), [300], table_of([(0, i, i + 1) for i in range(300)]))
    assert segments.dtype == np.uint16
    assert segments[:, 0].tolist() == list(range(1, 301))
