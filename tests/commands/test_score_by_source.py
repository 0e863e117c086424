"""`mass score` and `mass inspect` tell own and imported masks apart."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from storage import open_store
from tests.exchange_store import draw_store, two_phantoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which one scan has the expert's labels as imported masks."""
    folder = tmp_path_factory.mktemp("by_source")
    draw_store(folder, two_phantoms())
    label = folder / "raw" / "ann_label.nii.gz"
    assert main(["import-masks", str(folder / "store"), str(label), "--source", "expert"]) == 0
    return folder


def test_imported_labels_find_themselves_and_own_blocks_do_not(folder: Path, tmp_path: Path) -> None:
    markdown, table, result = tmp_path / "s.md", tmp_path / "s.csv", tmp_path / "s.json"
    files = ["--markdown", str(markdown), "--csv", str(table), "--json", str(result)]
    assert main(["score", str(folder / "store"), *files]) == 0
    scans = {scan["scan_id"]: scan for scan in json.loads(result.read_text())["scans"]}
    for entry in scans["ann"]["structures"]:
        dice = {one["name"]: one["dice"] for one in entry["by_origin"]}
        assert set(dice) == {"own", "expert"}
        assert dice["expert"] == pytest.approx(1.0)
        assert dice["own"] < 0.9
        assert entry["dice"][-1] == pytest.approx(max(dice.values()))
    assert all(entry["by_origin"] == [] for entry in scans["ben"]["structures"])
    text = markdown.read_text()
    assert "## By source" in text
    assert "| data set | scans | Dice, own | expert | all |" in text
    assert "| phantoms | 1 | " in text
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["status"] == "scored"]
    assert {row["dice_expert"] == "" for row in rows if row["scan"] == "ben"} == {True}
    assert {float(row["dice_expert"]) for row in rows if row["scan"] == "ann"} == {1.0}


def test_without_imports_the_tables_are_those_of_before(folder: Path, tmp_path: Path) -> None:
    markdown, table = tmp_path / "s.md", tmp_path / "s.csv"
    files = ["--markdown", str(markdown), "--csv", str(table)]
    assert main(["score", str(folder / "store"), "--scan", "ben", *files]) == 0
    assert "By source" not in markdown.read_text()
    assert not any(
        name.startswith("dice_") and not name.startswith("dice_at")
        for name in table.read_text().split("\n")[0].split(",")
    )


def test_the_page_counts_and_draws_imported_masks(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["inspect", str(folder / "store"), "--scan", "ann", "--out", str(page)]) == 0
    text = page.read_text()
    number = int(np.sum(open_store(folder / "store").scan("ann").proposals.source_names == "expert"))
    assert f"2 own, {number} expert" in text
    assert "imported expert" in text
    assert "Dice, expert" in text
