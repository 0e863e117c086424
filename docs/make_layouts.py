"""Draw a data set in every layout and write what is found in it as the table of docs/data.md.

    python docs/make_layouts.py            writes the table between the markers of the page
    python docs/make_layouts.py --check    exit code 1 where it is stale

A row is a group of scans with the same modality, case, split and labels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.discovery import Source, discover  # noqa: E402 - the project need not be installed
from pipeline.ingest import IngestConfig, read_source  # noqa: E402
from tests.pipeline.discovery.layouts.drawn_trees import TREES  # noqa: E402

PAGE = ROOT / "docs" / "data.md"
BEGIN, END = "<!-- layouts:begin -->", "<!-- layouts:end -->"
HEAD = (
    "| `--layout` | drawn data set | scans | modality | case | split | labels |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def rows(layout: str, draw: Callable[[Path], None], folder: Path) -> Iterator[str]:
    """Yield a row for each group of scans that are alike."""
    root = folder / "RAW"
    root.mkdir()
    draw(root)
    config = IngestConfig()
    groups: dict[tuple[str, ...], list[str]] = {}
    for source in discover(root, config.series_rules, layout="auto").sources:
        groups.setdefault(cells_of(source, config), []).append(source.location)
    about = (draw.__doc__ or "").strip().split("\n")[0].rstrip(".")
    for number, (cells, places) in enumerate(groups.items()):
        first = (f"`{layout}`", about) if number == 0 else ("", "")
        yield "| " + " | ".join([*first, "<br>".join(f"`{place}`" for place in places), *cells]) + " |"


def cells_of(source: Source, config: IngestConfig) -> tuple[str, ...]:
    """Return modality, case, split and labels of a scan, in words."""
    labels = [
        f"{label.name}: " + (", ".join((label.value_names or {}).values()) or "values without names")
        for label in read_source(source, config).labels
    ]
    return source.modality or "guessed", source.case, source.split, "<br>".join(labels)


def table() -> str:
    """Return the table of all layouts."""
    lines = [*HEAD]
    for layout, draws in TREES.items():
        for draw in draws:
            with tempfile.TemporaryDirectory() as folder:
                lines.extend(rows(layout, draw, Path(folder)))
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the table, or say that it is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if it is stale")
    check = parser.parse_args(arguments).check
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    made = head + BEGIN + "\n" + table() + END + rest.split(END)[1]
    if check and made != text:
        print("docs/data.md: the table of layouts is stale. Run python docs/make_layouts.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
