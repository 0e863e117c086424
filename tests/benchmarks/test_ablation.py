"""Parts taken out: each changes something. Settings chosen on other sets: the choice is blind."""

from __future__ import annotations

import pytest

from benchmarks.ablation import change_table, other_parts, parts, replaced, rules, tree_parts
from benchmarks.held_out import GRID, held_out_table, leave_one_out, settings
from benchmarks.mask_methods import proposed_entry
from benchmarks.quality_cells import drawn_scan
from pipeline.proposals.config import ProposalConfig

MEANS = {
    "wide": {"a": 0.9, "b": 0.1, "c": 0.1},
    "ours": {"a": 0.5, "b": 0.2, "c": 0.2},
    "same": {"a": 0.5, "b": 0.2, "c": 0.2},
}


def test_no_part_is_the_default_or_another_part():
    config = ProposalConfig()
    changed = tree_parts(config) | other_parts(config)
    assert all(part != config for part in changed.values())
    digests = [str(entry.settings) for entry in parts().values()]
    assert len(set(digests)) == len(digests) == len(changed) + len(rules()) + 1


def test_every_kind_of_tree_is_taken_out_once():
    specs = ProposalConfig().specs
    kinds = {name: part.specs for name, part in tree_parts(ProposalConfig()).items()}
    for spec in specs:
        assert spec not in kinds[f"no-{spec.method}-trees"]
        assert spec not in kinds[f"no-trees-of-{spec.partition}"]
    assert all(set(left) < set(specs) for left in kinds.values())


def test_replaced_rules_choose_other_regions_and_are_put_back():
    small = ProposalConfig(trees=("fine-contrast-0.7mm", "fine-compact"), max_proposals=40)
    scan, entry = drawn_scan(), proposed_entry(small, raised_to=None)
    ours = entry.make(scan).rankings[""].table.tolist()
    for name in ("chosen-at-random", "chosen-by-growth", "no-agreement-of-trees"):
        other = replaced(entry, *rules()[name])(scan).rankings[""].table.tolist()
        assert len(other) > 20, name
        assert other != ours, name
    assert entry.make(scan).rankings[""].table.tolist() == ours


def test_without_absorbing_slivers_regions_are_given_up():
    few = ProposalConfig(trees=("fine-contrast-0.7mm", "fine-compact"), max_proposals=40, max_atoms=60)
    entry = proposed_entry(few, raised_to=None)
    absorbed = entry.make(drawn_scan()).rankings[""]
    given_up = replaced(entry, *rules()["no-slivers-absorbed"])(drawn_scan()).rankings[""]
    assert max(int(masked.atoms[0].max()) for masked in (absorbed, given_up)) < 60
    assert len(given_up.table) < len(absorbed.table)


def test_changes_are_listed_from_the_most_harmful():
    rows = change_table({"ours": {"a": 0.5, "b": 0.3}, "x": {"a": 0.6, "b": 0.3}, "y": {"a": 0.1, "b": 0.3}})
    assert rows[2] == "| ours | 0.500 | 0.300 | 0.400 |"
    assert [row.split(" | ")[0] for row in rows[3:]] == ["| y", "| x"]
    assert rows[3].endswith("| -0.400 | +0.000 | -0.200 |")


def test_a_set_has_no_say_in_its_own_choice():
    rows = {row.dataset: row for row in leave_one_out(MEANS)}
    assert rows["a"].chosen == "ours"  # wide is best for a alone
    assert (rows["a"].iou, rows["a"].default_iou, rows["a"].best_iou) == (0.5, 0.5, 0.9)
    assert rows["b"].chosen == rows["c"].chosen == "wide"
    assert rows["b"].iou == 0.1
    assert held_out_table(list(rows.values()))[-1] == "| mean |  | 0.233 | 0.300 | -0.067 | 0.433 |"


def test_means_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="'ours'"):
        leave_one_out({"wide": MEANS["wide"]})
    with pytest.raises(ValueError, match="wide"):
        leave_one_out({"ours": MEANS["ours"], "wide": {"a": 0.1, "b": 0.1}})
    with pytest.raises(ValueError, match="two sets"):
        leave_one_out({"ours": {"a": 0.1}})


def test_every_setting_of_the_grid_is_one_that_the_config_takes():
    entries = settings(GRID | {"windows": {"percentile_windows": [[0.0, 100.0]]}})
    assert len(entries) == len(GRID) + 2
