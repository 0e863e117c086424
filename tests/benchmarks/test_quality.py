"""The measurement: which scans, finished cells kept and stale ones made again, tables, comparisons."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import first_version
from benchmarks.mask_methods import Entry, Made, Masked, with_segments
from benchmarks.quality_cells import (
    COUNTS,
    Cell,
    cell_path,
    drawn_scan,
    evenly_spaced,
    labelled_sources,
    make_cells,
    read_cells,
    score,
    with_more,
)
from benchmarks.quality_tables import columns_of, compare, comparisons, document, markdown, summary_line
from pipeline.proposals.config import ProposalConfig
from pipeline.quality.scoring import ScanScore


def of_ball(scan: Masked) -> Made:
    label = scan.labels[0].array.astype(int)
    return Made(rankings={"": with_segments(scan, [label], ProposalConfig())}, seconds=1.5)


def nothing(scan: Masked) -> Made:
    return Made(rankings={"": scan}, seconds=0.5)


def catalogue(version: int = 0) -> Mapping[str, Entry]:
    return {
        "ours": Entry(make=of_ball, settings={"version": version}),
        "other": Entry(make=nothing, settings={}),
    }


def newer() -> Mapping[str, Entry]:
    return catalogue(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, phantom) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "modality", "dataset"])
        for number in range(4):
            made = phantom(seed=number)
            made.write(folder / f"{number}.nii.gz")
            made.write_labels(folder / f"{number}-label.nii.gz")
            label = "" if number == 3 else f"{number}-label.nii.gz"
            writer.writerow([f"s{number}", f"{number}.nii.gz", label, "ct", "one" if number < 2 else "two"])
    return folder / "manifest.csv"


def scored(dataset: str, scan_id: str, iou: float) -> ScanScore:
    base = score(of_ball(drawn_scan()).rankings[""])
    structure = replace(
        base.structures[0], dataset=dataset, scan_id=scan_id, iou=(iou,) * 6, dice=(2 * iou / (1 + iou),) * 6
    )
    return replace(base, dataset=dataset, scan_id=scan_id, structures=(structure,))


def cell(method: str, dataset: str, scan_id: str, **iou: float) -> Cell:
    scores = {name.replace("_", " "): scored(dataset, scan_id, value) for name, value in iou.items()}
    scores = {"" if name == "own" else name: value for name, value in scores.items()}
    return Cell(
        key="k", scan_id=scan_id, dataset=dataset, method=method, seconds=2.0, num_bytes=10**6, scores=scores
    )


CELLS = [
    cell("ours", "a", "a1", own=0.6),
    cell("ours", "b", "b1", own=0.3),
    cell("ours", "b", "b2", own=0.9),
    cell("slic", "a", "a1", coarse_first=0.2, even=0.4),
    cell("slic", "b", "b1", coarse_first=0.3, even=0.2),
    cell("first", "a", "a1", own=0.5),
]


def test_the_scans_chosen_are_labelled_and_spread(manifest):
    assert [s.scan_id for s in labelled_sources(manifest, [], 1)] == ["s0", "s2"]
    assert [s.scan_id for s in labelled_sources(manifest, ["one"], None)] == ["s0", "s1"]
    with pytest.raises(SystemExit, match=r"three.*one, two"):
        labelled_sources(manifest, ["three"], None)
    assert evenly_spaced(range(11), 3) == [0, 5, 10]
    assert evenly_spaced(range(11), 1) == [5]
    assert evenly_spaced(range(2), 9) == [0, 1]


def test_finished_cells_are_kept_and_stale_ones_made_again(manifest, tmp_path):
    sources = labelled_sources(manifest, [], 1)

    def times() -> dict[str, int]:
        return {p.parent.name + p.stem: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*/*.json")}

    assert make_cells(sources, ["ours"], catalogue, tmp_path, workers=1) == []
    first = times()
    assert sorted(first) == ["ourss0", "ourss2"]
    cell_path(tmp_path, "ours", "s2").unlink()
    make_cells(sources, ["ours", "other"], catalogue, tmp_path, workers=1)
    second = times()
    assert sorted(second) == ["others0", "others2", "ourss0", "ourss2"]
    assert second["ourss0"] == first["ourss0"]
    make_cells(sources, ["ours", "other"], newer, tmp_path, workers=1)
    third = times()
    assert third["ourss0"] != first["ourss0"]
    assert third["others0"] == second["others0"]


def test_a_cell_is_read_as_it_was_written(manifest, tmp_path):
    sources = labelled_sources(manifest, ["two"], 1)
    make_cells(sources, ["ours"], catalogue, tmp_path, workers=1)
    (made,) = read_cells(sources, ["ours", "other"], tmp_path)
    assert (made.seconds, made.scan_id, made.dataset, made.method) == (1.5, "s2", "two", "ours")
    assert made.num_bytes > 0
    assert max(s.iou[-1] for s in made.scores[""].structures) == 1.0
    made.write(tmp_path / "again.json")
    assert Cell.read(tmp_path / "again.json") == made


def test_columns_beyond_2000_come_from_the_raised_number():
    low, high = scored("a", "a1", 0.3), scored("a", "a1", 0.7)
    assert with_more(low, high).structures[0].iou == (0.3, 0.3, 0.3, 0.3, 0.7, 0.7)
    assert COUNTS[3] == 2000


def test_ratios_are_over_the_scans_that_both_have():
    comparison = compare(columns_of(CELLS), "ours", "slic, coarse first")
    assert comparison.per_set == pytest.approx({"a": 3.0, "b": 1.0})
    assert comparison.mean_of_ratios == pytest.approx(2.0)
    assert comparison.ratio_of_means == pytest.approx(0.45 / 0.25)
    assert "b 1.00, a 3.00" in summary_line("slic", comparison)


def test_a_flat_method_gets_the_better_of_its_two_ways():
    told = dict(comparisons(columns_of(CELLS)))
    assert told["2,000 masks of slic (slic, even)"].other == "slic, even"
    assert told["first"].per_set == pytest.approx({"a": 1.2})
    assert not any("felzenszwalb" in words for words in told)


def test_a_set_where_the_other_reaches_nothing_is_told_of_and_has_no_ratio():
    cells = [*CELLS[:4], cell("slic", "b", "b1", coarse_first=0.0, even=0.0)]
    comparison = compare(columns_of(cells), "ours", "slic, even")
    assert comparison.per_set == pytest.approx({"a": 1.5})
    assert "no ratio: b" in summary_line("slic", comparison)


def test_the_report_has_every_set_method_and_size():
    text = markdown(CELLS, ["Measured."])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| mean of sets | 0.600 | 0.250 | 0.300 |  |" in rows
    assert any(row.startswith("| every | ours | 1 |") and "0.600 (100%, 0%)" in row for row in rows)
    assert sum(row.startswith("| 1 to 10 mL |") for row in rows) == 4 + 3  # columns of a, then of b
    values = json.loads(json.dumps(document(CELLS)))
    assert values["columns"]["ours"]["b"]["every"]["iou"][3] == pytest.approx(0.6)
    assert len(values["costs"]) == len(CELLS)


def test_the_first_version_is_checked_out_and_removed_again(tmp_path):
    root = Path(first_version.__file__).parents[1]
    known = subprocess.run(
        ["git", "-C", str(root), "cat-file", "-e", first_version.COMMIT], capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip("the history of this checkout lacks the first version")
    with first_version.working_tree(tmp_path / "tree") as tree:
        assert "ALGORITHM_VERSION = 1" in (tree / "pipeline" / "proposals.py").read_text(encoding="utf-8")
        assert not (tree / "benchmarks" / "quality.py").exists()
    assert not (tmp_path / "tree").exists()


def test_an_unknown_commit_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(first_version, "COMMIT", "0" * 40)
    with pytest.raises(SystemExit, match="cannot be checked out"), first_version.working_tree(tmp_path / "t"):
        pass
