"""Draw the rooms of the code and who imports whom, for docs/architecture.md.

    python docs/make_rooms.py            writes rooms-*.svg and the table between the markers of the page
    python docs/make_rooms.py --check    exit code 1 where one of them is stale

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
WITH_ROOMS = ("storage", "pipeline", "training")
GROUND = ("pipeline", "training")
"""Packages whose files at the top are left out of the table: errors and the reading of settings."""
STEP_X, STEP_Y, BOX_X, BOX_Y = 150, 84, 118, 34
"""Distances between boxes and their size, in the units of the drawing."""


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


def level_of(room: str, found: dict[str, set[str]]) -> int:
    """Return how many rooms of its package stand on top of each other below a room."""
    below = [name for name in found[room] if name in found and name.split(".")[0] == room.split(".")[0]]
    return 1 + max((level_of(name, found) for name in below if "." in name), default=-1)


def drawing(package: str, found: dict[str, set[str]]) -> str:
    """Return an SVG of the rooms of a package: each stands above all that it imports."""
    rooms = [room for room in in_order(found) if room.startswith(f"{package}.")]
    rows: dict[int, list[str]] = {}
    for room in rooms:
        rows.setdefault(level_of(room, found), []).append(room)
    width = STEP_X * max(len(row) for row in rows.values())
    height = STEP_Y * len(rows)
    places = {
        room: (
            round(width * (number + 0.5) / len(row)),
            height - STEP_Y * level - STEP_Y // 2,
        )
        for level, row in rows.items()
        for number, room in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#f6f8fa"/>',
        '<g fill="none" stroke="#8a939e" stroke-width="1.2">',
    ]
    for room in rooms:
        for other in sorted(found[room] & set(rooms)):
            (x, y), (to_x, to_y) = places[room], places[other]
            lines.append(
                f'<path d="M{x} {y + BOX_Y // 2} C{x} {y + STEP_Y // 2} {to_x} {to_y - STEP_Y // 2} '
                f'{to_x} {to_y - BOX_Y // 2}"/>'
            )
    lines += ["</g>", '<g text-anchor="middle" font-size="13" fill="#1f2933">']
    for room, (x, y) in places.items():
        lines.append(
            f'<rect x="{x - BOX_X // 2}" y="{y - BOX_Y // 2}" width="{BOX_X}" height="{BOX_Y}" rx="5" '
            f'fill="#ffffff" stroke="#00796b"/><text x="{x}" y="{y + 5}">{room.split(".")[1]}</text>'
        )
    return "\n".join([*lines, "</g></svg>"]) + "\n"


def table(found: dict[str, set[str]]) -> str:
    """Return the table of rooms, with the drawings above it."""
    order = [room for room in in_order(found) if room not in GROUND]
    lines = [
        f"![The rooms of {name}, each above those that it imports](rooms-{name}.svg)\n" for name in WITH_ROOMS
    ]
    lines += ["| room | what it does | imports |", "| --- | --- | --- |"]
    for room in order:
        needs = ", ".join(
            f"`{name}`" for name in order if name in found[room] and not room.startswith(f"{name}.")
        )
        lines.append(f"| `{room}` | {first_line(room)} | {needs} |")
    return "\n".join(lines)


def main() -> None:
    """Write the page and the drawings, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    check = parser.parse_args().check
    found = arrows()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    wanted = {PAGE: f"{before}{BEGIN}\n{table(found)}\n{END}{after}"}
    wanted |= {PAGE.with_name(f"rooms-{name}.svg"): drawing(name, found) for name in WITH_ROOMS}
    for path, text in wanted.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"{path.name} is stale: run python docs/make_rooms.py")
        if not check:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
