"""Pages of a run and of work in progress."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from commands.pages.preparing import preparing_page, watched_preparing
from commands.pages.run import RECORD, _thinned, is_run, read_run, run_page, watched_run
from commands.pages.watch import watched
from commands.prepare.outcomes import Outcome
from commands.progress import Progress
from commands.terminal import CommandError
from pipeline.errors import Failure
from tests.commands.test_scheduler import job, scheduler
from training.engine import RECORD as RECORD_OF_A_RUN

STATE = Progress.of_equals(1, 4, 10.0, in_hand="<ann>")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 30 steps with two evaluations and three pictures."""
    folder = tmp_path / "RUN"
    (folder / "pictures").mkdir(parents=True)
    record = {
        "store": "S",
        "store_digest": "d" * 64,
        "scans": {"ann": "1", "b<b": "2"},
        "versions": {"torch": "2"},
    }
    record["precision"] = {"name": "float32", "why": "the CPU has no bfloat16"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.toml").write_text(
        '[optimisation]\nnum_steps = 40\nseed = 7\n[data]\nlabel = "<script>"\n'
    )
    lines = [
        {"kind": "train", "step": step, "loss": 2 - step / 30, "rate": 0.1, "samples_per_second": 3.5,
         "data_wait_fraction": 0.25}
        for step in range(1, 31)
    ]  # fmt: skip
    lines += [
        {
            "kind": "evaluation",
            "step": step,
            "dice": dice,
            "dice/set/seg/liver": dice,
            "dice/set/seg/spleen": 0.9,
        }
        for step, dice in ((15, 0.4), (30, 0.3))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    for step in (10, 20, 30):
        Image.new("RGB", (40, 20), (step, 0, 0)).save(folder / "pictures" / f"step-{step:08d}.png")
    return folder


class Balance(HTMLParser):
    """Elements that were opened and not closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br", "line", "rect", "circle", "polyline", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def balanced(page: str) -> bool:
    parser = Balance()
    # The script may hold tags as texts; a polyline with a title is closed by its end tag.
    parser.feed(re.sub(r"<script.*?</script>|<style.*?</style>|<polyline|</polyline>", "", page, flags=re.S))
    return not parser.open


def test_the_page_of_a_run_has_its_curves_pictures_settings_and_seeds(run: Path) -> None:
    page = run_page(read_run(run))
    assert balanced(page)
    for text in ("30 of 40", "Loss", "Learning rate", "Waiting for data", "optimisation.seed", "float32"):
        assert text in page
    assert "Not complete: step 30 of 40" in page
    assert "mean Dice now; best 0.400" in page
    assert page.index("set / seg / liver") < page.index("set / seg / spleen")  # the lowest first
    assert page.count("data:image/png") == 3
    assert "<summary>step 20</summary>" in page
    assert "b&lt;b" in page
    assert "&lt;script&gt;" in page
    assert 'http-equiv="refresh"' not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # no network


def test_a_run_is_complete_with_its_weights_and_ended_by_a_loss_that_is_not_finite(run: Path) -> None:
    (run / "weights.safetensors").touch()
    assert '<p class="state" role="status">Complete.</p>' in run_page(read_run(run))
    (run / "failures" / "step-12").mkdir(parents=True)
    assert "Ended by a loss that was not finite: failures/step-12" in run_page(read_run(run))


def test_a_run_that_has_just_begun_has_a_page(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for picture in (run / "pictures").iterdir():
        picture.unlink()
    page = run_page(read_run(run), now="step 0", refresh_seconds=10)
    assert balanced(page)
    assert 'http-equiv="refresh" content="10"' in page
    assert "Curves" not in page


def test_mass_inspect_writes_the_page_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    assert f"written: {run / 'run.html'}" in capsys.readouterr().out
    assert main(["inspect", str(run), "--out", str(run.parent / "x" / "y.html")]) == 0
    assert (run.parent / "x" / "y.html").read_text() == (run / "run.html").read_text()
    (run / "config.toml").write_text("no toml")
    assert main(["inspect", str(run)]) == 2
    assert "the run cannot be read" in capsys.readouterr().err


def test_what_makes_a_folder_a_run_is_what_the_trainer_writes(run: Path) -> None:
    assert RECORD == RECORD_OF_A_RUN
    assert is_run(run)
    assert not is_run(run.parent)


def test_a_curve_is_thinned_to_means_over_neighbours() -> None:
    steps, values = _thinned(np.arange(1000.0), np.arange(1000.0) % 2)
    assert len(steps) == 334
    assert steps[:2].tolist() == [1.0, 4.0]
    assert values[:2] == pytest.approx([1 / 3, 2 / 3])
    assert (steps[-1], values[-1]) == (999.0, 1.0)
    few = _thinned(np.arange(5.0), np.arange(5.0))
    assert few[0].tolist() == few[1].tolist() == [0, 1, 2, 3, 4]


def test_a_watched_run_renews_its_page_and_ends_without(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run / "run.html"
    with watched_run(run, wanted=True) as take:
        assert take is not None
        take(STATE)
        first = page.read_text()
        take(STATE)  # too soon for another
    assert 'http-equiv="refresh"' in first
    assert "in hand: &lt;ann&gt;" in first
    assert 'http-equiv="refresh"' not in page.read_text()
    assert [path.name for path in run.iterdir() if path.name.endswith(".part")] == []
    assert page.as_uri() in capsys.readouterr().err
    with watched_run(run, wanted=False) as take:
        assert take is None
    with watched_run(run.parent / "none", wanted=True) as take:
        assert take is not None
        take(STATE)
    assert not (run.parent / "none").exists()


def test_a_page_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def make(now: str, refresh_seconds: int) -> str:
        calls.append(refresh_seconds)
        raise CommandError("damaged")

    with watched(tmp_path / "p.html", make) as take:
        assert take is not None
        take(STATE)
        take(STATE)
    assert calls == [10]
    assert capsys.readouterr().err.count("the work goes on") == 1


def test_the_last_page_says_what_ended_the_work(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    with pytest.raises(KeyError), watched(page, lambda now, refresh_seconds: f"{now} {refresh_seconds}"):
        raise KeyError
    assert page.read_text() == "Stopped: KeyError. 0"


def test_the_page_of_a_preparation_has_what_failed_and_why_then_what_is_done(tmp_path: Path) -> None:
    work = scheduler(tmp_path, (job("ann", 40), job("bob", 30), job("cid", 30))).work
    named = "b\udcfcb.nii"  # bytes that are no UTF-8
    failure = Failure(scan_id="bob", location=named, reason="is <empty>", remedy="copy it", kind="K")
    work.record(
        [
            Outcome(scan_id="ann", location="ann", state="committed", why="new", num_proposals=1234,
                    notes=("turned",)),
            Outcome(scan_id="bob", location=named, state="failed", failure=failure, why="new"),
        ]
    )  # fmt: skip
    page = preparing_page(work, now="2/3 scans", refresh_seconds=10)
    assert balanced(page)
    assert 'http-equiv="refresh" content="10"' in page
    for text in (
        "2/3 scans",
        "prepared of 3 to do",
        "is &lt;empty&gt;",
        "copy it",
        "1,234",
        "turned",
        r"b\udcfcb.nii",
    ):
        assert text in page
    assert "mass inspect" in preparing_page(work)
    with watched_preparing(work) as take:
        assert take is not None
        take(STATE)
    written = tmp_path.with_name(f"{tmp_path.name}-progress.html")
    assert "1 committed, 0 done before, 1 failed, 1 not done" in written.read_text()
