"""Pages of evaluations: of `mass evaluate`, and of results of `mass segment` beside the labels of a store.

Reads:  the JSON that `mass evaluate --json` writes; or label maps NAME_seg in a folder, and a store whose
        scans have the same names and labels.
Writes: HTML text, one self-contained page; the worst first, a prediction beside its label in the viewer.
Bounds: predictions are compared on the store's grid; the viewer carries as many scans as fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.import_masks import target_of
from commands.survey import MOST_VOXELS_IN_PAGE, level_within
from commands.terminal import CommandError, counted
from pipeline.errors import Failure, ScanError
from pipeline.exchange import find_masks, read_label_map
from pipeline.ingest import ingest_config
from pipeline.report import (
    LeveledLabel,
    PackFacts,
    Pair,
    at_level,
    explorer_page,
    in_8_bits,
    number_list,
    pack_scan,
    table,
)
from storage import Scan, StorageError, Store

_LOW_DICE = 0.5
"""Dice below which a case counts as low."""

_COLORS = (
    "Under <b>Labels</b>: each structure of the expert with what was predicted for it. Blue: both; "
    "orange: missed; purple: drawn beyond the label. Outlines: yellow the label's, white what was drawn."
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A prediction compared with the labels of its scan, on the store's grid."""

    scan_id: str
    pairs: tuple[Pair, ...]
    """Labelled structures with the prediction of the same value, the worst first."""
    prediction: NDArray[np.uint8] | NDArray[np.uint16]
    """Label map (z, y, x)."""


def compare(store: Store, folder: Path, scan_ids: Sequence[str] = ()) -> tuple[list[Compared], list[Failure]]:
    """Compare the label maps in a folder with the labels of scans of the same names, the worst scan first.

    Args:
        store: The store.
        folder: Results of `mass segment`.
        scan_ids: Only these scans; empty for all that have a result.

    Raises:
        CommandError: No result belongs to a labelled scan of the store.
    """
    files = sorted(path for path in folder.iterdir() if "_seg." in path.name and path.suffix != ".png")
    labelled = [name for name, entry in store.entries.items() if entry.labels]
    found = find_masks(files, labelled, scan_id=None)
    compared: list[Compared] = []
    failed = [Failure.of(error, scan_id="", location=str(error.path or "")) for error in found.failures]
    config = ingest_config(store.info.config.get("ingest"))
    wanted = sorted(set(found.inputs) & set(scan_ids or found.inputs))
    for scan_id in counted("compare", wanted, failed=failed):
        scan = store.scan(scan_id)
        try:
            prediction = read_label_map(found.inputs[scan_id][0], target_of(scan), config)
            compared.append(compare_one(scan, prediction))
        except ScanError as error:
            failed.append(Failure.of(error, scan_id=scan_id))
        except StorageError as error:
            failed.append(Failure.of(error, scan_id=scan_id, remedy="Run `mass verify`"))
    if not compared:
        why = f": {failed[0].reason}" if failed else ""
        raise CommandError(f"{folder}: no NAME_seg here belongs to a labelled scan NAME of {store.path}{why}")
    return sorted(compared, key=lambda one: (_mean([pair.dice for pair in one.pairs]), one.scan_id)), failed


def compare_one(scan: Scan, prediction: NDArray[np.uint8] | NDArray[np.uint16]) -> Compared:
    """Return a prediction compared with the label map with which it shares most values."""
    maps = [scan.labels(name) for name in scan.label_names]
    values = set(np.unique(prediction).tolist()) - {0}
    shared = [len(values & set(np.unique(array).tolist())) for array in maps]
    index = int(np.argmax(shared))
    names = scan.label_values(scan.label_names[index])
    pairs = []
    for value in (int(value) for value in np.unique(maps[index]) if value):
        expected, drawn = maps[index] == value, prediction == value
        both, either = int((expected & drawn).sum()), int((expected | drawn).sum())
        pairs.append(
            Pair(
                name=names.get(value, f"value {value}"),
                label=index,
                value=value,
                other=len(maps) if drawn.any() else -1,
                other_value=value,
                iou=both / either,
                dice=2 * both / (either + both),
                note="" if drawn.any() else "nothing was drawn",
            )
        )
    pairs.sort(key=lambda pair: (pair.dice, pair.value))
    return Compared(scan_id=scan.id, pairs=tuple(pairs), prediction=prediction)


def results_page(store: Store, folder: Path, compared: Sequence[Compared], most_bytes: int) -> str:
    """Return the page of results and labels, with as many scans in the viewer as fit, the worst first."""
    packs: dict[str, bytes] = {}
    left = most_bytes
    for one in compared:
        pack = pack_compared(store.scan(one.scan_id), one)
        if len(pack) > left:
            break
        packs[one.scan_id], left = pack, left - len(pack)
    every = [pair.dice for one in compared for pair in one.pairs]
    rows = [
        (
            _link(one.scan_id, packs),
            escape(pair.name),
            f"{pair.dice:.3f}",
            f"{pair.iou:.3f}",
            escape(pair.note),
        )
        for one in compared
        for pair in one.pairs
    ]
    rows.sort(key=lambda row: float(row[2]))
    cases = table(("scan", "structure", "Dice", "IoU", "note"), rows, text=2)
    body = (
        f'<h2 id="cases">Cases, the worst first</h2>{cases}'
        f'<h2 id="structures">By structure</h2>{_by_structure(compared)}'
    )
    numbers = [
        (f"{len(compared):,}", "scans"),
        (f"{_mean(every):.3f}", "mean Dice"),
        (f"{sum(dice < _LOW_DICE for dice in every):,} of {len(every):,}", f"cases below {_LOW_DICE:g}"),
    ]
    header = f"<h1>{escape(folder.resolve().name)}</h1>{number_list(numbers)}"
    links = [("#cases", "Cases"), ("#structures", "By structure")]
    title = f"{folder.resolve().name} · results"
    return explorer_page(title, header, links, body, packs=packs, note=_COLORS)


def pack_compared(scan: Scan, one: Compared) -> bytes:
    """Return the pack of a scan for the viewer: image, labels, and the prediction as one label map more."""
    names = {pair.value: pair.name for pair in one.pairs}
    leveled = at_level(scan, level_within(scan, MOST_VOXELS_IN_PAGE))
    predicted = LeveledLabel(name="prediction", array=at_page_level(scan, one.prediction), value_names=names)
    shown = replace(leveled, labels=[*leveled.labels, predicted], atoms=[], orders=[])
    return pack_scan(in_8_bits(shown), PackFacts(pairs=one.pairs), compression=9)


def at_page_level(scan: Scan, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array (z, y, x) of a scan's grid at the level that a page shows, by nearest voxels.

    This is enough for a picture; the figures are of the full resolution.
    """
    level = scan.levels[level_within(scan, MOST_VOXELS_IN_PAGE)]
    places = [
        np.minimum(np.arange(size) * factor + factor // 2, full - 1)
        for size, factor, full in zip(level.shape_zyx, level.factors_zyx, scan.shape, strict=True)
    ]
    return array[np.ix_(*places)]


def evaluation_page(
    name: str,
    document: Mapping[str, Any],
    *,
    packs: Mapping[str, bytes] | None = None,
    shown: Mapping[str, tuple[str, ...]] | None = None,
) -> str:
    """Return the page of the JSON that `mass evaluate` writes.

    Args:
        name: Title.
        document: The JSON.
        packs: Packs of targets with their predictions, for the viewer.
        shown: Label map and references of the prediction in a target's pack.
    """
    packs, shown = packs or {}, shown or {}
    cases = [case for case in document["cases"] if case.get("dice") is not None]
    cases.sort(key=lambda case: (case["dice"], case["target"]))
    rows = [
        (
            _link(case["target"], packs if _is_shown(case, shown) else {}),
            escape(f"{case['label']} / {case['structure']}"),
            escape(" ".join(case["references"])),
            escape(case["state"]),
            *(_number(case.get(measure)) for measure in ("dice", "hd95_mm", "asd_mm")),
        )
        for case in cases
    ]
    structures = [
        (
            escape(f"{one['dataset']} / {one['label']} / {one['structure']}"),
            *(_number(one[measure]["mean"]) for measure in ("dice", "hd95_mm", "asd_mm")),
            str(one["num_cases"]),
            str(one["num_missed"]),
        )
        for one in document["structures"]
    ]
    body = (
        '<h2 id="cases">Cases, the worst first</h2>'
        + table(("target", "structure", "references", "state", "Dice", "HD95, mm", "ASD, mm"), rows, text=4)
        + '<h2 id="structures">By structure</h2>'
        + table(("structure", "Dice", "HD95, mm", "ASD, mm", "cases", "missed"), structures)
        + "".join(f'<p class="note">{escape(str(fact))}</p>' for fact in document.get("facts", []))
    )
    mean = document["mean"]["dice"]["mean"]
    numbers = [(_number(mean), "mean Dice"), (f"{len(cases):,}", "cases")]
    header = f"<h1>{escape(name)}</h1>{number_list(numbers)}"
    links = [("#cases", "Cases"), ("#structures", "By structure")]
    note = f"The {len(packs)} targets with the lowest mean Dice, each with its worst prompt. {_COLORS}"
    return explorer_page(f"{name} · evaluation", header, links, body, packs=packs, note=note)


def _is_shown(case: Mapping[str, Any], shown: Mapping[str, tuple[str, ...]]) -> bool:
    return shown.get(case["target"]) == (case["label"], *case["references"])


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """Return the JSON of `mass evaluate`.

    Raises:
        CommandError: The file is something else, or cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if {"cases", "structures", "mean"} <= set(document):
            found: Mapping[str, Any] = document
            return found
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error
    raise CommandError(f"{path}: this is not what `mass evaluate --json FILE` writes")


def _by_structure(compared: Sequence[Compared]) -> str:
    each: dict[str, list[float]] = {}
    for one in compared:
        for pair in one.pairs:
            each.setdefault(pair.name, []).append(pair.dice)
    rows = sorted(
        (
            (escape(name), _number(_mean(dice)), _number(min(dice)), str(len(dice)))
            for name, dice in each.items()
        ),
        key=lambda row: float(row[1]),
    )
    return table(("structure", "mean Dice", "lowest", "scans"), rows)


def _link(scan_id: str, packs: Mapping[str, bytes]) -> str:
    shown = escape(scan_id)
    return f'<a class="open" href="#viewer" data-scan="{shown}">{shown}</a>' if scan_id in packs else shown


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
