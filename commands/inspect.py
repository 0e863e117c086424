"""Pictures and numbers of a store, on a page and as files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.prepare.settings import known_scans
from commands.terminal import counted
from pipeline.quality import score_scan, summarize
from pipeline.report import ScanReport, StoreFacts, describe_scan, overview_scan, scan_page, store_page
from storage import open_store


def run_inspect(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Mass inspect."""
    written = inspect_store(arguments.store, arguments.scan, arguments.out, full=arguments.full)
    for path in written:
        print(f"written: {path}")
    return 0, {"written": [str(path) for path in written]}


def inspect_store(
    store_path: Path, scan_ids: Sequence[str], out: Path, *, full: int, most: int | None = None
) -> list[Path]:
    """Write the page, and the pictures of the scans shown in full beside it.

    Args:
        store_path: The store.
        scan_ids: Scans to show; none for a page on the whole store.
        out: The page.
        full: How many scans of a store are shown in full, below the table of all.
        most: How many scans a page on the whole store has at most; they are taken evenly.
    """
    store = open_store(store_path)
    ids = list(store.scan_ids)
    chosen = list(scan_ids) or spread(ids, len(ids) if most is None else most)
    in_full = set(scan_ids) or set(spread(chosen, full))
    reports, overviews, scores = [], [], []
    for scan_id in counted("inspect", chosen):
        record = store.scan(scan_id).record()
        scores.append(score_scan(record))
        if scan_id in in_full:
            reports.append(describe_scan(record, scores[-1]))
            overviews.append(reports[-1].overview)
        else:
            overviews.append(overview_scan(record, scores[-1]))
    if len(scan_ids) == 1:
        page = scan_page(reports[0])
    else:
        failures = [known.failure for known in known_scans(store).values() if known.failure]
        shown = (("scans", f"{len(chosen)} of {len(ids)}"),) if len(chosen) < len(ids) else ()
        facts = StoreFacts(
            name=store_path.name,
            facts=(
                ("spacing", f"{store.info.spacing_mm:g} mm"),
                ("format", str(store.info.format_version)),
                *shown,
            ),
            failures=tuple((failure.scan_id, failure.reason, failure.remedy) for failure in failures),
        )
        page = store_page(facts, overviews, score=summarize(scores), reports=reports)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return [out, *write_pictures(reports, out.with_name(f"{out.stem}-pictures"))]


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly over all of them."""
    return [names[i * len(names) // most] for i in range(most)] if most < len(names) else list(names)


def write_pictures(reports: Sequence[ScanReport], folder: Path) -> list[Path]:
    """Write the montages of some scans: proposals of each size in three planes, and their coverage."""
    written = []
    for report in reports:
        pictures = {"all-sizes": report.sheet} | {group.name: group.planes for group in report.groups}
        pictures["coverage"] = report.coverage
        for name, picture in pictures.items():
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{report.overview.scan_id}-{name.replace(' ', '-')}.png"
            path.write_bytes(picture.png)
            written.append(path)
    return written
