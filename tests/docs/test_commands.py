"""What README.md and docs/ show can be done: commands parse, code compiles, names, files, settings exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from commands.arguments import parser

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
OURS = ("commands", "flows", "pipeline", "storage", "training")

FENCE = re.compile(r"^```(?P<kind>\w*)[ \t]*\n(?P<text>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
"""A link or a picture; its text may hold brackets."""
MASS = re.compile(r"^(?:srun )?(?:\S*/)?mass (?P<rest>.*)$")
FLOWS = re.compile(r"^torchrun .*-m commands (?P<rest>.*)$")
SCRIPT = re.compile(r"^(?:\S*/)?python (?P<script>\w[\w/]*\.py)\b")
MAKE = re.compile(r"^make (?P<target>[\w-]+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """Every fenced block of a page's text."""
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page=page, line=line, kind=found["kind"], text=found["text"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"), name_of(page))]
PYTHON = [block for block in BLOCKS if block.kind == "python"]
TOML = [block for block in BLOCKS if block.kind == "toml"]
DIFFS = [block for block in BLOCKS if block.kind == "diff"]
SHELL = [block for block in BLOCKS if block.kind in ("", "bash")]


def lines_of(block: Block) -> list[str]:
    """The lines of a block, continued ones as one."""
    return [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]


def mass_arguments(line: str) -> list[str] | None:
    """The arguments of a `mass` command line, None for another line and for one with `...`."""
    found = MASS.match(line) or FLOWS.match(line)
    if found is None or "..." in line:
        return None
    return shlex.split(found["rest"], comments=True)


COMMANDS = [
    pytest.param(arguments, id=f"{block}: {line}")
    for block in SHELL
    for line in lines_of(block)
    if (arguments := mass_arguments(line)) is not None and arguments != ["--help"]
]


def parses(arguments: list[str]) -> bool:
    try:
        parser().parse_args(arguments)
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_mass_command_line_parses(arguments: list[str]) -> None:
    assert parses(arguments)


def test_every_command_is_shown_somewhere() -> None:
    shown = {param.values[0][0] for param in COMMANDS}  # type: ignore[index]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [shlex.split(row) for row in re.findall(r"^\| `mass ([^`]+)`", readme, re.MULTILINE)]
    assert all(parses(row) for row in rows), "a row of the table of README.md"
    (commands,) = (action.choices for action in parser()._actions if action.dest == "==SUPPRESS==")
    assert commands is not None
    assert {row[0] for row in rows} == set(commands), "the table of README.md"
    assert set(commands) - shown <= {"demo", "lift"}, "in a block of some page"


def test_options_that_do_not_exist_and_missing_arguments_would_be_seen() -> None:
    block = next(blocks_of("```\nmass segment RUN a.nii --oot DIR  # no such option\n```\n", "drawn"))
    arguments = [mass_arguments(line) for line in lines_of(block)]
    assert arguments == [["segment", "RUN", "a.nii", "--oot", "DIR"]]
    assert not parses(arguments[0] or [])
    assert not parses(["prepare", "RAW"])
    assert mass_arguments("mass segment RUN ... --out DIR") is None


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_compiles_and_what_it_imports_of_ours_is_there(block: Block) -> None:
    for missing in missing_names(block.text):
        pytest.fail(f"{block}: {missing}")


def missing_names(code: str) -> Iterator[str]:
    """What a block imports from our packages that is not there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = import_module(node.module)
            yield from (f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name))


def test_a_name_that_is_not_there_would_be_seen() -> None:
    assert list(missing_names("from storage import open_store, opened")) == ["storage.opened"]


@pytest.mark.parametrize("block", TOML, ids=str)
def test_every_toml_block_is_toml_with_settings_that_there_are(block: Block) -> None:
    from commands.prepare.settings import Settings
    from training.classification import classify_config
    from training.finetuning import finetune_recipe
    from training.pretraining import recipe

    configs = (Settings.read(None), recipe("small"), finetune_recipe("small"), classify_config("full"))
    for table, values in tomllib.loads(block.text).items():
        if isinstance(values, dict):
            owners = [getattr(config, table) for config in configs if hasattr(config, table)]
            assert owners, f"{block}: no table [{table}]"
            known = {name for owner in owners for name in vars(owner)}
            assert set(values) <= known, f"{block}: [{table}]"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_scripts_and_make_targets_that_are_called_exist(block: Block) -> None:
    rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for line in lines_of(block):
        if found := SCRIPT.match(line):
            assert (ROOT / found["script"]).is_file(), f"{block}: {found['script']}"
        if found := MAKE.match(line):
            assert found["target"] in targets, f"{block}: make {found['target']}"


def broken_links(text: str, folder: Path) -> Iterator[str]:
    """Relative links and pictures of a page that lead to no file, or to no heading of a page."""
    for found in LINK.finditer(FENCE.sub("", text)):
        target = found["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path
        if (path and not file.is_file()) or (
            anchor and anchor not in anchors(file.read_text(encoding="utf-8") if path else text)
        ):
            yield target


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    assert list(broken_links(page.read_text(encoding="utf-8"), page.parent)) == []


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One thing\n")
    text = "# A\n[a](b.md#one-thing) [b](b.md#two) ![c](c.png) [[d] e](d.md) [f](#a) [g](#h) [i](https://x.org)\n"
    assert list(broken_links(text, tmp_path)) == ["b.md#two", "c.png", "d.md", "#h"]


def test_readme_is_short_and_names_the_command_of_the_tests() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    assert "make test" in text


@pytest.mark.parametrize("block", DIFFS, ids=str)
def test_what_a_diff_changes_is_in_the_file_that_it_names(block: Block) -> None:
    assert not_in_file(block) == []


def not_in_file(block: Block) -> list[str]:
    """Lines that a diff takes away or shows around a change and that its file has not."""
    first, *lines = block.text.splitlines()
    file = ROOT / first.removeprefix("--- ")
    there = set(file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line[:1] in ("-", " ") and line[1:] not in there]


def test_a_diff_of_lines_that_are_gone_would_be_seen() -> None:
    lines = "--- flows.py\n-import nothing_of_the_kind\n+import x\n from prefect import flow, task\n"
    block = Block(page="drawn", line=1, kind="diff", text=lines)
    assert not_in_file(block) == ["-import nothing_of_the_kind"]
