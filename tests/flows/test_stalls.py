"""A scan whose bytes do not come is one failure of a run, and holds up neither it nor Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.many_scans import FAST
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from pipeline.ingest import reading
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]

STALLING = """
import sys
from pathlib import Path
from pipeline.ingest import reading
plain = reading._read
def read(source, config):
    if source.scan_id.startswith("ann"):
        print("waiting", file=sys.stderr, flush=True)
        Path(sys.argv[1]).read_bytes()
    return plain(source, config)
reading._read = read
from commands.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_scan_that_gives_no_byte_fails_the_others_go_on_and_the_next_run_tries_again(
    raw: Path, tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "stall.toml"
    config.write_text(FAST.replace("[ingest]", "[ingest]\nread_timeout_seconds = 1.0"))
    plain, until_stalled = reading._read, reading.until_stalled

    def patient(read, *, seconds, shown):  # a busy machine may stand still, too
        return until_stalled(read, seconds=seconds if "ann" in shown else PATIENT_SECONDS, shown=shown)

    def stalling(source, config):
        if source.scan_id.startswith("ann"):
            pipe.read_bytes()
        return plain(source, config)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_read", stalling)
        patch.setattr(reading, "until_stalled", patient)
        report = prepare_store(raw, tmp_path / "store", Settings.read(config), Options())
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    assert [outcome.scan_id for outcome in report.committed] == ["ben_ct", "cis_ct"]
    (failure,) = report.failed
    assert (failure.scan_id, failure.kind) == ("ann_ct", "StalledRead")
    again = prepare_store(raw, tmp_path / "store", Settings.read(config), Options())
    assert again.exit_code == 0
    assert [outcome.scan_id for outcome in again.committed] == ["ann_ct"]


@pytest.mark.long
def test_one_interrupt_ends_a_run_whose_scan_gives_no_byte(
    raw: Path, tmp_path: Path, pipe: Path, config: Path
) -> None:
    arguments = map(str, (pipe, "prepare", raw, tmp_path / "store", "--config", config))
    run = subprocess.Popen(
        [sys.executable, "-c", STALLING, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.stderr is not None
    while (line := run.stderr.readline()) != "waiting\n":
        assert line, "it ended before"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 1, out + err  # the three small scans were in hand together: none is left
    assert "not a byte came for 5 s" in out
    assert "2 committed, 0 done before, 1 failed" in out
