"""The table of layouts in docs/data.md is what is found in drawn data sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.discovery import LAYOUT_NAMES

ROOT = Path(__file__).parents[2]


def test_the_table_of_layouts_is_not_stale() -> None:
    script = ROOT / "docs" / "make_layouts.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_layout_is_on_the_page_and_in_the_help() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    options = (ROOT / "commands" / "arguments" / "store.py").read_text(encoding="utf-8")
    for name in LAYOUT_NAMES:
        assert f"`{name}`" in page, name
        assert name in options, name
