"""The test bench: drawn scans are exact, no patient is on two sides, cells are kept, tables are true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.bench.__main__ as script
from benchmarks.bench import report
from benchmarks.bench.arms import ARMS
from benchmarks.bench.masks import NUM_BEST, make_store, with_best_masks, with_expert_masks
from benchmarks.bench.phantoms import ORGANS, UNSEEN, PhantomConfig, draw_phantom
from benchmarks.bench.plan import ALL, FULL, QUICK, Cell, cells_of, chosen, seconds_of
from benchmarks.bench.run import Bench, claimed, run_cells
from benchmarks.bench.sets import SETS, BenchSet, Sources, prepare_settings, split_of
from storage import Store
from storage.records.proposal_checks import check_proposals
from tests.training.phantom_store import make_phantom_store, phantom_record

SMALL = PhantomConfig(shape_zyx=(24, 32, 32), noise=5.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_phantom_store(tmp_path_factory.mktemp("store") / "store", num_scans=5, shape=(16, 20, 16))


# ------------------------------------------------------------------------------------ drawn scans


def test_a_subject_follows_from_its_number_and_the_seed() -> None:
    one, again = (draw_phantom(SMALL, 3, unseen=True) for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.labels, again.labels)
    for other in (draw_phantom(SMALL, 4, unseen=True), draw_phantom(replace(SMALL, seed=1), 3, unseen=True)):
        assert (other.labels != one.labels).any()


def test_the_unseen_shapes_are_left_out_of_pretraining_and_nothing_else() -> None:
    seen, all_shapes = (draw_phantom(SMALL, 0, unseen=unseen) for unseen in (False, True))
    values = {organ.value for organ in ORGANS}
    unseen = {organ.value for organ in ORGANS if organ.name in UNSEEN}
    assert set(np.unique(all_shapes.labels)) - {0} == values
    assert set(np.unique(seen.labels)) - {0} == values - unseen
    elsewhere = ~np.isin(all_shapes.labels, list(unseen))
    np.testing.assert_array_equal(seen.labels[elsewhere], all_shapes.labels[elsewhere])


def test_an_organ_is_where_its_brightness_is() -> None:
    drawn = draw_phantom(replace(SMALL, deformation=0.0), 1, unseen=True)
    spine = drawn.image[drawn.labels == 7]
    body = drawn.image[(drawn.labels == 0) & (drawn.image > 150)]
    assert np.median(spine) > np.median(body) + 100


def test_about_half_of_the_subjects_have_the_enlarged_spleen() -> None:
    drawn = [draw_phantom(SMALL, number, unseen=False) for number in range(20)]
    sizes = {True: [], False: []}
    for each in drawn:
        sizes[each.enlarged].append(int((each.labels == 2).sum()))
    assert 5 <= len(sizes[True]) <= 15
    assert np.mean(sizes[True]) > 1.7 * np.mean(sizes[False])


# ------------------------------------------------------------------------------------ sets and masks


def test_no_patient_is_on_two_sides() -> None:
    class Entry:
        labels, split = ("heart",), ""

    class Hearts:
        path = Path("hearts")

        def __init__(self, patients: int) -> None:
            self.entries = {f"p{k:02d}_frame{phase}": Entry() for k in range(patients) for phase in (1, 2)}

    about = SETS["acdc"]
    split = split_of(about, Hearts(9))
    assert split == split_of(about, Hearts(9))
    sides = [{about.patient_of(scan_id) for scan_id in ids} for ids in (split.targets, split.pool)]
    assert len(sides[0]) == 3  # a third
    assert len(split.targets) == 6
    assert not sides[0] & sides[1]
    assert len(split.pool) == len(sides[1]) == 6
    assert {about.patient_of(scan_id) for scan_id in split.pretraining} == sides[1]
    with pytest.raises(SystemExit, match="two at least are needed"):
        split_of(about, Hearts(1))


def test_more_labelled_scans_hold_the_fewer(store: Store) -> None:
    about = replace(SETS["hippocampus"], targets=1)
    each = BenchSet(about=about, store=store, split=split_of(about, store))
    assert each.labelled(2, 3)[:2] == each.labelled(2, 2)
    assert set(each.labelled(2, ALL)) == set(each.split.pool)
    assert len({each.labelled(seed, 1) for seed in range(8)}) > 1


def test_experts_masks_are_their_structures_and_all_of_them_together() -> None:
    record = phantom_record("a", seed=1)
    made = with_expert_masks(record)
    check_proposals(made.atoms, made.orders, made.table, made.scores, len(made.sources))
    labels = record.labels[0].array
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    assert made.table[:, 9].tolist() == [*counts.tolist(), int(counts.sum())]
    assert len(made.table) == len(values) + 1
    empty = replace(record.labels[0], array=np.zeros_like(labels))
    with pytest.raises(ValueError, match="its label map is empty"):
        with_expert_masks(replace(record, labels=(empty,)))


def test_the_best_masks_are_the_first_ones_of_the_same_scans(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.bench.masks.NUM_BEST", 3)
    made = make_store(store, tmp_path / "best", "best-3", with_best_masks, store.scan_ids[:2])
    assert made.scan_ids == store.scan_ids[:2]
    for scan_id in made.scan_ids:
        own, few = store.scan(scan_id), made.scan(scan_id)
        assert own.entry.num_proposals > 3 == few.entry.num_proposals
        region = tuple(slice(0, side) for side in own.shape)
        np.testing.assert_array_equal(few.masks([0, 1, 2], region), own.masks([0, 1, 2], region))
        np.testing.assert_array_equal(few.image(), own.image())
    assert NUM_BEST == 250


def test_a_set_is_prepared_at_its_spacing() -> None:
    assert "spacing_mm = 3.0" in prepare_settings(SETS["acdc"])
    assert "max_proposals = 200" in prepare_settings(SETS["adrenal"])


# ------------------------------------------------------------------------------------ cells


POOLS = dict.fromkeys(SETS, 30)


def test_a_pretraining_comes_before_what_needs_it() -> None:
    cells = list(cells_of(FULL, SETS, POOLS))
    assert len(set(cells)) == len(cells)
    places = {cell: number for number, cell in enumerate(cells)}
    needy = [cell for cell in cells if cell.needs]
    assert needy
    assert all(places[cell.needs] < places[cell] for cell in needy)
    assert {cell.needs.arm for cell in needy if cell.arm == "ours-encoder"} == {"ours"}
    assert not any(cell.needs for cell in cells if cell.arm in ("scratch", "copied"))


def test_only_arms_that_can_answer_in_context_are_asked_to() -> None:
    cells = [cell for cell in cells_of(FULL, SETS, POOLS) if cell.use in ("one-shot", "five-shot")]
    assert {cell.arm for cell in cells} == {"copied", "demons", "registration", "slic", "ours", "expert"}


def test_arms_of_other_settings_run_where_they_are_named_and_share_nothing(
    store: Store, tmp_path: Path
) -> None:
    odd = {name for name, arm in ARMS.items() if arm.only_when_named}
    assert odd == {"first", "ours-crops", "ours-half", "ours-best"}
    assert not odd & {*FULL.arms, *QUICK.arms}
    options = script.parser().parse_args([str(tmp_path), "--quick", "--only", "hippocampus/ours-crops"])
    form = script.form_of(options)
    assert set(form.arms) - set(QUICK.arms) == {"ours-crops"}
    about = replace(SETS["hippocampus"], targets=1)
    sets = {"hippocampus": BenchSet(about=about, store=store, split=split_of(about, store))}
    bench = Bench(out=tmp_path, sources=Sources(out=tmp_path), form=form, sets=sets)
    ours, crops, mae = (
        Cell(set="hippocampus", seed=0, arm=arm, use="pretrain") for arm in ("ours", "ours-crops", "mae")
    )
    assert bench.config(ours) == bench.config(mae)
    assert bench.config(ours).data.whole_fraction == 1.0
    assert bench.config(crops).data == replace(bench.config(ours).data, whole_fraction=0.0)
    assert bench.key(crops).rsplit("/", 1)[1] != bench.key(ours).rsplit("/", 1)[1]


def test_fine_tunings_on_more_labels_than_there_are_are_left_out() -> None:
    few = {cell.use for cell in cells_of(FULL, {"acdc": SETS["acdc"]}, {"acdc": 4})}
    assert {use for use in few if use.startswith("finetune")} == {"finetune-1-150", "finetune-all-150"}
    assert "five-shot" not in few


def test_fine_tunings_on_carried_labels_run_where_they_are_asked_for() -> None:
    about, pools = {"acdc": SETS["acdc"]}, {"acdc": 4}
    assert not any(cell.with_carried for cell in cells_of(FULL, about, pools))
    options = script.parser().parse_args(["out", "--carried", "1", "5", "--steps", "150", "--counts", "1"])
    cells = list(cells_of(script.form_of(options), about, pools))
    assert {cell.use for cell in cells if cell.with_carried} == {"carried-1-150"}, "five are not there"
    assert Cell(set="acdc", seed=0, arm="ours", use="carried-1-150").labels_and_steps == (1, 150)
    plain, more = (
        Cell(set="acdc", seed=0, arm="ours", use=f"{kind}-1-150") for kind in ("finetune", "carried")
    )
    assert more.needs == plain.needs
    assert seconds_of(more, FULL, targets=6, pool=14, measured={}) > seconds_of(
        plain, FULL, targets=6, pool=14, measured={}
    )
    assert report.use_title("carried-1-150") == (
        "fine-tuned on 1 labelled scan and labels carried over to the others, 150 steps"
    )


def test_filters_take_parts_and_add_the_pretrainings() -> None:
    cells = list(cells_of(QUICK, {name: SETS[name] for name in QUICK.sets}, POOLS))
    found = chosen(cells, ["phantoms/mae/finetune-5-*", "hippocampus/copied"])
    assert {(cell.set, cell.arm, cell.use) for cell in found} == {
        ("phantoms", "mae", "pretrain"),
        ("phantoms", "mae", "finetune-5-50"),
        ("hippocampus", "copied", "one-shot"),
        ("hippocampus", "copied", "five-shot"),
    }
    assert chosen(cells, []) == cells
    with pytest.raises(SystemExit, match=r"arms: .*genesis"):
        chosen(cells, ["phantoms/masked"])


def hours(form: Any) -> float:
    sizes = {name: script.expected_sizes(SETS[name]) for name in form.sets}
    pools = {name: pool for name, (_, pool) in sizes.items()}
    total = 0.0
    for cell in cells_of(form, {name: SETS[name] for name in form.sets}, pools):
        targets, pool = sizes[cell.set]
        total += seconds_of(cell, form, targets=targets, pool=pool, measured={})
    return total / 3600


def test_the_forms_stay_within_their_time_on_two_cores() -> None:
    assert hours(QUICK) / 2 <= 40 / 60
    assert hours(FULL) / 2 <= 12


def test_what_was_measured_replaces_the_estimate() -> None:
    cell = Cell(set="acdc", seed=0, arm="mae", use="pretrain")
    usual = seconds_of(cell, FULL, targets=1, pool=1, measured={})
    longer = replace(FULL, pretraining_steps=2 * FULL.pretraining_steps)
    assert seconds_of(cell, longer, targets=1, pool=1, measured={}) > 1.8 * usual
    assert seconds_of(cell, FULL, targets=1, pool=1, measured={("acdc", "mae", "pretrain"): 7.0}) == 7.0


def test_a_dry_run_lists_the_cells_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([str(tmp_path / "out"), "--quick", "--dry-run", "--only", "phantoms/mae"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        f"phantoms/mae/{use}/seed0" for use in ("pretrain", "finetune-1-50", "finetune-5-50", "classify")
    ]
    assert "4 cells; about" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_cells_are_made_once_and_others_are_left_to_other_processes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = replace(SETS["hippocampus"], targets=1)
    sets = {"hippocampus": BenchSet(about=about, store=store, split=split_of(about, store))}
    form = replace(QUICK, window_voxels=4096)
    bench = Bench(out=tmp_path, sources=Sources(out=tmp_path), form=form, sets=sets)
    cells = chosen(cells_of(form, {"hippocampus": about}, {"hippocampus": 4}), ["hippocampus/mae"])
    made: list[str] = []

    def do(self: Bench, cell: Cell) -> dict[str, Any]:
        made.append(cell.name)
        return {"key": self.key(cell), "seconds": 1.0}

    monkeypatch.setattr(Bench, "do", do)
    with claimed(tmp_path, bench.key(cells[1])) as mine:
        assert mine
        with claimed(tmp_path, bench.key(cells[1])) as again:
            assert not again
        monkeypatch.setattr("benchmarks.bench.run.time.sleep", lambda seconds: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # it waits for the cell that another process is at
            run_cells(bench, cells)
    assert made == [cell.name for cell in cells if cell != cells[1]]
    assert [cell["key"] for cell in run_cells(bench, cells)] == [bench.key(cell) for cell in cells]
    assert sorted(made) == sorted(cell.name for cell in cells)
    longer = Bench(
        out=tmp_path, sources=Sources(out=tmp_path), form=replace(form, pretraining_steps=9), sets=sets
    )
    assert not {longer.key(cell) for cell in cells} & set(longer.kept())


def test_a_cell_that_fails_is_left_out_with_those_that_need_it_and_the_others_go_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = replace(SETS["hippocampus"], targets=1)
    sets = {"hippocampus": BenchSet(about=about, store=store, split=split_of(about, store))}
    form = replace(QUICK, window_voxels=4096)
    bench = Bench(out=tmp_path, sources=Sources(out=tmp_path), form=form, sets=sets)
    asked = ["hippocampus/slic", "hippocampus/scratch"]
    cells = chosen(cells_of(form, {"hippocampus": about}, {"hippocampus": 4}), asked)

    def do(self: Bench, cell: Cell) -> dict[str, Any]:
        if cell.use == "pretrain":
            raise ValueError("no masks")
        return {"key": self.key(cell), "seconds": 1.0}

    monkeypatch.setattr(Bench, "do", do)
    done = run_cells(bench, cells)
    assert {found["key"] for found in done} == {bench.key(cell) for cell in cells if cell.arm == "scratch"}
    assert "hippocampus/slic/pretrain/seed0: FAILED, left out: no masks" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ tables


def answers(
    dice: dict[str, float], structures: tuple[str, ...] = ("whole", "a", "b")
) -> list[dict[str, Any]]:
    """One answer a patient with the same Dice of every structure."""
    return [
        {
            "target": target,
            "references": [],
            "scores": {name: {"dice": value, "ratio": 1.5} for name in structures},
        }
        for target, value in dice.items()
    ]


def cell(arm: str, use: str, seed: int, dice: dict[str, float]) -> dict[str, Any]:
    return {"set": "acdc", "arm": arm, "use": use, "seed": seed, "answers": answers(dice)}


CELLS = [
    cell("copied", "one-shot", 0, {"p1_frame1": 0.1, "p2_frame1": 0.3}),
    cell("scratch", "finetune-5-150", 0, {"p1_frame1": 0.4, "p1_frame2": 0.6, "p2_frame1": 0.5}),
    cell("scratch", "finetune-5-150", 1, {"p1_frame1": 0.5, "p1_frame2": 0.5, "p2_frame1": 0.5}),
    cell("ours", "finetune-5-150", 0, {"p1_frame1": 0.7, "p1_frame2": 0.7, "p2_frame1": 0.7}),
]


def test_phases_of_a_patient_count_as_one() -> None:
    table = report.table_of(CELLS[1:3], SETS["acdc"], report.mean_dice(["a", "b"]))
    assert table.patients == ("p1", "p2")
    assert table.seeds == (0, 1)
    np.testing.assert_allclose(table.values, 0.5)
    assert table.interval() == (0.5, 0.5)


def test_a_difference_is_of_the_seeds_and_patients_that_both_have() -> None:
    ours, scratch = (
        report.table_of(some, SETS["acdc"], report.mean_dice(["a", "b"])) for some in (CELLS[3:], CELLS[1:3])
    )
    ahead = ours.minus(scratch)
    assert ahead is not None
    assert ahead.seeds == (0,)
    assert ahead.mean == pytest.approx(0.2)
    assert report.table_of([], SETS["acdc"], report.mean_dice(["a"])).minus(ours) is None


def test_an_interval_holds_the_mean_and_widens_with_the_spread() -> None:
    generator = np.random.default_rng(0)
    narrow, wide = (
        report.Table(
            values=generator.normal(0.5, spread, (3, 8)), patients=tuple(map(str, range(8))), seeds=(0, 1, 2)
        )
        for spread in (0.01, 0.1)
    )
    for table in (narrow, wide):
        low, high = table.interval()
        assert low < table.mean < high
    assert np.diff(wide.interval()) > 3 * np.diff(narrow.interval())


def test_the_tables_have_every_arm_with_its_rivals(tmp_path: Path) -> None:
    sets = {"acdc": SETS["acdc"]}
    classes = {"set": "acdc", "arm": "mae", "use": "classify", "seed": 0, "classes": {"auc": 0.75}}
    trained = {"set": "acdc", "arm": "mae", "use": "pretrain", "seed": 0, "steps": 9}
    trained |= {"first_loss": 2.0, "last_loss": 1.0, "seconds": 60}
    text = report.to_markdown([*CELLS, classes, trained], sets)
    rows = [line for line in text.splitlines() if line.startswith("| **our masks**")]
    assert rows[0] == "| **our masks** | 0.70 (0.70 to 0.70) |"
    assert "| +0.20 (+0.20 to +0.20) | 1.50 | 1 |" in rows[1]
    assert "| *copied* | 0.20 (0.10 to 0.30) |" in text
    assert "| masked autoencoding | 0.750 (0.750 to 0.750) |" in text
    assert "| masked autoencoding | 1 | 9 | 2.000 to 1.000 | 60 |" in text
    report.draw(CELLS, sets, {"acdc": 14}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert len(np.unique(np.asarray(plot.convert("RGB")).reshape(-1, 3), axis=0)) > 5


def test_unseen_shapes_have_a_column_of_their_own() -> None:
    columns = report.columns_of(SETS["phantoms"], ["whole", "liver", "spleen", "ring"])
    assert columns[report.PARTS] == ["liver", "spleen"]
    assert columns[report.UNSEEN] == ["ring"]


def test_every_arm_and_use_has_a_title() -> None:
    for cell in cells_of(FULL, SETS, POOLS):
        assert report.TITLES[cell.arm]
        if cell.use != "pretrain":
            assert report.use_title(cell.use)
    assert set(ARMS) <= set(report.TITLES)


# ------------------------------------------------------------------------------------ from end to end


@pytest.mark.long
def test_the_bench_goes_from_drawn_scans_to_a_table_and_keeps_its_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = [str(out), "--quick", "--subjects", "2", "2", "2", "--shape", "16", "24", "24"]
    command += ["--window-voxels", "4096", "--pretraining-steps", "2", "--counts", "1", "--steps", "2"]
    command += ["--only", "phantoms/copied/one-shot", "phantoms/scratch/finetune*", "phantoms/mae/finetune*"]
    command += ["phantoms/ours/one-shot"]
    script.main(command)
    text = capsys.readouterr().out
    assert "| masked autoencoding |" in text
    assert (out / "results.md").read_text() == text[:-1]
    kept = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert {(cell["arm"], cell["use"]) for cell in kept} == {
        ("copied", "one-shot"),
        ("scratch", "finetune-1-2"),
        ("mae", "pretrain"),
        ("mae", "finetune-1-2"),
        ("ours", "pretrain"),
        ("ours", "one-shot"),
    }
    assert not list(out.glob("runs/*/*/checkpoints"))
    for cell in kept:
        for answer in cell.get("answers", []):
            assert answer["target"] in {"phantom_0004", "phantom_0005"}
            assert set(answer["references"]) <= {"phantom_0002", "phantom_0003"}
    monkeypatch.setattr(Bench, "do", None)  # nothing is made again
    script.main(command)
    assert capsys.readouterr().out == text
