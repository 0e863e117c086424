"""Many targets of `mass segment`: several at a time, run again to go on, a table of all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from commands import segment as segmenting
from commands.arguments import parser
from commands.main import main
from commands.segmenting import targets, workers
from commands.segmenting.results import Written
from commands.segmenting.targets import Job, collect_targets
from pipeline.discovery import Source
from pipeline.errors import Failure
from pipeline.ingest import IngestConfig
from tests.commands.test_segment import draw, files_in, files_of, labels_in, stand_in
from tests.phantom import write_dicom
from tests.waits import PATIENT_SECONDS
from training.inference import Reference, SegmentConfig, Segmenter

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reference with its mask, and three targets."""
    draw().write(tmp_path / "ref.nii.gz")
    draw().write_labels(tmp_path / "mask.nii.gz")
    for seed, name in enumerate("abc", start=1):
        draw(seed=seed).write(tmp_path / "scans" / f"{name}.mha")
    return tmp_path


def arguments(folder: Path, out: str, *more: str, spacing: str = "5") -> list[str]:
    shown = ["--reference-image", folder / "ref.nii.gz", "--reference-mask", folder / "mask.nii.gz"]
    rest = [folder / "scans", "--out", folder / out, "--modality", "ct", "--spacing", spacing]
    return [*map(str, ["segment", "none", *shown, *rest]), "--json", str(folder / "told.json"), *more]


def told(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return document


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("*_result.json")}
    return {name: {**record, "seconds": 0} for name, record in found.items()}


ALL = files_of("a_seg.mha", "b_seg.mha", "c_seg.mha")


def test_several_at_a_time_write_the_same_bytes_as_one_after_the_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "scans" / "broken.mha").write_bytes(b"ObjectType = Image\n")
    assert main(arguments(folder, "one")) == 1
    one = told(folder)
    assert main(arguments(folder, "several", "--workers", "2")) == 1
    several = told(folder)
    assert files_in(folder / "one") == files_in(folder / "several") == ALL
    for name in ALL - {name for name in ALL if name.endswith("_result.json")}:
        assert (folder / "one" / name).read_bytes() == (folder / "several" / name).read_bytes()
    assert records(folder / "one") == records(folder / "several")
    assert [target["scan_id"] for target in several["targets"]] == ["a", "b", "c"]
    assert several["failed"] == one["failed"]
    assert "segmented (3)" in capsys.readouterr().out


def by_network(folder: Path, out: str, *more: str, spacing: str = "5") -> list[str]:
    """A command that is quick where `quick_network` stands in."""
    return ["segment", "checkpoint", *arguments(folder, out, "--by", "network", *more, spacing=spacing)[2:]]


@pytest.fixture
def quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenting, "load_checkpoint", lambda path, weights: stand_in())


def ids(folder: Path, *, kept: bool) -> set[str]:
    """Ids of the targets that the last run made, or kept."""
    return {target["scan_id"] for target in told(folder)["targets"] if target["kept"] == kept}


def failures(folder: Path) -> dict[str, str]:
    return {failure["scan_id"]: failure["reason"] for failure in told(folder)["failed"]}


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("quick_network")
def test_run_again_it_makes_what_is_missing_or_would_be_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*more: str, spacing: str = "5") -> set[str]:
        assert main(by_network(folder, "out", *more, spacing=spacing)) == 0
        assert [target["scan_id"] for target in told(folder)["targets"]] == ["a", "b", "c"]
        return ids(folder, kept=False)

    out = folder / "out"
    assert made() == {"a", "b", "c"}
    first = told(folder)["targets"]
    capsys.readouterr()
    assert made() == set()
    assert [{**target, "kept": False} for target in told(folder)["targets"]] == first
    assert "from before, made with the same settings: 3" in capsys.readouterr().out
    (out / "a_seg.png").unlink()
    (out / "b_seg.mha").unlink()
    os.utime(folder / "scans" / "c.mha", ns=(1, 1))
    assert made() == {"a", "b"}
    (folder / "scans").rename(folder / "moved")
    (folder / "scans").symlink_to(folder / "moved")
    assert made() == set()
    assert made("--again") == {"a", "b", "c"}
    assert made("--probabilities", "--label", "4") == {"a", "b", "c"}
    assert (out / "a_prob_4.mha").exists()
    assert made("--label", "4") == {"a", "b", "c"}
    assert not list(out.glob("*_prob_*"))
    assert {row["label"] for row in rows_in(out)} == {"4"}
    assert made("--label", "4", spacing="5.5") == {"a", "b", "c"}
    draw(seed=9).write(folder / "ref.nii.gz")
    assert made("--label", "4", spacing="5.5") == {"a", "b", "c"}
    assert len(rows_in(out)) == 3


@pytest.mark.usefixtures("quick_network")
def test_nothing_is_replaced_that_it_did_not_make(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    (out / "a_seg.mha").write_bytes(b"an expert's")
    assert main(by_network(folder, "out")) == 1
    assert ids(folder, kept=False) == {"b", "c"}
    assert "no record says that it was made here" in failures(folder)["a"]
    corrected = labels_in(out / "b_seg.mha")
    corrected[:] = 4
    sitk.WriteImage(sitk.GetImageFromArray(corrected), str(out / "b_seg.mha"))
    bytes_of = {name: (out / f"{name}_seg.mha").read_bytes() for name in "abc"}
    assert bytes_of["a"] == b"an expert's"
    assert main(by_network(folder, "out")) == 1
    assert ids(folder, kept=True) == {"b", "c"}
    assert {row["target"]: (row["edited"], row["volume_ml"] != "") for row in rows_in(out)} == {
        "b": ("yes", False),
        "c": ("no", True),
    }
    draw(seed=7).write(folder / "scans" / "c.mha")
    assert main(by_network(folder, "out", "--label", "3")) == 1
    found = failures(folder)
    assert found["b"] == "b_seg.mha was changed since it was made"
    assert found["c"] == "the result of another file is there under this name"
    assert {name: (out / f"{name}_seg.mha").read_bytes() for name in "abc"} == bytes_of
    assert main(by_network(folder, "out", "--again")) == 0
    assert all((out / f"{name}_seg.mha").read_bytes() != old for name, old in bytes_of.items())


@pytest.mark.usefixtures("quick_network")
def test_scans_of_one_size_and_time_are_two(folder: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        draw(seed=seed).write(folder / name / "img" / "scan.nii")
        os.utime(folder / name / "img" / "scan.nii", ns=(5, 5))
    assert len({(folder / name / "img" / "scan.nii").stat().st_size for name in ("one", "two")}) == 1

    def run(*targets: str) -> int:
        asked = by_network(folder, "out")
        place = asked.index(str(folder / "scans"))
        return main([*asked[:place], *(str(folder / name / "img") for name in targets), *asked[place + 1 :]])

    assert run("one") == 0
    assert run("two") == 1
    assert failures(folder) == {"scan": "the result of another file is there under this name"}
    assert [row["target"] for row in rows_in(folder / "out")] == ["scan", "scan"]
    assert run("one", "two") == 0
    files = {row["file"] for row in rows_in(folder / "out") if row["target"] != "scan"}
    assert files == {str(folder / name / "img" / "scan.nii") for name in ("one", "two")}


@pytest.mark.usefixtures("quick_network")
@pytest.mark.parametrize("out", ["scans", "scans/results"])
def test_results_among_the_targets_are_no_targets(folder: Path, out: str) -> None:
    assert main(by_network(folder, out, "--probabilities")) == 0
    there = files_in(folder / "scans")
    assert main(by_network(folder, out, "--probabilities")) == 0
    assert ids(folder, kept=True) == {"a", "b", "c"}
    assert ids(folder, kept=False) == set()
    assert files_in(folder / "scans") == there


@pytest.mark.usefixtures("quick_network")
def test_what_killed_runs_left_long_ago_is_removed(folder: Path) -> None:
    old, young, foreign = (folder / "out" / name for name in (".a.x.mass.part", ".b.x.mass.part", ".c.part"))
    for left in (old, young, foreign):
        left.mkdir(parents=True)
        (left / "half").touch()
    for left in (old, foreign):
        os.utime(left, (1, 1))
    assert main(by_network(folder, "out")) == 0
    assert [left.exists() for left in (old, young, foreign)] == [False, True, True]


@pytest.mark.usefixtures("quick_network")
def test_an_out_that_cannot_be_and_a_table_that_cannot_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    for out in ("file", "file/below"):
        assert main(by_network(folder, out)) == 2
        assert f"--out {folder / out}: there can be no such folder" in capsys.readouterr().err
    (folder / "out" / "results.csv").mkdir(parents=True)
    (folder / "other").mkdir()
    (folder / "other" / "results.csv").write_text("of,a,user\n")
    for out in ("out", "other"):
        assert main(by_network(folder, out)) == 0
        told_of = capsys.readouterr()
        assert "results.csv cannot be written" in told_of.err
        assert "segmented (3)" in told_of.out
    assert (folder / "other" / "results.csv").read_text() == "of,a,user\n"


@pytest.mark.usefixtures("quick_network")
def test_whatever_a_killed_run_leaves_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with another label is killed before each change of a file; one with the first label goes on."""
    out = folder / "out"
    operations = 0
    for name in ("unlink", "replace"):
        real = getattr(Path, name)

        def counted(path: Path, *more: Any, real: Any = real, **options: Any) -> Any:
            nonlocal operations
            if path.name.startswith("a_") and (operations := operations - 1) == 0:
                raise KeyboardInterrupt
            return real(path, *more, **options)

        monkeypatch.setattr(Path, name, counted)
    stopped = 0
    for number in range(1, 20):
        assert main(by_network(folder, "out", "--label", "3", "--again")) == 0
        expected = {path.name: path.read_bytes() for path in out.glob("a_seg.*")}
        operations = number
        stopped += main(by_network(folder, "out", "--label", "4")) == 130
        operations = 0
        assert main(by_network(folder, "out", "--label", "3")) == 0
        assert {path.name: path.read_bytes() for path in out.glob("a_seg.*")} == expected
        if operations == 0 and stopped < number:
            break
    assert stopped == 5  # labels and picture removed; record, labels and picture moved


@pytest.mark.usefixtures("quick_network")
def test_what_comes_while_a_target_is_made_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draw_cases = folder / "out", targets.draw_cases

    def drawn(cases: Any) -> Any:
        (out / "a_seg.mha").touch()
        return draw_cases(cases)

    monkeypatch.setattr(targets, "draw_cases", drawn)
    assert main(by_network(folder, "out")) == 1
    assert "a_seg.mha is there, and no record says" in failures(folder)["a"]
    assert (out / "a_seg.mha").stat().st_size == 0


def test_scans_are_told_apart_by_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config, out = IngestConfig(), folder / "out"

    def collected(*names: str) -> list[tuple[str, str]]:
        sources, failed = collect_targets([Path(name) for name in names], config, out)
        assert not failed
        return [(source.scan_id, source.location) for source in sources]

    assert [name for name, _ in collected("scans/a.mha", "scans", str(folder / "scans" / "b.mha"))] == [
        "a",
        "b",
        "c",
    ]
    (folder / "scans" / "scans").mkdir()
    draw(seed=7).write(folder / "scans" / "scans" / "a.mha")
    assert len(collected("scans/a.mha", "scans/scans/a.mha")) == 2
    shutil.rmtree(folder / "scans" / "scans")
    volume = sitk.ReadImage(str(folder / "scans" / "a.mha"))
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(folder / "four.nii.gz"))
    (folder / "m.csv").write_text("id,image,frame\nf0,four.nii.gz,0\nf1,four.nii.gz,1\n")
    assert [name for name, _ in collected("m.csv")] == ["f0", "f1"]
    for patient, seed in (("pat1", 1), ("pat2", 2)):
        write_dicom(folder / patient / "image", draw(seed=seed), series_uid=f"1.2.{seed}")
    assert collected("pat1")[0][0] == "pat1"
    both = collected("pat1/image", "pat2/image")
    assert len({name for name, _ in both}) == 2
    assert [location for _, location in both] == ["pat1/image", "pat2/image"]


@pytest.mark.usefixtures("quick_registration")
def test_a_table_has_a_row_for_each_structure_of_all_results_in_the_folder(folder: Path) -> None:
    (folder / "mask.json").write_text('{"3": "lung (left), or what", "4": "bone"}')
    assert main(arguments(folder, "out")) == 0
    volumes = {target["scan_id"]: target["volumes_ml"] for target in told(folder)["targets"]}
    for name in "bc":
        (folder / "scans" / f"{name}.mha").unlink()
    assert main(arguments(folder, "out")) == 0
    rows = rows_in(folder / "out")
    assert [(row["target"], row["structure"], row["label"]) for row in rows] == [
        (target, *part) for target in "abc" for part in (("lung (left), or what", "3"), ("bone", "4"))
    ]
    for row in rows:
        volume = volumes[row["target"]][f"{row['structure']} ({row['label']})"]
        assert float(row["volume_ml"]) == pytest.approx(volume, rel=1e-3)
        assert (float(row["confidence"]) < 0.5) == (row["low_confidence"] == "yes")
        assert (folder / "out" / row["labels"]).exists()


def test_of_very_many_targets_those_of_least_confidence_are_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def written(number: int) -> Written:
        return Written(
            scan_id=f"scan{number:03d}",
            location="",
            labels=tmp_path / "x",
            picture=tmp_path / "x",
            probabilities=(),
            volumes_ml={"bone (4)": 1.0, "lung (3)": 2.0},
            modality="ct",
            modality_origin="",
            seconds=1.0,
            agreement=0.5,
            confidences={"bone (4)": 0.9, "lung (3)": number / 80},
            notes=("a note",),
        )

    segmenting._print_targets([written(number) for number in reversed(range(80))])
    out = capsys.readouterr().out
    assert [f"scan{number:03d}" in out for number in range(80)] == [True] * 50 + [False] * 30
    assert "these 50 have the least confidence, results.csv lists all" in out
    assert out.count("a note") == 50


# ------------------------------------------------------------------------------------ workers that end


def source(name: str) -> Source:
    return Source(scan_id=name, format="file", files=(Path(name),), location=name)


def ends(place: Path, job: object, one: Source, on_step: object = None) -> Written | Failure:
    """Stands for the work on a target: "bad" ends its process, "once" does where it is tried first."""
    first = place / one.scan_id
    tried = first.exists()
    first.touch()
    if one.scan_id == "bad" or (one.scan_id == "once" and not tried):
        os._exit(9)
    return Failure(scan_id=one.scan_id, reason="", remedy="", kind="")


def job_that_ends(place: Path) -> Any:
    workers.segment_one = partial(ends, place)
    return object()


def test_a_target_that_ends_its_process_fails_and_the_others_go_on(tmp_path: Path) -> None:
    names = ["one", "bad", "two", "once", "three"]
    found = list(workers.in_workers(partial(job_that_ends, tmp_path), [*map(source, names)], 2))
    assert sorted(result.scan_id for result in found) == sorted(names)
    failed = [result for result in found if isinstance(result, Failure) and result.kind]
    assert [(failure.scan_id, failure.kind) for failure in failed] == [("bad", BrokenProcessPool.__name__)]
    assert "Use fewer --workers" in failed[0].remedy


def is_running(process: str) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_the_workers_with_nothing_half_written(folder: Path, number: int, code: int) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, *arguments(folder, "out", "--workers", "2", spacing="1.2")],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + PATIENT_SECONDS

    def wait_while(condition: Callable[[], bool]) -> None:
        while condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_while(lambda: run.poll() is None and len([*(folder / "out").glob(".*.part")]) < 2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) >= 2
    run.send_signal(number)
    assert run.wait(timeout=PATIENT_SECONDS) == code
    wait_while(lambda: any(map(is_running, children)))
    assert not list((folder / "out").glob(".*"))
    whole = {path.name.removesuffix("_result.json") for path in (folder / "out").glob("*_result.json")}
    table = set() if number == signal.SIGKILL else {"results.csv"}
    assert files_in(folder / "out") | table == files_of(*(f"{name}_seg.mha" for name in whole)) | table


def test_results_follow_from_the_weights_too(folder: Path) -> None:
    asked = parser().parse_args(arguments(folder, "out"))
    nets = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), None]
    shown = Reference(image=np.zeros((4, 4, 4), np.float32), labels=np.ones((4, 4, 4), np.uint16))
    config = SegmentConfig(by="registration")
    made = [Segmenter(net, None, config, references=[shown]) for net in nets]  # type: ignore[arg-type]
    marks = [Job.of(asked, one, IngestConfig()).mark for one in [*made, *made]]
    assert marks[:3] == marks[3:]
    assert len(set(marks)) == 3
