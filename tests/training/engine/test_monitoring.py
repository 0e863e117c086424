"""Metrics record every step once, also after interruptions."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from training.engine.monitoring import METRICS, Monitor, TrainingProgress, drop_lines_after, read_metrics
from training.errors import RunError


def test_a_run_that_goes_on_tells_no_step_twice(tmp_path: Path) -> None:
    first = Monitor(tmp_path, step=0)
    for step in range(1, 6):
        first.record("train", step, {"loss": 1 / step})
    first.close()
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which hold whole seconds
    second = Monitor(tmp_path, step=3)  # the steps 4 and 5 were never saved
    for step in range(4, 7):
        second.record("train", step, {"loss": 2 / step})
    second.close()
    lines = read_metrics(tmp_path / METRICS)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == [1, 1 / 2, 1 / 3, 2 / 4, 2 / 5, 2 / 6]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = EventAccumulator(str(tmp_path / "tensorboard"))
    curve.Reload()
    assert [point.step for point in curve.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    drop_lines_after(path, 1)
    assert path.read_text() == '{"step": 1}\n'


def test_any_flipped_bit_of_the_metrics_is_an_error_or_changes_no_number(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, step=0)
    for step in (1, 2):
        monitor.record("train", step, {"loss": 1 / step})
    monitor.close()
    path = tmp_path / METRICS
    whole, lines = path.read_bytes(), read_metrics(path)
    for place in range(len(whole) - 1):  # without its newline a last line is one that was cut off
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with suppress(RunError):
            read = [{name: line[name] for name in ("kind", "step", "loss")} for line in read_metrics(path)]
            assert read == lines, place
    path.write_bytes(whole.replace(b"0.5", b"0.4"))
    with pytest.raises(RunError, match="line 2 is damaged"):
        read_metrics(path)


def test_a_number_that_is_none_is_left_out_so_that_any_reader_of_json_can_read(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, step=0)
    monitor.record("evaluation", 1, {"dice": math.nan, "dice/a": 0.5})
    monitor.close()
    text = (tmp_path / METRICS).read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "checksum": text[13:21],
        "kind": "evaluation",
        "step": 1,
        "dice/a": 0.5,
    }


def test_progress_tells_time_left_from_the_steps_of_this_process() -> None:
    progress = TrainingProgress(
        step=900,
        num_steps=1000,
        loss=0.9134,
        samples_per_second=5.12,
        data_wait_fraction=0.012,
        seconds=200.0,
        steps_here=100,
    )
    assert progress.line() == (
        "step 900/1000, loss 0.913, 5.1 samples/s, 1 % waiting for data, 3 min 20 s left"
    )


def test_a_full_disk_of_tensorboards_thread_is_raised_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.excepthook
    monitor = Monitor(tmp_path, step=0)

    def fail(error: type[Exception]) -> None:
        def die() -> None:
            raise error("what a thread dies of")

        thread = threading.Thread(target=die)
        thread.start()
        thread.join()

    fail(OSError)
    assert "what a thread dies of" not in capsys.readouterr().err
    threading.excepthook = monitor._note_thread_error
    monitor._hook = lambda error: print(f"printed: {error.exc_value}", file=sys.stderr)
    fail(ValueError)
    assert "printed: what a thread dies of" in capsys.readouterr().err
    monitor._hook = before
    monitor.close()
    assert threading.excepthook is before
