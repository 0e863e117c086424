"""docs/settings.md is what the dataclasses say today, and what it says can be written into a TOML file."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script; docs/ is no package."""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["make_settings"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_would_write(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run: python docs/make_settings.py"


def test_every_plain_field_of_every_config_has_a_row(script: ModuleType) -> None:
    text = script.page()
    for command in script.commands():
        for table, configs in script.tables_of(command):
            part = text.split(f"### [{table}] of mass {command.name}\n", 1)[1].split("\n### ", 1)[0]
            kind = type(next(iter(configs.values())))
            first = next(iter(configs.values()))
            for field in fields(kind):
                is_table = is_dataclass(getattr(first, field.name))
                assert (f"| `{field.name}` |" in part) != is_table, f"{kind.__name__}.{field.name}"


def test_defaults_are_written_as_toml_reads_them(script: ModuleType) -> None:
    for command in script.commands():
        for _, configs in script.tables_of(command):
            for config in configs.values():
                for name in script.plain_fields(type(config)):
                    value = getattr(config, name)
                    if value is not None:
                        assert tomllib.loads(f"x = {script.toml(value)}")["x"] == plain(value), name


def plain(value: object) -> object:
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def test_every_anchor_of_the_page_has_a_heading(script: ModuleType) -> None:
    text = script.page()
    headings = {script.slug(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
    anchors = re.findall(r"\]\(#([^)]+)\)", text)
    assert anchors
    assert set(anchors) <= headings


def test_a_field_without_a_docstring_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.py"
    file.write_text('class Drawn:\n    one: int = 1\n    """Says something."""\n    two: int = 2\n')
    monkeypatch.setattr(script.inspect, "getfile", lambda kind: str(file))
    kind = make_dataclass("Drawn", [("one", int), ("two", int)])
    with pytest.raises(ValueError, match=r"Drawn\.two"):
        script.field_texts(kind)
    file.write_text(file.read_text() + '    """Says\n    more, see docs/results.md."""\n')
    assert script.field_texts(kind) == {
        "one": "Says something.",
        "two": "Says more, see [results.md](results.md).",
    }
