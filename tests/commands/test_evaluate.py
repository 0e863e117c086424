"""`mass evaluate` on a small store, with a network whose answers are known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import evaluate as evaluating
from commands.main import main
from storage import commit_scan, create_store
from tests.training.evaluation.test_in_context import draw_scan
from tests.training.like_intensity import LikeIntensity
from training.network.iris import Iris
from training.network.preparation import TrainedOn


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("evaluating") / "store"
    create_store(path, spacing_mm=1.5, config={})
    for scan_id in ("a", "b", "c", "d"):
        commit_scan(path, draw_scan(scan_id, (1, 2)))
    commit_scan(path, draw_scan("lacking", (1,)))
    for scan_id in ("x", "y"):
        commit_scan(path, draw_scan(scan_id, (1,), dataset="other"))
    commit_scan(path, replace(draw_scan("bare", (1,)), labels=()))
    return path


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> LikeIntensity:
    made = LikeIntensity()
    made.trained_on = TrainedOn(spacing_mm=2.0, crop_voxels=(32, 32, 48))
    monkeypatch.setattr(evaluating, "load_checkpoint", lambda path, weights: made)
    return made


def mass(store: Path, tmp_path: Path, *options: str) -> tuple[int, dict]:
    told = tmp_path / "told.json"
    code = main(["evaluate", "checkpoint", str(store), *options, "--json", str(told)])
    return code, json.loads(told.read_text()) if told.exists() else {}


def cases(document: dict) -> set[tuple[str, ...]]:
    return {(case["target"], *case["references"]) for case in document["cases"]}


def test_tables_are_printed_and_written(
    net: LikeIntensity, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv"))
    code, document = mass(store, tmp_path, "--dataset", "drawn", "--target", "a", "--target", "b", *files)
    assert code == 0
    assert document["mean"]["dice"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert document["mean"]["hd95_mm"]["mean"] == 0.0
    assert {case["target"] for case in document["cases"]} == {"a", "b"}
    out = capsys.readouterr().out
    assert "drawn / organs / liver" in " ".join(out.split())
    assert "the store's voxels measure 1.5 mm, those that the network was trained on 2 mm" in out
    assert "## By case" in (tmp_path / "t.md").read_text()
    with (tmp_path / "t.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(document["cases"])


def test_fixed_random_and_ensembled_references(net: LikeIntensity, store: Path, tmp_path: Path) -> None:
    here = ("--dataset", "drawn", "--target", "d", "--target", "lacking")
    _, fixed = mass(store, tmp_path, *here, "--references", "fixed", "--shots", "2")
    assert cases(fixed) == {("d", "a", "b"), ("lacking", "a", "b")}
    _, named = mass(store, tmp_path, *here, "--references", "fixed", "--reference", "c")
    assert cases(named) == {("d", "c"), ("lacking", "c")}
    _, drawn = mass(store, tmp_path, *here, "--prompts", "2", "--seed", "3")
    assert len(cases(drawn)) == 4
    _, again = mass(store, tmp_path, *here, "--prompts", "2", "--seed", "3")
    assert {k: v for k, v in drawn.items() if k != "seconds"} == {
        k: v for k, v in again.items() if k != "seconds"
    }
    _, together = mass(store, tmp_path, *here, "--references", "ensemble", "--prompts", "3")
    assert {(case["target"], len(case["references"])) for case in together["cases"]} == {
        ("d", 3),
        ("lacking", 3),
    }
    absent = next(
        case for case in together["cases"] if (case["target"], case["structure"]) == ("lacking", "2")
    )
    assert (absent["state"], absent["dice"]) == ("absent", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label-map", "nerves"), "there is no label map 'nerves'. There are: organs"),
        (("--dataset", "nobody"), "there is no data set with labels 'nobody'. There are: drawn, other"),
        (("--target", "zz"), "scan 'zz' is not in"),
        (("--references", "fixed"), "fixed references are of one data set and label map, there are 2"),
    ],
)
def test_what_is_not_in_the_store_is_named(
    net: LikeIntensity,
    store: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mass(store, tmp_path, *options) == (2, {})
    assert message in capsys.readouterr().err


def test_a_real_network_is_evaluated(store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Iris((2, 4, 4, 8, 32), 1).state_dict(), tmp_path / "net.pt")
    told = tmp_path / "told.json"
    options = ["--dataset", "other", "--window", "32", "32", "48", "--prompts", "1", "--json", str(told)]
    assert main(["evaluate", str(tmp_path / "net.pt"), str(store), *options]) == 0
    (structure,) = json.loads(told.read_text())["structures"]
    assert (structure["structure"], structure["num_cases"]) == ("liver", 1)
