"""Pages of evaluations: the worst first, predictions beside labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk

from commands.main import main
from commands.pages.evaluation import compare
from tests.commands.test_pages import balanced
from tests.exchange_store import draw_store, two_phantoms


def test_the_json_of_an_evaluation_has_its_worst_case_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def case(target: str, dice: float | None) -> dict[str, object]:
        return {
            "dataset": "d", "label": "seg", "structure": "li<ver", "target": target, "references": ["r"],
            "state": "found", "dice": dice, "hd95_mm": None, "asd_mm": 1.25,
        }  # fmt: skip

    mean = {"mean": 0.5, "low": 0.4, "high": 0.6}
    whole = {"dice": mean, "hd95_mm": mean, "asd_mm": mean}
    structure = {
        "dataset": "d",
        "label": "seg",
        "structure": "li<ver",
        "num_cases": 2,
        "num_missed": 0,
    } | whole
    file = tmp_path / "E.json"
    cases = [case("good", 0.9), case("bad", 0.1), case("absent", None)]
    file.write_text(
        json.dumps({"cases": cases, "structures": [structure], "mean": whole, "facts": ["seed 0"]})
    )
    assert main(["inspect", str(file)]) == 0
    page = (tmp_path / "E-page.html").read_text()
    assert balanced(page)
    assert page.index(">bad<") < page.index(">good<")
    assert ">absent<" not in page
    assert "li&lt;ver" in page
    file.write_text("{}")
    assert main(["inspect", str(file)]) == 2
    assert "mass evaluate --json" in capsys.readouterr().err


def test_results_beside_labels_have_the_worst_scan_first_and_each_value_its_dice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = draw_store(tmp_path, two_phantoms())
    results = tmp_path / "results"
    results.mkdir()
    for name in ("ann", "ben"):
        label = sitk.ReadImage(str(tmp_path / "raw" / f"{name}_label.nii.gz"))
        if name == "ben":  # turned: so placed rightly, or not alike at all
            lost = max(int(v) for v in set(sitk.GetArrayFromImage(label).ravel()))
            label = sitk.ChangeLabel(label, changeMap={lost: 0})
        sitk.WriteImage(label, str(results / f"{name}_seg.nii.gz"))
    (results / "ann_seg.png").touch()
    first, second = compare(store, results)[0]
    assert (first.scan_id, second.scan_id) == ("ben", "ann")
    assert {pair.dice for pair in second.pairs} == {1.0}
    assert [pair.dice for pair in first.pairs] == [0.0] + [1.0] * (len(first.pairs) - 1)
    assert (first.pairs[0].value, first.pairs[0].other, first.pairs[0].note) == (
        lost,
        -1,
        "nothing was drawn",
    )
    assert first.pairs[1].other == 1  # the map after the only label map
    out = tmp_path / "page.html"
    assert main(["inspect", str(results), "--against", str(store.path), "--out", str(out)]) == 0
    page = out.read_text()
    assert page.count('class="pack"') == 2
    assert page.index('data-scan="ben">ben<') < page.index('data-scan="ann">ann<')
    small = ["inspect", str(results), "--against", str(store.path), "--out", str(out), "--megabytes", "0"]
    assert main([*small, "--scan", "ann"]) == 0
    assert 'class="pack"' not in out.read_text()
    assert "ben" not in out.read_text()


def test_results_without_a_labelled_scan_are_refused_and_broken_ones_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = draw_store(tmp_path, two_phantoms())
    results = tmp_path / "results"
    results.mkdir()
    assert main(["inspect", str(results), "--against", str(store.path)]) == 2
    assert "no NAME_seg here belongs to a labelled scan" in capsys.readouterr().err
    (results / "ben_seg.nii.gz").write_bytes(b"broken")
    good = (tmp_path / "raw" / "ann_label.nii.gz").read_bytes()
    (results / "ann_seg.nii.gz").write_bytes(good)
    assert main(["inspect", str(results), "--against", str(store.path)]) == 1
    assert "ben" in capsys.readouterr().out
    assert main(["inspect", str(results / "ann_seg.nii.gz"), "--against", str(store.path)]) == 2
    assert "takes a folder" in capsys.readouterr().err
