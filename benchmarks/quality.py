"""Proposals against expert labels: ours, our first version, and four others, over every labelled public set.

    python benchmarks/quality.py MANIFEST OUT                        all sets and methods, default scans
    python benchmarks/quality.py MANIFEST OUT --scans 1              of each set one scan
    python benchmarks/quality.py MANIFEST OUT --sets 'spinal_cord' --methods ours slic

Writes OUT/quality.md and OUT/quality.json (docs/quality.md explains them) and prints how ours compares. Every
finished (scan, method) is kept in OUT/cells: run it again to go on, or to add sets and methods. Methods are
those of `benchmarks/mask_methods.py`, and `first`: `mass prepare` of its first complete commit, checked out
for the purpose. One to two hours on two idle cores with the default scans; the whole-body PET is half of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.first_version import NAME as FIRST, make_first_cells
from benchmarks.mask_methods import methods
from benchmarks.quality_cells import Cell, labelled_sources, make_cells, read_cells
from benchmarks.quality_tables import columns_of, comparisons, document, markdown, summary_line
from pipeline.discovery.sources import Source


def main() -> None:
    names = [*methods(), FIRST]
    options = parser(__doc__ or "", names).parse_args()
    sources = labelled_sources(options.manifest, options.sets, options.scans)
    wanted = [name for name in names if name in options.methods]
    others = [name for name in wanted if name != FIRST]
    failures = make_cells(sources, others, methods, options.out, workers=options.workers)
    if FIRST in wanted:
        failures += make_first_cells(sources, options.out)
    cells = read_cells(sources, wanted, options.out)
    write_report(cells, heading(sources), options.out)
    for words, comparison in comparisons(columns_of(cells)):
        print(summary_line(words, comparison))
    finish(failures)


def parser(text: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """The options that measurements of quality share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "manifest", type=Path, metavar="MANIFEST", help="scans and labels, as mass prepare reads"
    )
    made.add_argument("out", type=Path, metavar="OUT", help="finished cells, tables")
    made.add_argument("--sets", nargs="+", default=[], metavar="SET", help="default: every labelled one")
    made.add_argument("--scans", type=int, metavar="N", help="of each set, evenly spaced (default: 3 to 12)")
    made.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    made.add_argument("--methods", nargs="+", choices=names, default=list(names), metavar="NAME")
    return made


def write_report(cells: Sequence[Cell], lines: Sequence[str], out: Path) -> None:
    """Write quality.md and quality.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.md").write_text(markdown(cells, lines) + "\n", encoding="utf-8")
    text = json.dumps(document(cells) | {"heading": list(lines)}, indent=1) + "\n"
    (out / "quality.json").write_text(text, encoding="utf-8")
    print(f"written: {out / 'quality.md'}, {out / 'quality.json'}")


def heading(sources: Sequence[Source]) -> list[str]:
    """What was measured, when, with which code."""
    git = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%h of %cs"]
    code = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    members: dict[str, int] = {}
    for source in sources:
        members[source.dataset] = members.get(source.dataset, 0) + 1
    counted = ", ".join(f"{name} {number}" for name, number in sorted(members.items()))
    return [
        f"Measured {time.strftime('%Y-%m-%d')} with the code of commit {code}. Scans: {counted}.",
        "Best IoU with each labelled structure that any of the first n masks reaches; mean over scans, then",
        "structures. In brackets: structures found at IoU 0.5 and at 0.7. *atoms*: the best union of the",
        "smallest pieces of a method. CPU s and MB are a scan's, for 2,000 proposals or all flat masks.",
    ]


def finish(failures: Sequence[str]) -> None:
    """End with 1, and the reasons, where something failed."""
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
