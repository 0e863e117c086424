from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from pipeline.compute.backend import get_backend
from pipeline.hierarchies.tree_methods import TreeSpec
from pipeline.hierarchies.trees import Hierarchy, grow
from pipeline.proposals.atoms import AtomLayout, arrange_consuming, worth_keeping
from pipeline.proposals.nests import members_of, runs_of
from pipeline.proposals.outlines import Outlines
from pipeline.proposals.refinement import Refinement, refine_consuming
from tests.pipeline.drawn_regions import CPU, ON_MANY, iou, leaf_sets, random_regions

SHAPE = (8, 9, 10)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Regions of several trees over several partitions, and their masks."""

    partitions: list[NDArray[np.int32]]
    hierarchies: list[Hierarchy]
    chosen: list[tuple[int, int]]

    def refine(self) -> Refinement:
        return refine_consuming(list(self.partitions), list(self.hierarchies), self.chosen)

    def lay_out(self, max_atoms: int = 65_534) -> AtomLayout:
        return lay_out(self.partitions, self.hierarchies, self.chosen, max_atoms=max_atoms)

    def mask(self, rank: int) -> NDArray[np.bool_]:
        """The voxels of the chosen region of that rank, from the leaves below its node."""
        tree, node = self.chosen[rank]
        hierarchy = self.hierarchies[tree]
        return np.isin(self.partitions[hierarchy.partition], list(leaf_sets(hierarchy)[node]))


def scene(seed: int = 0, num_chosen: int = 20, shape: tuple[int, int, int] = SHAPE) -> Scene:
    """Random nodes, in random order, of three trees over two noise partitions."""
    rng = np.random.default_rng(seed)
    partitions, hierarchies = [], []
    for p, methods in enumerate((("boundary", "bright"), ("volume",))):
        labels, graph, sums = random_regions(2 * seed + p, shape)
        partitions.append(labels)
        for method in methods:
            spec = TreeSpec(partition="fine", method=method)
            hierarchies.append(grow(spec, partition=p, graph=graph, sums=sums, scale_column=0))
    nodes = [(t, n) for t, tree in enumerate(hierarchies) for n in range(len(tree.parents) - 1)]
    picked = rng.choice(len(nodes), min(num_chosen, len(nodes)), replace=False)
    return Scene(partitions=partitions, hierarchies=hierarchies, chosen=[nodes[k] for k in picked])


def lay_out(
    partitions: list[NDArray[np.int32]],
    hierarchies: list[Hierarchy],
    chosen: list[tuple[int, int]],
    *,
    max_atoms: int,
    outlines: Sequence[Outlines] = (),
    style: NDArray[np.int8] | None = None,
) -> AtomLayout:
    """All chosen regions."""
    refinement = refine_consuming(list(partitions), list(hierarchies), chosen, outlines=outlines, style=style)
    return arrange_consuming(refinement, np.arange(len(chosen)), max_atoms=max_atoms)


def run_mask(layout: AtomLayout, index: int) -> NDArray[np.bool_]:
    row, start, stop = layout.runs[index]
    return np.isin(layout.atoms, layout.orders[row, start:stop])


def assert_sound(layout: AtomLayout) -> None:
    """What format version 1 asks of atoms and orders, and exact measures of every run."""
    num_atoms = layout.orders.shape[1]
    values, first = np.unique(layout.atoms, return_index=True)
    assert values.tolist() == list(range(num_atoms))
    assert (np.diff(first) > 0).all()  # numbered in scan order
    for row in layout.orders:
        assert sorted(row.tolist()) == list(range(num_atoms))
    np.testing.assert_array_equal(layout.atom_voxels, np.bincount(layout.atoms.ravel()))
    for index in range(len(layout.runs)):
        places = np.argwhere(run_mask(layout, index))
        assert layout.voxels[index] == len(places) > 0
        assert layout.boxes[index].tolist() == [*places.min(axis=0), *(places.max(axis=0) + 1)]


@ON_MANY
@given(st.integers(0, 1000), st.integers(1, 40))
def test_every_chosen_region_is_exactly_the_union_of_its_run(seed: int, num_chosen: int) -> None:
    drawn = scene(seed, num_chosen)
    layout = drawn.lay_out()
    assert_sound(layout)
    assert layout.kept.tolist() == list(range(len(drawn.chosen)))
    for index, (tree, _) in enumerate(drawn.chosen):
        np.testing.assert_array_equal(run_mask(layout, index), drawn.mask(index))
        assert layout.trees[layout.runs[index, 0]] == tree


def test_there_are_no_more_atoms_than_the_regions_tell_apart() -> None:
    drawn = scene(num_chosen=12)
    signatures = np.stack([drawn.mask(k) for k in range(12)], axis=-1).reshape(-1, 12)
    assert drawn.lay_out().orders.shape[1] == len(np.unique(signatures, axis=0))


@pytest.mark.parametrize("max_atoms", [2, 5, 20, 60, 120])
@pytest.mark.parametrize("seed", range(4))
def test_atoms_within_the_limit_still_measure_every_run_exactly(seed: int, max_atoms: int) -> None:
    drawn = scene(seed, 60)
    assert drawn.lay_out().orders.shape[1] > max_atoms
    layout = drawn.lay_out(max_atoms)
    assert layout.orders.shape[1] <= max_atoms
    assert_sound(layout)
    assert (np.diff(layout.kept) > 0).all()
    for run, kept in zip(layout.runs, layout.kept, strict=True):
        assert layout.trees[run[0]] == drawn.chosen[kept][0]


def test_absorbing_slivers_changes_large_regions_by_little() -> None:
    drawn = scene(1, 60, (16, 16, 16))
    num_atoms = drawn.lay_out().orders.shape[1]
    layout = drawn.lay_out(int(0.8 * num_atoms))
    large = [rank for rank in range(60) if drawn.mask(rank).sum() > 100]
    index_of = {rank: index for index, rank in enumerate(layout.kept.tolist())}
    kept = [iou(run_mask(layout, index_of[rank]), drawn.mask(rank)) for rank in large]
    assert len(kept) > 3
    assert 0.8 < min(kept) < 1


@pytest.mark.parametrize("seed", range(6))
def test_the_first_to_go_is_the_atom_that_does_least_harm(seed: int) -> None:
    drawn = scene(seed, 25)
    whole = drawn.lay_out()
    fewer = drawn.lay_out(whole.orders.shape[1] - 1)
    masks = [run_mask(whole, k) for k in range(25)]
    inside = np.array([[mask[whole.atoms == a][0] for mask in masks] for a in range(len(whole.atom_voxels))])
    weight = np.array([(2 - place / 25) / mask.sum() for place, mask in zip(whole.kept, masks, strict=True)])
    harm = {
        (a, b): whole.atom_voxels[a] * weight[inside[a] != inside[b]].sum()
        for axis in range(3)
        for a, b in touching(whole.atoms, axis)
    }
    left = [a for a in range(len(inside)) if len({int(v) for v in fewer.atoms[whole.atoms == a]}) == 1]
    assert len(left) == len(inside)  # a sliver goes as a whole
    new = np.array([fewer.atoms[whole.atoms == a][0] for a in left])
    joined = {(a, b) for a in left for b in left if a != b and new[a] == new[b]}
    assert len(joined) == 2
    assert min(harm.get(pair, np.inf) for pair in joined) == pytest.approx(min(harm.values()))


def touching(atoms: NDArray[np.uint16], axis: int) -> set[tuple[int, int]]:
    """Pairs of atoms with a face in common along an axis, both ways round."""
    along = np.moveaxis(atoms, axis, 0)
    pairs = np.stack([along[:-1].ravel(), along[1:].ravel()], axis=1)
    return {tuple(pair) for pair in [*pairs.tolist(), *pairs[:, ::-1].tolist()] if pair[0] != pair[1]}


def test_absorbing_does_not_depend_on_the_number_of_threads() -> None:
    drawn = scene(2, 60, (16, 16, 16))
    backends = (CPU, get_backend("cpu", num_threads=3))
    one, three = (
        arrange_consuming(drawn.refine(), np.arange(60), max_atoms=40, backend=backend)
        for backend in backends
    )
    for name in ("atoms", "orders", "runs", "kept"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_a_sliver_leaves_the_larger_region_and_stays_in_the_smaller() -> None:
    # From left to right: nothing, a large region, and in it a small one that begins with a sliver.
    labels = np.repeat(np.arange(4, dtype=np.int32), (600, 200, 1, 9)).reshape(1, 1, 810)
    tree = Hierarchy.of("nest", 0, 4, np.array([6, 5, 4, 4, 5, 6, 6]))
    layout = lay_out([labels], [tree], [(0, 5), (0, 4), (0, 2)], max_atoms=3)
    assert layout.kept.tolist() == [0, 1]  # the sliver was a region of its own, and is gone
    np.testing.assert_array_equal(run_mask(layout, 0), labels > 0)
    np.testing.assert_array_equal(run_mask(layout, 1), labels > 1)


def test_too_few_atoms_for_all_regions_keep_the_best() -> None:
    # 50 slabs of 1,600 voxels each: no slivers to absorb, so the last ranked have to go.
    labels = np.repeat(np.arange(50, dtype=np.int32), 1600).reshape(50, 40, 40)
    tree = Hierarchy.of("star", 0, 50, np.full(51, 50))
    chosen = [(0, node) for node in range(49, -1, -1)]
    layout = lay_out([labels], [tree], chosen, max_atoms=30)
    assert_sound(layout)
    assert 15 < len(layout.kept) < 30
    for index in range(len(layout.kept)):
        np.testing.assert_array_equal(run_mask(layout, index), labels == 49 - index)


def test_regions_that_are_all_slivers_are_given_up_from_the_last_on() -> None:
    # 49 regions of a single voxel, and room for three atoms: absorbing all would leave no region.
    labels = np.arange(50, dtype=np.int32).reshape(1, 1, 50)
    tree = Hierarchy.of("star", 0, 50, np.full(51, 50))
    layout = lay_out([labels], [tree], [(0, node) for node in range(40, 0, -1)], max_atoms=3)
    assert_sound(layout)
    assert 1 <= len(layout.kept) <= 2


def test_more_atoms_than_the_first_table_holds_are_all_told_apart() -> None:
    labels = np.arange(40_000, dtype=np.int32).reshape(40, 40, 25)
    tree = Hierarchy.of("star", 0, 40_000, np.full(40_001, 40_000))
    layout = lay_out([labels], [tree], [(0, node) for node in range(39_999)], max_atoms=65_534)
    np.testing.assert_array_equal(layout.atoms, labels)
    assert (layout.voxels == 1).all()


@ON_MANY
@given(st.integers(0, 1000), st.sampled_from([0.3, 0.6, 0.9]))
def test_near_duplicates_are_those_that_brute_force_finds(seed: int, limit: float) -> None:
    drawn = scene(seed, 30)
    masks = [drawn.mask(k) for k in range(len(drawn.chosen))]
    kept: list[int] = []
    for k, mask in enumerate(masks):
        if not any(iou(mask, masks[better]) > limit for better in kept):
            kept.append(k)
    found = worth_keeping(drawn.refine(), min_voxels=1, duplicate_iou=limit)
    assert found.tolist() == kept


@ON_MANY
@given(st.integers(0, 1000), st.integers(1, 30))
def test_some_of_the_regions_have_the_atoms_that_they_would_have_alone(seed: int, num_kept: int) -> None:
    drawn = scene(seed, 30)
    places = np.sort(np.random.default_rng(seed).choice(len(drawn.chosen), num_kept, replace=False))
    layout = arrange_consuming(drawn.refine(), places, max_atoms=65_534)
    alone = lay_out(drawn.partitions, drawn.hierarchies, [drawn.chosen[k] for k in places], max_atoms=65_534)
    assert_sound(layout)
    assert layout.kept.tolist() == places.tolist()
    np.testing.assert_array_equal(layout.atoms, alone.atoms)
    np.testing.assert_array_equal(layout.orders, alone.orders)
    np.testing.assert_array_equal(layout.runs, alone.runs)


def test_regions_below_the_least_volume_are_not_worth_keeping() -> None:
    drawn = scene(3, 40)
    sizes = np.array([drawn.mask(k).sum() for k in range(len(drawn.chosen))])
    found = worth_keeping(drawn.refine(), min_voxels=20, duplicate_iou=1.0)
    assert 0 < len(found) < len(sizes)
    assert set(found.tolist()) == set(np.flatnonzero(sizes >= 20).tolist())


@ON_MANY
@given(st.integers(0, 1000))
def test_smoothed_regions_of_one_tree_stay_nested_or_disjoint(seed: int) -> None:
    drawn = scene(seed, 40, (14, 14, 14))
    layout = lay_out(
        drawn.partitions,
        drawn.hierarchies,
        drawn.chosen,
        max_atoms=65_534,
        outlines=[Outlines(fraction=0.2, max_sigma_voxels=3.0)],
    )
    assert_sound(layout)
    for a in range(len(layout.runs)):
        for b in range(a):
            if layout.runs[a, 0] == layout.runs[b, 0]:
                first, second = run_mask(layout, a), run_mask(layout, b)
                both = (first & second).sum()
                assert both in (0, first.sum(), second.sum())


def test_level_sets_keep_their_outline_when_others_are_smoothed() -> None:
    drawn = scene(5, 40, (14, 14, 14))
    outlines = [Outlines(fraction=0.3, max_sigma_voxels=3.0)]
    layout = lay_out(drawn.partitions, drawn.hierarchies, drawn.chosen, max_atoms=65_534, outlines=outlines)
    changed = {True: 0, False: 0}
    for index, place in enumerate(layout.kept.tolist()):
        level_sets = drawn.hierarchies[drawn.chosen[place][0]].level_sets
        changed[level_sets] += not np.array_equal(run_mask(layout, index), drawn.mask(place))
    assert changed[True] == 0
    assert changed[False] > 0


def test_a_region_may_be_laid_out_twice_with_two_ways_of_smoothing_it() -> None:
    drawn = scene(5, 40, (14, 14, 14))
    ways = [Outlines(fraction=0.0, max_sigma_voxels=3.0), Outlines(fraction=0.3, max_sigma_voxels=3.0)]
    twice = [*drawn.chosen, *drawn.chosen]
    style = np.repeat(np.array([0, 1], np.int8), len(drawn.chosen))
    both = lay_out(drawn.partitions, drawn.hierarchies, twice, max_atoms=65_534, outlines=ways, style=style)
    assert_sound(both)
    alone = [
        lay_out(drawn.partitions, drawn.hierarchies, drawn.chosen, max_atoms=65_534, outlines=[way])
        for way in ways
    ]
    masks = {number: run_mask(both, index) for index, number in enumerate(both.kept.tolist())}
    for way, layout in enumerate(alone):
        for index, place in enumerate(layout.kept.tolist()):
            found = masks[place + way * len(drawn.chosen)]
            np.testing.assert_array_equal(found, run_mask(layout, index))
    assert {both.styles[row] for row in both.runs[:, 0].tolist()} == {0, 1}
    assert len({mask.tobytes() for mask in masks.values()}) > len(alone[0].kept)  # some are rounder


def test_the_same_region_of_two_trees_is_kept_once() -> None:
    labels = np.arange(4, dtype=np.int32).reshape(1, 1, 4)
    trees = [Hierarchy.of(name, 0, 4, np.array([4, 4, 5, 5, 6, 6, 6])) for name in ("one", "other")]
    refinement = refine_consuming([labels], list(trees), [(1, 4), (0, 4), (0, 5)])
    assert worth_keeping(refinement, min_voxels=1, duplicate_iou=0.95).tolist() == [0, 2]


@ON_MANY
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 3))
def test_regions_are_listed_by_the_atoms_that_lie_in_them(seed: int, num_chosen: int, threads: int) -> None:
    refinement = scene(seed, num_chosen).refine()
    ranks, nests, count = refinement.ranks, refinement.nests, len(refinement.chosen)
    orders, runs = runs_of(ranks, nests, count, threads)
    members, spans = members_of(ranks, nests, count, threads)
    for row, nest in enumerate(nests):
        assert sorted(orders[row].tolist()) == list(range(len(ranks)))
        for rank, place in enumerate(nest.place.tolist()):
            inside = (ranks[:, row] > rank) & (ranks[:, row] <= nest.last[rank] + 1)
            in_run = orders[row, runs[place, 1] : runs[place, 2]]
            assert runs[place, 0] == row
            assert sorted(in_run.tolist()) == np.flatnonzero(inside).tolist()
            np.testing.assert_array_equal(members[slice(*spans[place])], in_run)
    assert len(members) == (ranks > 0).sum()
