"""Draw the rooms of the code and who imports whom into docs/architecture.md.

    python docs/make_rooms.py            writes the picture between the markers of the page
    python docs/make_rooms.py --check    exit code 1 where the page is stale

An arrow is an import of one room by another, anywhere in its files. Rooms stand in an order in which every
arrow points to a row above.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms:begin -->", "<!-- rooms:end -->"
PACKAGES = ("storage", "pipeline", "training", "commands")
WITH_ROOMS = ("pipeline", "training")


def room_of(module: str) -> str:
    """Return the room of a module: `pipeline.formats` for `pipeline.formats.files`, else its package."""
    parts = module.split(".")
    folder = ROOT.joinpath(*parts[:2])
    return ".".join(parts[:2]) if parts[0] in WITH_ROOMS and folder.is_dir() else parts[0]


def imported(file: Path) -> Iterator[str]:
    """Yield the full names of the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in (*PACKAGES, "flows"))


def arrows() -> dict[str, set[str]]:
    """Return, for every room, the rooms that it imports."""
    found: dict[str, set[str]] = {"flows": set()}
    files = [ROOT / "flows.py", *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))]
    for file in sorted(files):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        here = room_of(module)
        found.setdefault(here, set())
        found[here] |= {room_of(name) for name in imported(file)} - {here}
    return found


def in_order(found: dict[str, set[str]]) -> list[str]:
    """Return the rooms so that each stands below all that it imports; flows and commands last."""
    order: list[str] = []
    waiting = {room: needs - {"flows", "commands"} for room, needs in found.items()}
    while waiting:
        free = sorted(room for room, needs in waiting.items() if needs <= set(order))
        if not free:
            raise SystemExit(f"these rooms import each other: {', '.join(sorted(waiting))}")
        order += free
        for room in free:
            del waiting[room]
    return sorted(order, key=lambda room: (room in ("flows", "commands"), order.index(room)))


def first_line(room: str) -> str:
    """Return the first line of a room's docstring."""
    path = ROOT.joinpath(*room.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def picture() -> str:
    """Return the table of rooms and a Mermaid graph of those inside of pipeline and training."""
    found = arrows()
    order = [room for room in in_order(found) if room not in WITH_ROOMS]
    lines = ["| room | what it does | imports |", "| --- | --- | --- |"]
    for room in order:
        needs = ", ".join(f"`{name}`" for name in order if name in found[room])
        lines.append(f"| `{room}` | {first_line(room)} | {needs} |")
    lines += ["", "```mermaid", "graph BT"]
    for package in WITH_ROOMS:
        lines.append(f"  subgraph {package}_package [{package}]")
        lines += [f'    {room.replace(".", "_")}["{room.split(".")[1]}"]' for room in order if "." in room
                  and room.startswith(package)]  # fmt: skip
        lines.append("  end")
    for room in order:
        inside = [name for name in order if name in found[room] and "." in room and "." in name]
        lines += [f"  {room.replace('.', '_')} --> {name.replace('.', '_')}" for name in inside]
    return "\n".join([*lines, "```"])


def main() -> None:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is stale")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = f"{before}{BEGIN}\n{picture()}\n{END}{after}"
    if check and wanted != text:
        sys.exit("docs/architecture.md is stale: run python docs/make_rooms.py")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
