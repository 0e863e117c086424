"""Write docs/settings.md: every setting of every command, from the dataclasses that own them.

    python docs/make_settings.py            # write the page
    python docs/make_settings.py --check    # exit with 1 where the page is not what would be written

Reads:  the dataclasses (types, defaults, recipes) and their source (the docstring below each field).
Writes: docs/settings.md.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

LONGEST_CELL = 45
"""Characters of a default that still fits a cell of a table; longer ones are written below it."""

INTRODUCTION = """\
# Settings

<!-- Made by `python docs/make_settings.py` from the dataclasses. Do not edit: change their docstrings. -->

Settings go into a TOML file, which a command takes with `--config FILE`. Each table of the file is a table of
this page. What you leave out keeps its default, or the value of the recipe that you chose. An unknown name is
an error that tells the nearest known one. A run writes all its settings to `RUN/config.toml`, in the same
form.

```toml
[ingest]
spacing_mm = 1.0

[proposals]
max_proposals = 4000
```

`unset` means that the setting has no value unless you give one. Triples are in the order z, y, x.
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command's tables, and the values of each of its recipes.

    Attributes:
        name: As `mass NAME`.
        text: What is said above its tables.
        recipes: A config a recipe, by the head of its column; its fields are the tables.
        own_table: Name of the table of the config's plain fields, empty where it has none.
    """

    name: str
    text: str
    recipes: Mapping[str, object]
    own_table: str = ""


def commands() -> tuple[Command, ...]:
    """Every command that reads a TOML file."""
    from commands.prepare.settings import Settings
    from training.classification import classify_config
    from training.finetuning import finetune_recipe
    from training.pretraining import recipe

    return (
        Command(
            name="prepare",
            text="`mass prepare RAW STORE --config C.toml`. A changed setting makes those scans stale that "
            "it affects; `mass prepare` then makes them again.",
            recipes={"default": Settings.read(None)},
        ),
        Command(
            name="pretrain",
            text="`mass pretrain STORE RUN --recipe whole --config C.toml`. The columns are the recipes. "
            "Without `--recipe` it is `whole`.",
            recipes={name: recipe(name) for name in ("whole", "large", "small", "published")},
        ),
        Command(
            name="finetune",
            text="`mass finetune CHECKPOINT STORE RUN --recipe whole --config C.toml`. An option of the "
            "command wins over the file. With `--mode tokens` all recipes have "
            '`optimiser = "adamw"` and `peak_rate = 0.003`.',
            recipes={name: finetune_recipe(name) for name in ("published", "small", "whole")},
        ),
        Command(
            name="classify",
            text="`mass classify CHECKPOINT STORE RUN --mode full --config C.toml`. The columns are the "
            "modes. `mode` and `from_scratch` come from the command's options only.",
            recipes={mode: classify_config(mode) for mode in ("frozen-attention", "frozen-linear", "full")},
            own_table="classification",
        ),
    )


def page() -> str:
    """The page as Markdown."""
    seen: dict[type, str] = {}
    lines = [INTRODUCTION]
    for command in commands():
        lines += [f"## mass {command.name}\n", command.text + "\n"]
        for table, configs in tables_of(command):
            lines += section(command, table, configs, seen)
    return "\n".join(lines).rstrip("\n") + "\n"


def tables_of(command: Command) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, config a recipe) of each TOML table of a command, the tables within a table after it."""
    if command.own_table:
        yield command.own_table, dict(command.recipes)
    first = next(iter(command.recipes.values()))
    for field in fields(first):
        configs = {name: getattr(config, field.name) for name, config in command.recipes.items()}
        if is_dataclass(getattr(first, field.name)):
            yield from _nested(field.name, configs)


def _nested(table: str, configs: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    first = next(iter(configs.values()))
    if plain_fields(type(first)):
        yield table, configs
    for field in fields(first):
        if is_dataclass(getattr(first, field.name)):
            inner = {name: getattr(config, field.name) for name, config in configs.items()}
            yield from _nested(f"{table}.{field.name}", inner)


def section(command: Command, table: str, configs: Mapping[str, object], seen: dict[type, str]) -> list[str]:
    """A table of the page: what each setting is, or, where that was told before, where, and the values."""
    kind = type(next(iter(configs.values())))
    heading = f"[{table}] of mass {command.name}"
    anchor = slug(heading)
    lines = [f"### {heading}\n"]
    told = kind in seen
    texts = field_texts(kind)
    if told:
        lines.append(f"What they mean: {seen[kind]}.\n")
    else:
        source = Path(inspect.getfile(kind)).relative_to(ROOT).as_posix()
        lines.append(f"`{kind.__name__}` in `{source}`.\n")
        seen[kind] = f"[[{table}] of mass {command.name}](#{anchor})"
    below: list[str] = []
    rows = []
    for name in plain_fields(kind):
        values = [cell(toml(getattr(config, name)), name, below) for config in configs.values()]
        rows.append([f"`{name}`", *values, *([] if told else [kind_of(kind, name), texts[name]])])
    head = ["setting", *configs, *([] if told else ["type", "meaning"])]
    return [*lines, *markdown_table(head, rows), "", *below]


def cell(text: str, name: str, below: list[str]) -> str:
    """A value for a cell; a long one goes below the table, once."""
    if len(text) <= LONGEST_CELL:
        return f"`{text}`" if text != "unset" else text
    block = f"Default of `{name}`:\n\n```toml\n{name} = {wrapped(text)}\n```\n"
    if block not in below:
        below.append(block)
    return "below"


def wrapped(text: str) -> str:
    """A TOML list of texts with one a line; other lists as they are."""
    if not text.startswith('["'):
        return text
    items = text[1:-1].split(", ")
    return "[\n" + "".join(f"  {item},\n" for item in items) + "]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in lines]


def plain_fields(kind: type) -> list[str]:
    """Names of the fields that are settings, not tables of their own."""
    hints = get_type_hints(kind)
    return [field.name for field in fields(kind) if not is_dataclass(hints[field.name])]


def field_texts(kind: type) -> dict[str, str]:
    """The docstring below each field, as one line of Markdown.

    Raises:
        ValueError: A field has none.
    """
    tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    body = next(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    texts = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if not (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            raise ValueError(f"{kind.__name__}.{statement.target.id} has no docstring below it")
        texts[statement.target.id] = linked(" ".join(following.value.value.split()))
    return texts


def linked(text: str) -> str:
    """The text with files of docs/ as links."""
    return re.sub(r"\bdocs/([\w/-]+\.md)", r"[\1](\1)", text)


def kind_of(kind: type, name: str) -> str:
    """The type of a setting in words."""
    return in_words(get_type_hints(kind)[name])


def in_words(hint: Any) -> str:
    """A type as somebody who writes TOML thinks of it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{toml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments if argument is not type(None))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {plural(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} {plural(arguments[0])}"
    if origin is dict:
        return "table"
    return {float: "number", int: "whole number", bool: "`true` or `false`", str: "text"}[hint]


def plural(hint: Any) -> str:
    """Several of a type, in words."""
    if get_origin(hint) is tuple:
        return f"pairs of {plural(get_args(hint)[0])}"
    return in_words(hint) + "s"


def toml(value: Any) -> str:
    """A value as TOML writes it; "unset" for None."""
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case int():
            return f"{value:_}" if abs(value) >= 10_000 else str(value)
        case float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(toml(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
    raise TypeError(f"no TOML value: {value!r}")


def slug(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return "-".join(kept.split())


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where it differs")
    check = parser.parse_args().check
    text = page()
    if check and PAGE.read_text(encoding="utf-8") != text:
        print("docs/settings.md is stale: python docs/make_settings.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
