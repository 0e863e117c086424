"""`mass evaluate` on a small store, with a network whose answers are known."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import evaluate as evaluating
from commands.main import main
from commands.pages.predictions import WorstPredictions
from storage import commit_scan, create_store, open_store
from tests.training.evaluation.test_in_context import draw_scan
from tests.training.like_intensity import LikeIntensity
from training.evaluation import Score
from training.inference import Structure
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


def test_the_page_carries_each_target_with_its_worst_prediction_beside_its_labels(
    net: LikeIntensity, store: Path, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "page.html"
    here = ("--dataset", "drawn", "--target", "d", "--target", "lacking", "--prompts", "2")
    code, document = mass(store, tmp_path, *here, "--whole", "--page", str(page))
    assert code == 0
    text = page.read_text()
    packs = dict(re.findall(r'class="pack" data-scan="(\w+)"[^>]*>([^<]+)<', text))
    assert set(packs) == {"d", "lacking"}
    stream = gzip.decompress(base64.b64decode(packs["lacking"]))
    about = json.loads(stream[4 : 4 + int.from_bytes(stream[:4], "little")])["about"]
    assert [label["name"] for label in about["labels"]] == ["organs", "prediction"]
    by_name = {pair["name"]: pair for pair in about["pairs"]}
    assert set(by_name) == {"liver"}  # the other is neither there nor drawn; "whole" has its parts here
    assert (by_name["liver"]["dice"], by_name["liver"]["other"], by_name["liver"]["other_value"]) == (1, 1, 1)
    assert (
        len(re.findall(r'class="open"', text)) == len(document["cases"]) / 2 - 1
    )  # of one prompt, not absent


def test_of_several_prompts_the_worst_is_kept_and_masks_that_overlap_are_apart(store: Path) -> None:
    worst = WorstPredictions(open_store(store), lambda done, total, name: None, most=1)
    labels = open_store(store).scan("a").labels("organs")
    liver, other = (Structure(name=str(value), values=(value,)) for value in (1, 2))

    def scored(target: str, reference: str, structure: Structure, mask: np.ndarray) -> None:
        expected = labels == structure.values[0]
        score = Score(
            dataset="drawn", label="organs", structure=structure.name, target=target, references=(reference,),
            expected_voxels=int(expected.sum()), predicted_voxels=int(mask.sum()),
            common_voxels=int((expected & mask).sum()),
        )  # fmt: skip
        worst.scored(score, structure, mask)

    for target, reference, mask in (
        ("a", "good", labels == 1),
        ("a", "bad", labels > 0),
        ("b", "none", labels == 1),
    ):
        scored(target, reference, liver, mask)
        scored(target, reference, other, labels > 0 if reference == "bad" else labels == 2)
        if reference != "good":
            worst.begins(1, 2, "")
    assert worst.shown == {"a": ("organs", "bad")}
    (kept,) = worst._kept.values()
    assert [pair.other for pair in kept.pairs] == [1, 2]
    assert [int((layer > 0).sum()) for layer in kept.layers] == [int((labels > 0).sum())] * 2
    assert worst.packs(0) == {}


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
    code, document = mass(store, tmp_path, *options)
    assert (code, list(document)) == (2, ["error"])
    assert message in document["error"]
    assert document["error"] in capsys.readouterr().err


def test_a_real_network_is_evaluated(store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Iris((2, 4, 4, 8, 32), 1).state_dict(), tmp_path / "net.pt")
    told = tmp_path / "told.json"
    options = ["--dataset", "other", "--window", "32", "32", "48", "--prompts", "1", "--json", str(told)]
    assert main(["evaluate", str(tmp_path / "net.pt"), str(store), *options]) == 0
    (structure,) = json.loads(told.read_text())["structures"]
    assert (structure["structure"], structure["num_cases"]) == ("liver", 1)
