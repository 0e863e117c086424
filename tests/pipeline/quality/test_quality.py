from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from pipeline.quality.intervals import coverage, proposal_mask, proposal_words, proposals_at
from pipeline.quality.overlap import atom_limit, best_overlap, interval_overlap, structure_counts
from pipeline.quality.score_tables import summarize, to_csv, to_json, to_markdown
from pipeline.quality.scoring import ScoreConfig, score_scan, size_class
from pipeline.quality.slic_baseline import SlicConfig, slic_scales
from tests.pipeline.drawn_scan import drawn_scan

CONFIG = ScoreConfig(counts=(10, 100, 2000), slic=SlicConfig(segments=(8, 40)))


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


@settings(max_examples=30)
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


def test_a_structure_that_no_atom_touches_has_no_limit() -> None:
    atoms = np.zeros((2, 2, 2), np.uint16)
    limit = atom_limit(atoms, np.ones((2, 2, 2), np.uint8), num_atoms=1, values=(1, 5))
    assert limit.iou.tolist() == [1.0, 0.0]
    assert limit.dice.tolist() == [1.0, 0.0]


def test_a_word_holds_64_masks_and_no_more() -> None:
    proposals = drawn(np.random.default_rng(0))
    assert proposal_words(proposals, [0] * 64).dtype == np.uint64
    with pytest.raises(ValueError, match="64 masks, got 65"):
        proposal_words(proposals, [0] * 65)


def test_scans_scored_at_other_counts_are_not_put_together() -> None:
    with pytest.raises(ValueError, match=r"was scored at \(1, 2\), not at \(10, 100, 2000\)"):
        summarize([score_scan(drawn_scan(), config=ScoreConfig(counts=(1, 2)))], CONFIG)


def test_a_label_with_fractions_or_negative_values_is_refused() -> None:
    with pytest.raises(ValueError, match="integer"):
        structure_counts(np.zeros((2, 2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        structure_counts(np.full((2, 2, 2), -1))


def test_a_label_on_another_grid_is_refused() -> None:
    proposals = drawn(np.random.default_rng(0))
    with pytest.raises(ValueError, match="share a grid"):
        interval_overlap(proposals, np.ones((5, 6, 8), dtype=np.uint8))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_lookups_agree_with_the_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    proposals = drawn(rng)
    masks = masks_of(proposals)
    proposals.table[:, 9] = masks.sum(axis=(1, 2, 3))
    assert np.array_equal(coverage(proposals), masks.sum(axis=0))
    point = (int(rng.integers(5)), int(rng.integers(6)), int(rng.integers(7)))
    rows = proposals_at(proposals, point)
    assert sorted(rows) == np.flatnonzero(masks[:, *point]).tolist()
    assert (np.diff(proposals.table[rows, 9]) >= 0).all()
    region = (slice(1, 4), slice(0, 5), slice(2, 7))
    words = proposal_words(proposals, [3, 0, 7], region)
    for bit, index in enumerate((3, 0, 7)):
        assert np.array_equal(proposal_mask(proposals, index, region), masks[index][region])
        assert np.array_equal((words >> np.uint64(bit)) & np.uint64(1), masks[index][region])


def test_a_point_outside_the_scan_is_refused() -> None:
    with pytest.raises(IndexError, match="outside"):
        proposals_at(drawn(np.random.default_rng(0)), (5, 0, 0))


def test_a_voxel_exact_proposal_scores_one_and_the_atoms_do_not() -> None:
    score = score_scan(drawn_scan())
    liver, node = score.structures
    assert (liver.name, node.name) == ("liver", "node")
    assert liver.iou[-1] == liver.dice[-1] == 1
    assert liver.best == score.num_proposals - 1
    assert liver.best_source == "component"
    assert liver.iou[0] < liver.limit_iou < 1
    assert node.iou[-1] <= node.limit_iou


def test_structures_that_are_absent_or_tiny_are_stated() -> None:
    score = score_scan(drawn_scan())
    assert [(s.name, s.voxels, s.reason) for s in score.skipped] == [
        ("spleen", 0, "absent"),
        ("speck", 2, "fewer than 27 voxels"),
    ]


def test_a_label_map_of_background_only_names_what_is_missing() -> None:
    scan = drawn_scan()
    empty = replace(scan.labels[0], array=np.zeros_like(scan.labels[0].array))
    score = score_scan(replace(scan, labels=(empty,)))
    assert score.structures == ()
    assert {(skipped.voxels, skipped.reason) for skipped in score.skipped} == {(0, "absent")}
    assert {"liver", "node", "spleen"} <= {skipped.name for skipped in score.skipped}


def test_size_classes_are_volumes_not_voxel_counts() -> None:
    assert size_class(999.0) == "under 1 mL"
    assert size_class(1000.0) == "1 to 10 mL"
    fine = replace(drawn_scan(), spacing_zyx_mm=(0.3, 0.15, 0.15))
    assert {s.size_class for s in score_scan(fine).structures} == {"under 1 mL"}


def test_slic_is_scored_by_the_same_rule_over_all_its_scales() -> None:
    scan = drawn_scan()
    liver = score_scan(scan, config=CONFIG, slic=True).structures[0]
    truth = scan.labels[0].array == 1
    best = max(
        (truth & (segments == k)).sum() / (truth | (segments == k)).sum()
        for segments in slic_scales(scan.image, scan.spacing_zyx_mm, config=CONFIG.slic)
        for k in range(segments.max() + 1)
    )
    assert liver.slic_iou == pytest.approx(best)
    assert liver.slic_dice == pytest.approx(2 * best / (1 + best))


def test_means_are_over_scans_then_structures_then_data_sets() -> None:
    first, second = score_scan(drawn_scan()), score_scan(drawn_scan(1, "drawn_2"))
    other = score_scan(drawn_scan(2, "other_1", "other"))
    other = replace(other, structures=other.structures[1:])  # only the node
    total = summarize([other, second, first])
    assert total.overall is not None
    node = [s.iou[-1] for s in (first.structures[1], second.structures[1], other.structures[0])]
    assert total.overall.iou[-1] == pytest.approx(((1 + np.mean(node[:2])) / 2 + node[2]) / 2)
    assert [d.group for d in total.datasets] == ["drawn", "other"]
    assert [d.structures for d in total.datasets] == [2, 1]
    assert total.overall.recall[0][-1] == pytest.approx(
        ((1 + np.mean([x >= 0.5 for x in node[:2]])) / 2 + (node[2] >= 0.5)) / 2
    )


def test_tables_hold_every_structure_and_every_reason() -> None:
    total = summarize([score_scan(drawn_scan(), config=CONFIG, slic=True)], CONFIG)
    rows = list(csv.DictReader(io.StringIO(to_csv(total))))
    assert [(r["structure"], r["status"]) for r in rows] == [
        ("liver", "scored"),
        ("node", "scored"),
        ("spleen", "absent"),
        ("speck", "fewer than 27 voxels"),
    ]
    assert float(rows[0]["iou_at_all"]) == 1
    assert json.loads(to_json(total))["overall"]["iou"][-1] == total.overall.iou[-1]  # type: ignore[union-attr]
    text = to_markdown(total)
    assert "all / SLIC" in text
    assert "- drawn, absent: 1 structures: spleen" in text
    widths = {
        line.count("|") for line in text.split("## By structure")[1].splitlines() if line.startswith("|")
    }
    assert len(widths) == 1


def test_a_store_without_labels_says_so() -> None:
    total = summarize([score_scan(replace(drawn_scan(), labels=()))])
    assert total.overall is None
    assert "No label" in to_markdown(total)
    assert to_csv(total).count("\n") == 1
