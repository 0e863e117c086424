"""`mass status`, `verify`, `score`, `inspect` and `demo` on a small store."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from benchmarks.many_scans import FAST
from commands import demo
from commands.arguments import EXAMPLES, parser
from commands.caches import cache_folder
from commands.demo import bundled_or_named
from commands.inspect import inspect_store
from commands.main import main
from commands.prepare.command import prepare_store
from commands.prepare.local_records import remember_seconds, remembered_seconds
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from commands.status import cases_line
from storage import open_store
from tests.phantom import phantom
from training.inference.pictures import EXPECTED_COLOR

OLD_STORE = Path(__file__).parents[1] / "storage" / "fixtures" / "v1" / "store"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two scans, one of them with labels, and one failure; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    raw, config = folder / "raw", folder / "fast.toml"
    phantom().write(raw / "ann_ct.nii.gz")
    phantom().write_labels(raw / "ann_ct_label.nii.gz")
    phantom(seed=2).write(raw / "ben_ct.nii.gz")
    (raw / "dud_ct.nii.gz").write_bytes(b"no image")
    config.write_text(FAST)
    assert prepare_store(raw, folder / "store", Settings.read(config), Options()).exit_code == 1
    return folder / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def run(*arguments: object, out: Path) -> tuple[int, dict[str, object]]:
    """Exit code and JSON of a command."""
    code = main([*map(str, arguments), "--json", str(out)])
    return code, json.loads(out.read_text())


def test_status_tells_what_there_is_and_what_failed(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = run("status", made, out=tmp_path / "s.json")
    assert code == 1, "a scan failed"
    assert (told["num_scans"], told["spacing_mm"], told["stale"]) == (2, 4.0, {})
    (group,) = told["groups"]
    assert (group["data set"], group["modality"], group["scans"], group["with labels"]) == ("raw", "ct", 2, 1)
    size = sum(path.stat().st_size for path in (made / "scans").rglob("*") if path.is_file())
    assert group["bytes"] == size
    assert [failure["scan"] for failure in told["failed"]] == ["dud_ct"]
    shown = capsys.readouterr().out
    assert "dud_ct" in shown
    assert "NIfTI" in shown
    assert "cases (patients): 2; 2 scans with no case given, each a case of its own" in shown
    assert told["num_cases"] == 2


def test_cases_are_counted_and_those_with_several_scans(made: Path) -> None:
    ann = open_store(made).entries["ann_ct"]
    cases = {"a": "p", "b": "p", "c": "q", "d": ""}
    entries = [replace(ann, scan_id=name, case=case) for name, case in cases.items()]
    assert cases_line(entries).split("; ") == [
        "cases (patients): 3, 1 of them with several scans (at most 2)",
        "1 scan with no case given, each a case of its own",
    ]


def test_how_long_scans_took_is_remembered_beside_the_store_and_shown_on_its_page(
    made: Path, tmp_path: Path
) -> None:
    seconds = remembered_seconds(made)
    assert set(seconds) == {"ann_ct", "ben_ct"}
    assert min(seconds.values()) > 0
    page = tmp_path / "page.html"
    inspect_store(made, [], page, full=0)
    assert "Time to prepare a scan" in page.read_text()
    remember_seconds(made, {"ben_ct": 7.25})
    assert remembered_seconds(made) == {"ann_ct": seconds["ann_ct"], "ben_ct": 7.25}
    (cache_folder() / "seconds").rename(cache_folder() / "elsewhere")
    inspect_store(made, [], page, full=0)
    assert "Time to prepare a scan" not in page.read_text()
    (cache_folder() / "elsewhere").rename(cache_folder() / "seconds")


def test_status_tells_what_is_stale(store: Path, tmp_path: Path) -> None:
    config = open_store(store).info.config
    changed = {**config, "proposals": {**config["proposals"], "max_proposals": 61}}
    open_store(store).set_config(changed)
    _, told = run("status", store, out=tmp_path / "s.json")
    assert told["stale"] == dict.fromkeys(["ann_ct", "ben_ct"], "made with other proposals settings or code")


def test_verify_finds_a_flipped_byte(made: Path, store: Path, tmp_path: Path) -> None:
    assert run("verify", made, out=tmp_path / "v.json") == (0, {"num_scans": 2, "problems": []})
    victim = next((store / open_store(store).entries["ann_ct"].path).rglob("c.0.0.0"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    code, told = run("verify", store, out=tmp_path / "v.json")
    assert code == 1
    assert [problem["scan_id"] for problem in told["problems"]] == ["ann_ct"]


def test_lift_brings_an_old_store_to_the_newest_version_and_lists_what_it_could_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(OLD_STORE, tmp_path / "store"))
    victim = store / open_store(store).entries["case-2"].path / "scores/c.0"
    scores = victim.read_bytes()
    victim.write_bytes(b"")
    code, told = run("lift", store, out=tmp_path / "l.json")
    assert code == 1
    assert (told["from_format_version"], told["format_version"], told["lifted"]) == (1, 2, ["case-1"])
    assert [failure["scan"] for failure in told["failed"]] == ["case-2"]
    assert run("status", store, out=tmp_path / "s.json")[1]["to_lift"] == ["case-2"]
    victim.write_bytes(scores)
    code, told = run("lift", store, out=tmp_path / "l.json")
    assert (code, told["from_format_version"], told["lifted"], told["failed"]) == (0, 2, ["case-2"], [])
    assert run("verify", store, out=tmp_path / "v.json") == (0, {"num_scans": 2, "problems": []})
    assert run("lift", store, out=tmp_path / "l.json")[1]["lifted"] == []
    assert "0 scans lifted to format version 2, 2 had it before" in capsys.readouterr().out


def test_prepare_asks_for_an_old_store_to_be_lifted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(OLD_STORE, tmp_path / "store"))
    phantom().write(tmp_path / "raw" / "ann_ct.nii.gz")
    assert main(["prepare", str(tmp_path / "raw"), str(store)]) == 2
    told = capsys.readouterr().err
    assert "format version 1" in told
    assert "mass lift" in told
    assert open_store(store).info.config == {"max_atoms": 100}


def test_score_writes_every_table(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown, table = tmp_path / "s.md", tmp_path / "s.csv"
    code, told = run("score", made, "--markdown", markdown, "--csv", table, out=tmp_path / "s.json")
    assert code == 0
    assert told["overall"]["scans"] == 1
    assert 0 < told["overall"]["iou"][-1] <= 1
    assert told["overall"]["slic_iou"] is None
    assert "## By structure" in markdown.read_text()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["scan"] for row in rows} == {"ann_ct"}
    assert "By data set" in capsys.readouterr().out


def test_scoring_in_two_processes_gives_the_same_and_knows_the_baseline(made: Path, tmp_path: Path) -> None:
    one = run("score", made, "--baseline", "slic", out=tmp_path / "1.json")
    two = run("score", made, "--baseline", "slic", "--workers", 2, out=tmp_path / "2.json")
    assert one == two
    assert one[1]["overall"]["slic_iou"] > 0


def test_score_takes_the_scans_that_fit_a_pattern(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["ann_ct", "ben_ct"]
    asked = {
        ("--scan", "ann*"): ["ann_ct"],
        ("--scan", "ann_ct", "--scan", "b*"): both,
        ("--dataset", "*"): both,
    }
    for options, expected in asked.items():
        code, told = run("score", made, *options, out=tmp_path / "s.json")
        assert code == 0
        assert [scan["scan_id"] for scan in told["scans"]] == expected
    assert main(["score", str(made), "--scan", "nobody*"]) == 2
    assert "no scan fits nobody*" in capsys.readouterr().err


def test_score_lists_a_damaged_scan_and_goes_on(store: Path, tmp_path: Path) -> None:
    entry = open_store(store).entries["ben_ct"]
    for victim in (store / entry.path / "proposals").glob("c.*"):
        victim.write_bytes(b"")
    code, told = run("score", store, out=tmp_path / "s.json")
    assert code == 1
    assert [failure["scan_id"] for failure in told["failed"]] == ["ben_ct"]
    assert [scan["scan_id"] for scan in told["scans"]] == ["ann_ct"]


def test_inspect_draws_a_scan_or_the_whole_store(made: Path, tmp_path: Path) -> None:
    code, told = run(
        "inspect", made, "--scan", "ann_ct", "--out", tmp_path / "one.html", out=tmp_path / "i.json"
    )
    assert code == 0
    page, *pictures = map(Path, told["written"])
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "ann_ct" in page.read_text()
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    code, told = run("inspect", made, "--out", tmp_path / "all.html", "--full", 1, out=tmp_path / "i.json")
    text = Path(told["written"][0]).read_text()
    assert code == 0
    for name in ("ann_ct", "ben_ct", "dud_ct"):
        assert name in text


def test_an_unknown_scan_is_an_error_that_names_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(made), "--scan", "zoe", "--out", str(tmp_path / "x.html")]) == 2
    assert "'zoe'" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


@pytest.mark.long
@pytest.mark.usefixtures("quick_registration")
def test_the_demo_ends_with_the_segmentation_of_a_scan_it_never_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[tuple[list[Path], list[Any]]] = []

    def inspect_once(*arguments: Any, **options: Any) -> tuple[list[Path], list[Any]]:
        """What the first run drew; drawing it again takes longer than all else of the second run."""
        if not pages:
            pages.append(inspect_store(*arguments, **options))
        return pages[0]

    monkeypatch.setattr(demo, "inspect_store", inspect_once)
    raw = tmp_path / "raw"
    small = phantom(
        shape_zyx=(12, 28, 28), spacing_zyx_mm=(5.5, 2, 2.1)
    )  # the middle: one window of the network
    small.write(raw / "ann_ct.nii.gz")
    small.write_labels(raw / "ann_ct_label.nii.gz")
    arguments = ["demo", "--raw", raw, "--store", tmp_path / "store", "--out", tmp_path / "report.html"]
    arguments += ["--run", tmp_path / "run", "--steps", "1", "--finetune-steps", "1"]
    other = phantom(shape_zyx=(11, 28, 27), spacing_zyx_mm=(6, 2.1, 2), seed=2)
    other.write(tmp_path / "bob.mha")
    other.write_labels(tmp_path / "mask.nii.gz")
    arguments += ["--unseen", tmp_path / "bob.mha", tmp_path / "mask.nii.gz"]
    for _ in range(2):
        code, told = run(*arguments, out=tmp_path / "d.json")
        assert code == 0
        assert all(Path(path).stat().st_size > 0 for path in told["written"])
    shown = capsys.readouterr().out
    assert "1 committed" in shown
    assert "1 done before" in shown
    assert "picture: " in shown
    assert told["pretrain"]["complete"]
    assert Path(told["pretrain"]["weights"]).stat().st_size > 0
    assert told["finetune"]["training_scans"] == ["ann_ct"]
    unseen = told["unseen"]
    drawn = sitk.ReadImage(unseen["labels"])
    assert drawn.GetSize() == sitk.ReadImage(str(tmp_path / "bob.mha")).GetSize()
    drawn = sitk.GetArrayFromImage(drawn)
    assert {"1", "3", "4"} <= set(unseen["dice"])
    assert set(unseen["dice"]) == set(unseen["one_shot_dice"])
    for name, dice in unseen["dice"].items():
        there, found = other.labels == int(name), drawn == int(name)
        assert dice == pytest.approx(2 * (there & found).sum() / (there.sum() + found.sum())), name
    with Image.open(unseen["picture"]) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (colours == EXPECTED_COLOR).all(axis=1).any(), "what the expert drew is in the picture"
    assert "so short a pretraining does not segment yet" in " ".join(shown.split())
    assert f"{unseen['mean_dice']:.3f}" in shown
    assert unseen["picture"] in shown

    arguments[-2:] = [raw / "ann_ct.nii.gz", raw / "ann_ct_label.nii.gz"]
    assert main(list(map(str, arguments))) == 2
    assert "a scan ann_ct is in" in capsys.readouterr().err


def test_the_bundled_scan_of_the_demo_is_none_of_those_it_prepares() -> None:
    unseen, datasets = bundled_or_named(parser().parse_args(["demo"]))
    assert unseen is not None
    with EXAMPLES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(datasets) <= {row["dataset"] for row in rows if row["label"]}
    for column, path in (("image", unseen.image), ("label", unseen.mask)):
        known = {(EXAMPLES.parent / row[column]).read_bytes() for row in rows if row[column].endswith(".gz")}
        assert known
        assert path.read_bytes() not in known
    assert bundled_or_named(parser().parse_args(["demo", "--raw", "elsewhere"])) == (None, ())
