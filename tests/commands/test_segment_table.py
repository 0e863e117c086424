"""The table of all results of `mass segment` in a folder, while another run is at it."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

from commands.main import main
from commands.segmenting.results import write_results_table
from tests.commands.test_segment import draw

SHORT_SECONDS = 0.3


def test_runs_that_end_at_once_wait_for_each_other(tmp_path: Path) -> None:
    draw().write(tmp_path / "ref.nii.gz")
    draw().write_labels(tmp_path / "mask.nii.gz")
    for seed, name in enumerate("ab", start=1):
        draw(seed=seed).write(tmp_path / "scans" / f"{name}.mha")
    shown = [
        "--reference-image",
        str(tmp_path / "ref.nii.gz"),
        "--reference-mask",
        str(tmp_path / "mask.nii.gz"),
    ]
    out = tmp_path / "out"
    rest = ["--out", str(out), "--modality", "ct", "--spacing", "5"]
    assert main(["segment", "none", *shown, str(tmp_path / "scans"), *rest]) == 0
    whole, table, other = (out / "results.csv").read_text(), out / "results.csv", out / "a_result.json"
    job = json.loads(other.read_text())["job"]
    table.unlink()
    other.rename(tmp_path / "hidden")  # as if the other run were about to write it

    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    writing = threading.Thread(target=write_results_table, args=(out, job))
    writing.start()
    writing.join(SHORT_SECONDS)
    assert not table.exists()
    (tmp_path / "hidden").rename(other)
    os.close(handle)
    writing.join()
    assert table.read_text() == whole
