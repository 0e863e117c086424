"""Names with markup in them change the words of a page, never its tags: nothing that a file says is run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from commands.main import main
from storage import LabelVolume, LedgerEntry, commit_scan, create_store, finish, write_ledger
from tests.training.phantom_store import phantom_record

ROOT = Path(__file__).parents[2]

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;<!--"
NASTY_NAME = "<b>\"'&<script>alert(3)<"
PLAIN = "p" * len(NASTY)  # as long: charts squeeze long names


class Tags(HTMLParser):
    """Every tag of a page, with the names of its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.words += " ".join(value or "" for name, value in attrs if name != "src")

    def handle_data(self, data: str) -> None:
        self.words += data


def make_store(folder: Path, word: str) -> Path:
    """A store in which everything that may be any text is this word."""
    store = create_store(folder, spacing_mm=1.5, config={"about": word}).path
    for number in range(2):
        record = phantom_record(f"scan-{number}", seed=number)
        label = record.labels[0]
        named = LabelVolume(
            name=label.name,
            array=label.array,
            value_names={value: f"{word} {value}" for value in label.value_names},
        )
        attributes = {**record.attributes, "notes": [word], "location": word, "facts": {"Manufacturer": word}}
        commit_scan(
            store,
            replace(
                record,
                dataset=word,
                split=word,
                case=word,
                modality=word,
                labels=(named,),
                sources=(word,),
                attributes=attributes,
            ),
        )
    failed = LedgerEntry(
        scan_id="bad", location=word, state="failed", kind=word, reason=word, remedy=word, source_digest="1"
    )
    write_ledger(store, [failed])
    finish(store)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same store with plain and with nasty names."""
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder / PLAIN, PLAIN), make_store(folder / NASTY_NAME, NASTY)


@pytest.mark.parametrize("more", [[], ["--scan", "scan-0"]])
def test_a_report_has_the_same_tags_whatever_the_names_say(
    stores: tuple[Path, Path], tmp_path: Path, more: list[str]
) -> None:
    pages = []
    for store, folder in zip(stores, ("plain", "nasty"), strict=True):
        out = tmp_path / folder / "report.html"
        out.parent.mkdir()
        assert main(["inspect", str(store), "--out", str(out), *more]) in (0, 1)
        pages.append(Tags(out.read_text(encoding="utf-8")))
    plain, nasty = pages
    assert nasty.tags == plain.tags
    assert "<script>alert(1)</script>" in nasty.words, "the name is shown as it is"


def test_the_notebook_escapes_what_it_puts_into_markup() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "inspect_proposals.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "<tr><td>{" in cell.source)
    code = cell.source[cell.source.index("rows = ") :]

    entry = SimpleNamespace(
        scan_id=NASTY, dataset=NASTY, modality=NASTY, labels=(NASTY,), shape_zyx=(1, 2, 3), num_proposals=4
    )
    shown: list[str] = []
    exec(code, {"store": SimpleNamespace(entries={"x": entry}), "escape": escape, "HTML": shown.append})
    assert {tag for tag, _ in Tags(shown[0]).tags} == {"table", "tr", "th", "td"}


def test_a_failure_of_prepare_reaches_the_terminal_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = create_store(tmp_path / "store", spacing_mm=1.5, config={}).path
    word = "\x1b]0;title\x07\x1b[2J\x9b2J"
    write_ledger(
        store, [LedgerEntry(scan_id="bad", location=word, state="failed", kind="x", reason=word, remedy=word)]
    )
    main(["status", str(store), "--json", str(tmp_path / "s.json")])
    shown = capsys.readouterr().out
    assert "title" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert json.loads((tmp_path / "s.json").read_text())["failed"][0]["reason"] == word
    shutil.rmtree(store)
