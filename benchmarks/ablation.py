"""What each part of the proposals brings: ours with one part taken out in turn, over the labelled sets.

    python benchmarks/ablation.py MANIFEST OUT                 two scans of each set but the whole-body PET
    python benchmarks/ablation.py MANIFEST OUT --scans 1 --sets totalseg_ct spinal_cord

Writes OUT/ablation.md and OUT/ablation.json: the change in mean best IoU at 2,000 proposals, set by set.
Parts that are settings are set otherwise; rules of selection and of slivers are replaced for the run. A part
that another can stand in for shows a small change: changes do not add up. OUT may be that of `quality.py`;
finished cells are kept, run it again to go on. About 25 times the processor time of `ours`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.mask_methods import Entry, Made, Masked, methods, proposed_entry
from benchmarks.quality import finish, heading, parser
from benchmarks.quality_cells import labelled_sources, make_cells, read_cells
from benchmarks.quality_tables import columns_of, set_means, table
from pipeline.hierarchies.tree_methods import TreeSpec
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.selection import Candidates

NUM_SCANS = 2
LEFT_OUT = ("pet_wholebody",)
"""Sets that are not measured unless asked for: an hour for one scan."""


def main() -> None:
    names = list(parts())
    options = parser(__doc__ or "", names).parse_args()
    sources = labelled_sources(options.manifest, options.sets, options.scans or NUM_SCANS)
    if not options.sets:
        sources = [source for source in sources if source.dataset not in LEFT_OUT]
    wanted = ["ours", *(name for name in names if name in options.methods and name != "ours")]
    failures = make_cells(sources, wanted, parts, options.out, workers=options.workers)
    means = means_of(read_cells(sources, wanted, options.out))
    if not means:
        finish(failures or ["no scan to measure"])
    lines = ["# What each part brings", "", *heading(sources)[:1], "", *change_table(means), ""]
    (options.out / "ablation.md").write_text("\n".join(lines), encoding="utf-8")
    write_json(options.out / "ablation.json", {"heading": heading(sources)[0], "mean_best_iou": means})
    print("\n".join(lines))
    finish(failures)


def means_of(cells: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Mean best IoU at 2,000 by method, then by set."""
    return {name: set_means(scores.values()) for name, scores in columns_of(cells).items()}


def change_table(means: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row a method: `ours` as it is, the others as what they change, the most harmful first."""
    sets = sorted(means["ours"])
    changes = {
        name: [values[s] - means["ours"][s] for s in sets]
        for name, values in means.items()
        if name != "ours" and set(sets) <= set(values)
    }
    whole = [means["ours"][s] for s in sets]
    rows = [["ours", *(f"{value:.3f}" for value in [*whole, np.mean(whole)])]]
    for name in sorted(changes, key=lambda name: float(np.mean(changes[name]))):
        values = [*changes[name], np.mean(changes[name])]
        rows.append([name.replace("-", " "), *(f"{value:+.3f}" for value in values)])
    return table(["part", *sets, "mean"], rows)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------- the parts


def parts() -> dict[str, Entry]:
    """Ours, and ours without each part."""
    config = ProposalConfig()
    entries = {"ours": methods()["ours"]}
    for name, changed in (tree_parts(config) | other_parts(config)).items():
        entries[name] = proposed_entry(changed, raised_to=None)
    plain = proposed_entry(config, raised_to=None)
    for name, (target, made) in rules().items():
        entries[name] = Entry(make=replaced(plain, target, made), settings=plain.settings | {"rule": name})
    return entries


def tree_parts(config: ProposalConfig) -> dict[str, ProposalConfig]:
    """The settings without each kind of tree and without each partition."""
    specs = config.specs

    def without(dropped: Callable[[TreeSpec], bool]) -> ProposalConfig:
        return replace(config, trees=tuple(spec.name for spec in specs if not dropped(spec)))

    made = {f"no-{m}-trees": without(lambda s, m=m: s.method == m) for m in sorted({s.method for s in specs})}
    made |= {
        f"no-trees-of-{p}": without(lambda s, p=p: s.partition == p)
        for p in sorted({s.partition for s in specs})
    }
    return made | {
        "no-balanced-trees": without(lambda s: s.method == "contrast" and "balanced" in s.name),
    }


def other_parts(config: ProposalConfig) -> dict[str, ProposalConfig]:
    """The settings without each other part."""
    fine = config.fine_scale_mm
    at_one_scale = tuple(dict.fromkeys(replace(spec, scale_mm=fine).name for spec in config.specs))
    return {
        "no-components": replace(config, component_thresholds_hu=(), component_percentiles=()),
        "ragged-outlines": replace(config, outline_smoothing=0.0),
        "none-rounder": replace(config, rounding=0.0),
        "one-scale-of-evidence": replace(config, scales_mm=(fine,), coarse_scale_mm=fine, trees=at_one_scale),
        "one-intensity-window": replace(
            config,
            ct_windows_hu=config.ct_windows_hu[:1],
            percentile_windows=config.percentile_windows[:1],
        ),
        "no-limit-to-the-body": replace(config, min_body_fraction=0.0),
        "near-duplicates-kept": replace(config, duplicate_iou=1.0),
        "a-third-of-the-atoms": replace(config, max_atoms=config.max_atoms // 3),
        "a-quarter-of-the-candidates": replace(
            config, candidates_per_half_octave=config.candidates_per_half_octave // 4
        ),
    }


def rules() -> dict[str, tuple[str, Callable[..., Any]]]:
    """Rules that are no settings: which function stands for each, and what takes its place."""
    return {
        "chosen-at-random": ("pipeline.proposals.proposal_set.choose", choose_at_random),
        "chosen-by-growth": ("pipeline.proposals.proposal_set.choose", choose_by_growth),
        "no-agreement-of-trees": ("pipeline.proposals.selection._agreement", agree_on_nothing),
        "no-clear-outlines": ("pipeline.proposals.selection._clarity", equally_clear),
        "no-slivers-absorbed": ("pipeline.proposals.atoms.absorb_in_place", absorb_nothing),
    }


def replaced(entry: Entry, target: str, made: Callable[..., Any]) -> Callable[[Masked], Made]:
    """The entry's method with another function in the place of one."""

    def make(scan: Masked) -> Made:
        with patch(target, made):
            return entry.make(scan)

    return make


def choose_at_random(
    candidates: Candidates, num_wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In place of `choose`: any candidates."""
    rows = np.random.default_rng(0).permutation(len(candidates.node))[:num_wanted]
    return rows, np.ones(len(rows))


def choose_by_growth(
    candidates: Candidates, num_wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In place of `choose`: the longest-lived, an octave of volume in turn."""
    octave = np.floor(np.log2(candidates.voxels)).astype(np.int64)
    order = np.lexsort((-candidates.growth, octave))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.searchsorted(octave[order], octave[order], side="left")
    rows = np.lexsort((octave, turn))[:num_wanted]
    return rows, np.ones(len(rows))


def agree_on_nothing(*arguments: Any) -> NDArray[np.float64]:
    """In place of `_agreement`: every region is drawn by one tree."""
    return np.ones(arguments[-1])


def equally_clear(outline: NDArray[np.int64], voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """In place of `_clarity`: neither evidence nor evenness of the outline tells candidates apart."""
    return np.ones(len(voxels))


def absorb_nothing(atoms: Any, ranks: NDArray[Any], *rest: Any) -> NDArray[np.int64]:
    """In place of `absorb_in_place`: no sliver; where there are too many atoms, regions are given up."""
    return np.arange(len(ranks))


if __name__ == "__main__":
    main()
