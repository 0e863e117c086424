"""The demo's last stage: a whole head from one labelled head, beside copying its labels."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from commands import demo
from commands.main import main


def test_a_whole_head_is_segmented_from_one_labelled_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_HEAD_MM", 6.0)  # an eighth of the voxels
    told = demo.demonstrate_whole_scan(tmp_path / "head")
    assert len(told["dice"]) == 11
    assert told["dice"]["brain stem"] > 0.6
    assert np.mean(list(told["dice"].values())) > 0.35
    assert {path.name for path in (tmp_path / "head").iterdir()} == {
        "head_03_seg.nii.gz",
        "head_03_seg.png",
    }
    printed = capsys.readouterr().out
    assert "copied" in printed
    (again,) = [line for line in printed.splitlines() if line.startswith("again: mass segment small-v1")]
    assert main(shlex.split(again.removeprefix("again: mass "))) == 0  # over what the demo has written
    assert (tmp_path / "head" / "results.csv").exists()


def test_copied_labels_lie_middle_on_middle() -> None:
    labels = np.arange(1, 6)[:, None, None] * np.ones((1, 2, 2), int)
    assert demo._copied(labels, (9, 2, 2))[:, 0, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0]
    assert demo._copied(labels, (3, 2, 2))[:, 0, 0].tolist() == [2, 3, 4]
    assert demo._copied(labels, (5, 4, 1)).shape == (5, 4, 1)
