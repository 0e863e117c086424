"""The picture of the rooms in docs/architecture.md is that of the code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "make_rooms.py"


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_rooms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_not_stale() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rooms_are_drawn_below_what_they_import(rooms: ModuleType) -> None:
    found = {"pipeline.a": {"pipeline.b"}, "pipeline.b": set(), "flows": {"commands"}, "commands": {"flows"}}
    assert rooms.in_order(found) == ["pipeline.b", "pipeline.a", "commands", "flows"]


def test_rooms_that_import_each_other_are_refused(rooms: ModuleType) -> None:
    with pytest.raises(SystemExit, match="import each other"):
        rooms.in_order({"pipeline.a": {"pipeline.b"}, "pipeline.b": {"pipeline.a"}})


def test_a_page_that_is_stale_is_seen(
    rooms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{rooms.BEGIN}\nold\n{rooms.END}\nbelow\n")
    monkeypatch.setattr(rooms, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["make_rooms.py", "--check"])
    with pytest.raises(SystemExit, match="stale"):
        rooms.main()
    monkeypatch.setattr(sys, "argv", ["make_rooms.py"])
    rooms.main()
    assert "`pipeline.volumes`" in page.read_text()
    assert page.read_text().startswith("above\n")
    assert page.read_text().endswith("below\n")
