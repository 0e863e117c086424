"""Confidences beside the Dice: pairs measured once, structures that are not there, the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import confidence
from benchmarks.confidence import dice, to_markdown
from tests.training.phantom_store import make_phantom_store


def test_dice_is_0_where_there_is_no_such_label() -> None:
    truth = np.array([[[0, 2, 2, 3]]], np.uint16)
    drawn = np.array([[[0, 1, 0, 0]]], bool)
    assert dice(drawn, truth, 2) == pytest.approx(2 / 3)
    assert dice(drawn, truth, 3) == 0
    assert dice(drawn, None, 2) == 0
    assert dice(drawn & False, truth, 7) == 0


def test_the_table_bins_what_is_there_and_counts_what_is_not() -> None:
    there = [
        {"confidence": c, "dice": d, "there": True}
        for c, d in [(0.1, 0.0), (0.7, 0.6), (0.75, 0.8), (1.0, 0.9)]
    ]
    absent = [{"confidence": c, "dice": 0.0, "there": False} for c in (0.2, 0.4, 0.9)]
    scores = {str(k): score for k, score in enumerate([*there, *absent])}
    table = to_markdown([{"seconds": 3.0, "scores": scores}])
    assert "| 0.0 to 0.2 | 1 | 0.00 |" in table
    assert "| 0.6 to 0.8 | 2 | 0.70 |" in table
    assert "| 0.8 to 1.0 | 1 | 0.90 |" in table
    assert "0.2 to 0.4" not in table
    assert "4 structures, Spearman 1.00" in table
    assert "3 structures that are not there: 2 called low, median 0.40" in table


@pytest.mark.long
@pytest.mark.usefixtures("quick_registration")
def test_pairs_are_measured_once_and_absent_ones_have_no_dice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_phantom_store(tmp_path / "store", num_scans=3, shape=(16, 24, 20)).path
    asked = [str(store), str(tmp_path / "out"), "--targets", "1", "--references", "1"]
    monkeypatch.setattr(sys, "argv", ["confidence.py", *asked])
    confidence.main()
    (cell,) = map(json.loads, (tmp_path / "out/confidence.jsonl").read_text().splitlines())
    assert cell["target"] != cell["reference"]
    assert all(0 <= score["confidence"] <= 1 and score["there"] for score in cell["scores"].values())
    first = capsys.readouterr().out
    monkeypatch.setattr(confidence, "measured", None)  # a second measurement would fail
    confidence.main()
    assert capsys.readouterr().out == first
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["confidence.py", *asked, "--absent", str(store)])
    (tmp_path / "out/confidence.jsonl").unlink()
    confidence.main()
    (cell,) = map(json.loads, (tmp_path / "out/confidence.jsonl").read_text().splitlines())
    assert all(score["dice"] == 0 and not score["there"] for score in cell["scores"].values())
    assert "that are not there" in capsys.readouterr().out
