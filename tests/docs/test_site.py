"""The site: every page is reached, and nothing in it asks another server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(value)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(pages_of(SITE["nav"]))
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def test_nothing_is_asked_of_another_server() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["plugins"] == ["search"]
    assert not {"repo_url", "extra_javascript", "extra_css"} & set(SITE)
    assert set(SITE["extra"]) == {"generator"}


def test_a_warning_ends_the_build() -> None:
    assert SITE["strict"] is True
    for part in SITE["validation"].values():
        assert set(part.values()) == {"warn"}


def test_room_markers_are_where_the_picture_goes() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert text.count("<!-- rooms:begin -->") == text.count("<!-- rooms:end -->") == 1
    assert text.index("<!-- rooms:begin -->") < text.index("<!-- rooms:end -->")
