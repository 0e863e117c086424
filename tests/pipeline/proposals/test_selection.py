from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.hierarchies.minhash import leaf_sketches, similar_pairs
from pipeline.hierarchies.trees import Hierarchy
from pipeline.proposals.selection import Candidates, Leaves, candidates_of, choose, with_second
from tests.pipeline.hierarchies.test_minhash import boxes, sketches_of, volumes_of

#             8
#          /     \
#         6       7
#        / \     / \
#       4   5   |   |
#      / \  |   |   |
#     0   1 2   3   (leaf 3 stands twice: 7 has it and nothing else)
PARENTS = np.array([4, 4, 5, 7, 6, 6, 8, 8, 8])
LEAF_VOXELS = np.array([10, 30, 60, 100])
PAIRS = np.array([[0, 1], [1, 2], [1, 3], [2, 3]], np.int32)
FACES_AND_EVIDENCE = np.array([[5, 50], [8, 800], [2, 20], [30, 600]])


def drawn_candidates(count: int = 40, seed: int = 0, num_trees: int = 3) -> Candidates:
    """Boxes that overlap, drawn by several trees."""
    rng, masks = np.random.default_rng(seed), boxes(count, seed)
    return Candidates(
        tree=(np.arange(count) % num_trees).astype(np.int32),
        node=np.arange(count),
        voxels=volumes_of(masks),
        growth=rng.uniform(0.05, 2, count),
        clarity=rng.uniform(1, 50, count),
        sketches=sketches_of(masks),
    )


def looked_at(hierarchy: Hierarchy | None = None, **changes: Any) -> Candidates:
    options: dict[str, Any] = {
        "least_body_fraction": 0.5,
        "voxel_limits": (1, 1000),
        "per_half_octave": 10,
    }
    drawn: dict[str, Any] = {
        "voxels": LEAF_VOXELS,
        "body_voxels": LEAF_VOXELS,
        "pairs": PAIRS,
        "pair_values": FACES_AND_EVIDENCE,
    }
    drawn |= {name: value for name, value in changes.items() if name in drawn}
    options |= {name: value for name, value in changes.items() if name not in drawn}
    tree = hierarchy or Hierarchy.of("drawn", 0, 4, PARENTS)
    sketches = leaf_sketches(np.arange(tree.num_leaves, dtype=np.int32).reshape(1, 1, -1), tree.num_leaves)
    return candidates_of(tree, Leaves(sketches=sketches, **drawn), **options)


def naive_choice(c: Candidates, num_wanted: int) -> tuple[list[int], list[float]]:
    """Facility location as it is defined: every gain anew in every step."""
    first, second, share = similar_pairs(c.sketches, c.voxels, 0.4)
    likeness = np.eye(len(c.node))
    likeness[first, second] = likeness[second, first] = share
    drawn_by = [{int(c.tree[j]) for j in np.flatnonzero(row >= 0.75)} for row in likeness]
    weight = np.sqrt(c.growth) * (c.clarity * [len(trees) for trees in drawn_by]) ** 0.75
    octave = np.floor(np.log2(c.voxels / c.voxels.min())).astype(int)
    weight = np.array([w / weight[octave == o].sum() for w, o in zip(weight, octave, strict=True)])
    best = np.zeros(len(c.node))
    rows, gains = [], []
    for _ in range(num_wanted):
        total = [(weight * np.maximum(row**2 - best, 0)).sum() for row in likeness]
        rows.append(int(np.argmax(total)))
        gains.append(float(max(total)))
        best = np.maximum(best, likeness[rows[-1]] ** 2)
    return rows, gains


@pytest.mark.parametrize("seed", range(5))
def test_lazy_greedy_chooses_as_the_naive_greedy_does(seed: int) -> None:
    candidates = drawn_candidates(seed=seed)
    rows, gains = choose(candidates, 15)
    expected, expected_gains = naive_choice(candidates, 15)
    assert rows.tolist() == expected
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-5)


def test_the_choice_does_not_depend_on_the_unit_of_volume() -> None:
    # Octaves of absolute volume would give a few voxels above the least one the weight of a whole octave.
    candidates = drawn_candidates()
    larger = replace(candidates, voxels=candidates.voxels * 3)
    np.testing.assert_array_equal(choose(larger, 15)[0], choose(candidates, 15)[0])


def test_gains_never_rise_and_no_row_is_chosen_twice() -> None:
    rows, gains = choose(drawn_candidates(), 100)
    assert sorted(rows.tolist()) == list(range(40))
    assert (np.diff(gains) <= 0).all()


def test_fewer_wanted_are_the_first_of_more() -> None:
    few, many = choose(drawn_candidates(), 5)[0], choose(drawn_candidates(), 20)[0]
    np.testing.assert_array_equal(few, many[:5])


def test_what_more_trees_have_drawn_is_worth_more() -> None:
    one, other = boxes(1, seed=1)[0], np.zeros((16, 16, 16), bool)
    other[-5:, -12:, -12:] = True
    masks = [one, other, other]
    for trees, best in (((0, 1, 2), 1), ((0, 1, 1), 0)):
        candidates = Candidates(
            tree=np.array(trees, np.int32),
            node=np.arange(3),
            voxels=np.array([700, 700, 700]),
            growth=np.array([2.0, 0.5, 0.5]),
            clarity=np.ones(3),
            sketches=sketches_of(masks),
        )
        assert choose(candidates, 1)[0][0] == best


def test_every_octave_of_volume_has_its_share() -> None:
    far = [np.zeros((16, 16, 16), bool) for _ in range(5)]
    for k, mask in enumerate(far[:4]):
        mask[0, 0, 4 * k : 4 * k + 4] = True
    far[4][8:] = True
    candidates = Candidates(
        tree=np.zeros(5, np.int32),
        node=np.arange(5),
        voxels=volumes_of(far),
        growth=np.array([1.0, 1.0, 1.0, 1.0, 0.01]),
        clarity=np.ones(5),
        sketches=sketches_of(far),
    )
    assert choose(candidates, 1)[0][0] == 4  # alone in its octave, however briefly it lives


def test_the_root_and_what_its_parent_does_not_outgrow_are_no_candidates() -> None:
    found = looked_at()
    assert found.node.tolist() == [0, 1, 4, 5, 6, 7]  # 2 and 3 are the same as 5 and 7
    assert found.voxels.tolist() == [10, 30, 40, 60, 100, 100]
    assert set(found.tree.tolist()) == {0}
    np.testing.assert_allclose(found.growth, np.log([4, 4 / 3, 2.5, 100 / 60, 2, 2]))


def test_a_region_must_outgrow_one_fiftieth_to_be_a_candidate() -> None:
    # Node 4 is leaves 0 and 1, the root adds leaf 2: log(1025/1000) > 0.02 > log(1015/1000).
    tree = Hierarchy.of("drawn", 0, 3, np.array([3, 3, 4, 4, 4]))
    for added, found in ((25, [0, 1, 2, 3]), (15, [0, 1, 2])):
        leaves = np.array([400, 600, added])
        assert looked_at(tree, voxels=leaves, body_voxels=leaves).node.tolist() == found


def test_growth_counts_from_a_single_voxel_on() -> None:
    tree = Hierarchy.of("drawn", 0, 2, np.array([2, 2, 2]))
    leaves = np.array([1, 2])
    found = looked_at(
        tree,
        voxels=leaves,
        body_voxels=leaves,
        pairs=np.array([[0, 1]], np.int32),
        pair_values=np.array([[1, 50]]),
    )
    np.testing.assert_allclose(found.growth, np.log([3, 3 / 2]))
    # One face of evidence 50; a cube of one voxel has fewer faces than the least surface counts.
    assert found.clarity[0] == pytest.approx((50 / 1 + 10) / 4)


def test_the_sketch_of_a_node_is_the_minimum_of_its_leaves() -> None:
    found = looked_at()
    leaf = leaf_sketches(np.arange(4, dtype=np.int32).reshape(1, 1, -1), 4)
    for node, members in {0: [0], 4: [0, 1], 6: [0, 1, 2], 7: [3]}.items():
        row = found.sketches[found.node.tolist().index(node)]
        np.testing.assert_array_equal(row, leaf[members].min(axis=0))


def test_half_an_octave_is_a_factor_of_the_square_root_of_two() -> None:
    tree = Hierarchy.of("drawn", 0, 3, np.array([3, 3, 4, 4, 4]))
    for larger, same in ((90, True), (91, False)):  # 64 * 2 ** 0.5 = 90.5
        leaves = np.array([64, larger, 1000])
        found = looked_at(tree, voxels=leaves, body_voxels=leaves, per_half_octave=1)
        assert found.node.tolist() == ([0, 2, 3] if same else [0, 1, 2, 3])


def test_strong_and_even_outlines_are_clear() -> None:
    # Node 4 is leaves 0 and 1: 8 faces of evidence 800 with leaf 2, 2 of 20 with 3; a cube of 40 has sides
    # of 11.7 faces each, so the least surface counts.
    found = looked_at()
    clarity = dict(zip(found.node.tolist(), found.clarity.tolist(), strict=True))
    assert clarity[4] == pytest.approx((820 / 10 + 10) / 4)
    assert clarity[5] == pytest.approx((1400 / 38 + 10) / 4)
    ragged = looked_at(pair_values=FACES_AND_EVIDENCE * 10)
    assert ragged.clarity[2] == pytest.approx((820 / 10 + 10) / (100 / 40 ** (2 / 3)))


def test_what_has_a_clear_outline_is_worth_more() -> None:
    for clarity in ([1.0, 2.0, 1.0], [1.0, 1.0, 2.0]):
        masks = list(np.eye(3, 4096, dtype=bool).reshape(3, 16, 16, 16))
        candidates = Candidates(
            tree=np.zeros(3, np.int32),
            node=np.arange(3),
            voxels=np.ones(3, np.int64),
            growth=np.ones(3),
            clarity=np.array(clarity),
            sketches=sketches_of(masks),
        )
        assert choose(candidates, 1)[0][0] == int(np.argmax(clarity))


def test_candidates_are_within_the_volume_limits() -> None:
    assert looked_at(voxel_limits=(30, 60)).voxels.tolist() == [30, 40, 60]


def test_regions_mostly_out_of_the_body_are_left_out() -> None:
    found = looked_at(body_voxels=np.array([10, 0, 40, 20]))
    assert found.node.tolist() == [0, 5, 6]  # 10/10, 40/60, 50/100; but 0/30, 10/40, 20/100


def test_the_longest_lived_of_each_half_octave_are_looked_at() -> None:
    leaves = np.array([64, 65, 66, 200])
    tree = Hierarchy.of("comb", 0, 4, np.array([4, 4, 5, 6, 5, 6, 6]))
    one = looked_at(tree, voxels=leaves, body_voxels=leaves, per_half_octave=1)
    assert one.node.tolist() == [2, 4, 5]  # of volumes {64, 65, 66}, {129} and {195, 200}
    two = looked_at(tree, voxels=leaves, body_voxels=leaves, per_half_octave=2)
    assert two.node.tolist() == [0, 2, 3, 4, 5]


def test_joined_parts_follow_each_other() -> None:
    both = Candidates.joined([drawn_candidates(3), drawn_candidates(4)])
    assert both.node.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert both.sketches.shape == (7, 32)


def test_the_best_regions_of_the_trees_that_have_most_of_them_are_offered_twice() -> None:
    trees = np.array([5, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0], np.int32)
    soft = np.array([True, True, False, True, True, True])  # tree 2 has level sets
    gains = 1 / np.arange(1, 15)
    rows, after, second = with_second(np.arange(100, 114), gains, trees, soft, num_first=11)
    # Of the first eleven, two each are of the trees 0, 1, 3 and 4, one of 5.
    again = [101, 102, 103, 104, 107, 108, 109, 110]
    assert rows[second == 1].tolist() == again
    assert rows[second == 0].tolist() == list(range(100, 114))
    assert (np.diff(after) <= 0).all()
    assert after[second == 1].tolist() == [gains[row - 100] / 2 for row in again]


def test_nothing_is_offered_twice_where_that_is_not_wanted_or_all_are_level_sets() -> None:
    trees, gains = np.zeros(5, np.int32), np.full(5, 0.5)
    for num_first, soft in ((0, True), (5, False)):
        rows, after, second = with_second(np.arange(5), gains, trees, np.array([soft]), num_first)
        assert rows.tolist() == [0, 1, 2, 3, 4]
        assert after.tolist() == gains.tolist()
        assert not second.any()
