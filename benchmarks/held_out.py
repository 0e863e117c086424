"""Do settings chosen on some data sets serve another? Leave-one-set-out, over a grid of settings.

    python benchmarks/held_out.py MANIFEST OUT                   two scans of each set, a grid of seven
    python benchmarks/held_out.py MANIFEST OUT --grid GRID.json  {"name": {"outline_smoothing": 0.15}, ...}
    python benchmarks/held_out.py --cells CELLS.json             {"name": {"set": mean best IoU, ...}, ...}

For each set, the setting with the highest mean over all other sets is taken; its mean best IoU at 2,000 on
the set itself is told beside the default's, and beside the best that the grid has for it. Writes
OUT/held_out.md and OUT/held_out.json, whose "mean_best_iou" --cells takes again. Finished cells are kept as
in `quality.py`. The default was chosen while these sets were looked at: its own column is no held-out one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import LEFT_OUT, NUM_SCANS, means_of, write_json
from benchmarks.mask_methods import Entry, methods, proposed_entry
from benchmarks.quality import finish, heading
from benchmarks.quality_cells import labelled_sources, make_cells, read_cells
from benchmarks.quality_tables import table
from pipeline.proposals.config import ProposalConfig

DEFAULT = "ours"

GRID: Mapping[str, Mapping[str, Any]] = {
    "outlines-0.08": {"outline_smoothing": 0.08},
    "outlines-0.16": {"outline_smoothing": 0.16},
    "least-50-mm3": {"min_volume_mm3": 50.0},
    "least-200-mm3": {"min_volume_mm3": 200.0},
    "none-rounder": {"rounding": 0.0},
    "rounding-0.2": {"rounding": 0.2, "max_rounding_sigma_mm": 12.0},
    "rounded-0.3": {"rounded_fraction": 0.3},
    "duplicates-0.85": {"duplicate_iou": 0.85},
    "candidates-300": {"candidates_per_half_octave": 300},
    "candidates-1200": {"candidates_per_half_octave": 1200},
}
"""Settings that differ from the default in one field, or two of one kind."""

Means = Mapping[str, Mapping[str, float]]
"""Mean best IoU by setting, then by set."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A set, and what was chosen without it."""

    dataset: str
    chosen: str
    iou: float
    """Of the chosen setting on this set."""
    default_iou: float
    best_iou: float
    """Of the setting that suits this set best: what no choice without it can exceed."""


def leave_one_out(means: Means) -> list[HeldOut]:
    """The choice for each set from all others; the default wins a tie.

    Args:
        means: The default, as `DEFAULT`, and other settings, over the same two sets or more.

    Raises:
        ValueError: the default is missing, a setting lacks a set, or there is one set only.
    """
    if DEFAULT not in means:
        raise ValueError(f"the settings must hold {DEFAULT!r}, got {', '.join(means) or 'none'}")
    sets = sorted(means[DEFAULT])
    lacking = [name for name, values in means.items() if set(values) != set(sets)]
    if lacking or len(sets) < 2:
        raise ValueError(
            f"every setting needs the same two sets or more; {', '.join(lacking) or sets} does not"
        )
    names = [DEFAULT, *(name for name in means if name != DEFAULT)]
    found = []
    for dataset in sets:
        others = [s for s in sets if s != dataset]
        chosen = max(names, key=lambda name: float(np.mean([means[name][s] for s in others])))
        found.append(
            HeldOut(
                dataset=dataset,
                chosen=chosen,
                iou=means[chosen][dataset],
                default_iou=means[DEFAULT][dataset],
                best_iou=max(values[dataset] for values in means.values()),
            )
        )
    return found


def held_out_table(rows: list[HeldOut]) -> list[str]:
    """A Markdown table, with the means in its last row."""
    figures = [[r.iou, r.default_iou, r.iou - r.default_iou, r.best_iou] for r in rows]
    names = [[r.dataset, r.chosen] for r in rows]
    cells = [
        [*name, f"{iou:.3f}", f"{default:.3f}", f"{more:+.3f}", f"{best:.3f}"]
        for name, (iou, default, more, best) in zip(
            [*names, ["mean", ""]], [*figures, np.mean(figures, axis=0)], strict=True
        )
    ]
    return table(["left out", "chosen on the others", "IoU", "default", "difference", "best of grid"], cells)


def settings(grid: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """The default and the grid's settings, by name."""
    config = ProposalConfig()
    lists = {
        name: {k: tuple(v) if isinstance(v, list) else v for k, v in f.items()} for name, f in grid.items()
    }
    changed = {name: replace(config, **fields) for name, fields in lists.items()}
    made = {name: proposed_entry(value, raised_to=None) for name, value in changed.items()}
    return {DEFAULT: methods()["ours"]} | made


def main() -> None:
    options = _parser().parse_args()
    if options.cells:
        print("\n".join(held_out_table(leave_one_out(json.loads(options.cells.read_text("utf-8"))))))
        return
    grid = json.loads(options.grid.read_text("utf-8")) if options.grid else GRID
    sources = labelled_sources(options.manifest, options.sets, options.scans)
    if not options.sets:
        sources = [source for source in sources if source.dataset not in LEFT_OUT]
    names = [DEFAULT, *grid]
    failures = make_cells(sources, names, partial(settings, grid), options.out, workers=options.workers)
    means = means_of(read_cells(sources, names, options.out))
    lines = ["# Settings chosen without the set", "", *heading(sources)[:1], ""]
    lines += [*held_out_table(leave_one_out(means)), ""]
    (options.out / "held_out.md").write_text("\n".join(lines), encoding="utf-8")
    values = {"heading": heading(sources)[0], "grid": grid, "mean_best_iou": means}
    write_json(options.out / "held_out.json", values)
    print("\n".join(lines))
    finish(failures)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("manifest", type=Path, nargs="?", metavar="MANIFEST")
    made.add_argument("out", type=Path, nargs="?", metavar="OUT")
    made.add_argument("--cells", type=Path, metavar="JSON", help="choose from these means, measure nothing")
    made.add_argument("--grid", type=Path, metavar="JSON", help="settings by name (default: those in GRID)")
    made.add_argument("--sets", nargs="+", default=[], metavar="SET")
    made.add_argument("--scans", type=int, default=NUM_SCANS, metavar="N")
    made.add_argument("--workers", type=int, default=1)
    return made


if __name__ == "__main__":
    main()
