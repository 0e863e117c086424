from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from commands.prepare.outcomes import Outcome, RunReport, counted_scans
from commands.prepare.settings import print_report
from commands.progress import Progress, duration
from commands.terminal import counted, shown
from pipeline.errors import Failure
from tests.waits import PATIENT_SECONDS


def progress(**changes: float) -> Progress:
    values = {"done": 30, "total": 100, "failed": 0, "weight_done": 50, "weight_total": 100, "seconds": 60}
    return Progress(**{**values, **changes})  # type: ignore[arg-type]


def test_time_left_goes_by_weight_and_rate_by_scans() -> None:
    assert progress().seconds_left == 60
    assert progress().line() == "30/100 scans, 30.0 a minute, 1 min left"
    assert progress(failed=2, weight_done=75).line() == "30/100 scans, 2 failed, 30.0 a minute, 20 s left"


def test_time_left_is_not_told_before_anything_is_done_nor_at_the_end() -> None:
    assert progress(done=0, weight_done=0).line() == "0/100 scans"
    assert progress(seconds=1).seconds_left is None
    assert progress(done=100, weight_done=100).line() == "100/100 scans, 100.0 a minute"


def test_time_left_is_not_told_while_a_scan_takes_unusually_long_but_which_and_since_when() -> None:
    almost = {"done": 99, "weight_done": 99.0, "seconds": 300.0}
    assert progress(**almost).line().endswith(", 3 s left")
    still = Progress(
        done=99, total=100, failed=0, weight_done=99, weight_total=100, seconds=300,
        still_seconds=250, in_hand="ann", in_hand_seconds=260,
    )  # fmt: skip
    assert still.line() == (
        "99/100 scans, 19.8 a minute, no scan has ended for 4 min 10 s, in hand: ann (4 min 20 s)"
    )
    assert progress(still_seconds=59).line().endswith("left")


def test_where_every_scan_takes_minutes_one_more_minute_is_nothing_unusual() -> None:
    slow = {"done": 10, "weight_done": 10.0, "total": 20, "weight_total": 20.0}
    assert progress(**slow, seconds=1300, still_seconds=100).seconds_left == 1300
    assert progress(**slow, seconds=1300, still_seconds=320).seconds_left is None


def test_a_state_goes_on_while_no_scan_ends() -> None:
    begun = Progress.of_equals(1, 4, 10.0, in_hand="ann")
    assert begun.line() == "1/4 scans, 6.0 a minute, 30 s left, in hand: ann (0 s)"
    pairs = Progress.of_equals(2, 4, 100.0, unit="pair").later(80)
    assert pairs.line() == "2/4 pairs, 40 an hour, 3 min left"
    assert begun.later(5).line() == "1/4 scans, 4.0 a minute, 45 s left, in hand: ann (5 s)"
    assert begun.later(90).line() == (
        "1/4 scans, 36 an hour, no scan has ended for 1 min 30 s, in hand: ann (1 min 30 s)"
    )


def test_while_a_scan_is_in_hand_the_terminal_tells_which(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.terminal._TICK_SECONDS", 0.01)
    watched: list[str] = []
    long_ago = Progress.of_equals(1, 2, 100.0, in_hand="ann", failed=1)
    with shown("work", lambda state: watched.append(state.line())) as show:
        show(long_ago)
        end = time.monotonic() + PATIENT_SECONDS
        while not watched and time.monotonic() < end:
            time.sleep(0.01)
    assert capsys.readouterr().err.startswith(
        "work: 1/2 scans, 1 failed, 36 an hour, 1 min 40 s left, in hand: ann"
    )
    assert watched[0].startswith("1/2 scans, 1 failed")


def test_things_are_counted_with_those_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    failed: list[str] = []
    told: list[str] = []

    @contextmanager
    def shown_here(title: str) -> Iterator[Callable[[Progress], None]]:
        yield lambda state: told.append(state.line())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commands.terminal.shown", shown_here)
        for name in counted("work", ["ann", "bob"], failed=failed):
            failed += [name]
    assert told[0] == "0/2 scans, in hand: ann (0 s)"
    assert "1 failed" in told[1]
    assert told[1].endswith("in hand: bob (0 s)")
    assert told[2].startswith("2/2 scans, 2 failed")


def test_nothing_to_do_is_all_done() -> None:
    assert Progress.of_equals(0, 0, 0.0).fraction == 1
    assert Progress.of_equals(1, 4, 1.0).fraction == 0.25


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def committed(scan_id: str, dataset: str, *, num_proposals: int, seconds: float) -> Outcome:
    return Outcome(
        scan_id=scan_id,
        location=scan_id,
        state="committed",
        dataset=dataset,
        num_proposals=num_proposals,
        seconds=seconds,
    )


def report(**changes: object) -> RunReport:
    values: dict[str, object] = {
        "committed": (
            committed("a", "one", num_proposals=10, seconds=1),
            committed("b", "one", num_proposals=20, seconds=2),
            committed("c", "two", num_proposals=5, seconds=0.5),
        ),
        "skipped": ("d",),
        "failed": (),
        "not_done": (),
        "reasons": {"new": 3},
        "notes": (),
        "absent": (),
        "seconds": 61.0,
    }
    return RunReport(**{**values, **changes})  # type: ignore[arg-type]


def test_a_report_sums_up_by_data_set() -> None:
    assert report().groups() == [("one", 2, 15, 1.5), ("two", 1, 5, 0.5)]
    assert report().summary() == "3 committed, 1 done before, 0 failed, in 1 min 1 s"


def test_notes_of_scans_are_told_with_their_scan(capsys: pytest.CaptureFixture[str]) -> None:
    one = replace(committed("a", "one", num_proposals=1, seconds=1), notes=("turned", "filled"))
    told = report(committed=(one, committed("b", "one", num_proposals=1, seconds=1)))
    assert told.noted() == [("a", "turned"), ("a", "filled")]
    assert told.to_json()["committed"][0]["notes"] == ["turned", "filled"]
    print_report(told)
    assert "notes (2)" in capsys.readouterr().out
    print_report(report())
    assert "notes" not in capsys.readouterr().out


def test_the_exit_code_is_true() -> None:
    failure = Failure(scan_id="x", location="x", reason="r", remedy="m", kind="K")
    assert report().exit_code == 0
    assert report(failed=(failure,)).exit_code == 1
    assert report(not_done=(failure,)).exit_code == 1
    assert report(stopped="the disk is full").exit_code == 1
    assert report(stopped="interrupted by SIGINT", interrupted=True).exit_code == 130


def test_one_scan_is_not_scans() -> None:
    assert [counted_scans(n) for n in (0, 1, 1234)] == ["0 scans", "1 scan", "1,234 scans"]
