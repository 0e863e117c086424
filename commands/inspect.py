"""Pictures and numbers of a store, on a page and as files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.pages.run import RUN_PAGE, is_run, read_run, run_page
from commands.prepare.local_records import remembered_seconds
from commands.prepare.settings import known_scans
from commands.survey import MOST_VOXELS_IN_PAGE, Surveyed, level_within, pack_of, packs_within, survey
from commands.terminal import CommandError, print_failures
from pipeline.errors import Failure
from pipeline.quality import summarize
from pipeline.report import ScanReport, StoreContents, find_unusual, scan_page, store_page
from storage import Store, StorePath, open_store

MEGABYTES = 25
"""Size of a page that can still be mailed and opens at once."""
MOST_SLICES = 60
"""Most scans with a slice on the page: 15 kB each."""
MOST_PACKED = 24
"""Most scans that the page's viewer opens."""
UNUSUAL_FIRST = 8
"""Most unusual scans among these."""


def run_inspect(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass inspect`; return the exit code and the results for --json."""
    if is_run(arguments.store):
        return _inspect_run(arguments)
    if arguments.against is not None or str(arguments.store).lower().endswith(".json"):
        return _inspect_evaluation(arguments)
    if arguments.serve:
        from commands.serve import serve_store

        serve_store(arguments.store, port=arguments.port)
        return 0, {}
    if arguments.out is None:
        raise CommandError("Say where the page is to go (--out report.html), or show it at once (--serve)")
    written, failed = inspect_store(
        arguments.store,
        arguments.scan,
        arguments.out,
        full=arguments.full,
        megabytes=arguments.megabytes,
        workers=arguments.workers,
    )
    for path in written:
        print(f"written: {path}")
    print_failures(failed)
    return int(bool(failed)), {"written": [str(path) for path in written]}


def _inspect_run(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Write the page of a run."""
    out = arguments.out or arguments.store / RUN_PAGE
    text = run_page(read_run(arguments.store))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"written: {out}")
    return 0, {"written": [str(out)]}


def _inspect_evaluation(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Write the page of an evaluation's JSON, or of results of `mass segment` with a store's labels."""
    from commands.pages.evaluation import compare, evaluation_page, read_evaluation, results_page

    where: Any = arguments.store
    failed: list[Failure] = []
    if arguments.against is None:
        text = evaluation_page(where.name, read_evaluation(where))
    else:
        if not (isinstance(where, Path) and where.is_dir()):
            raise CommandError(f"{where}: --against takes a folder of results of `mass segment`")
        store = open_store(arguments.against)
        compared, failed = compare(store, where, arguments.scan)
        text = results_page(store, where, compared, round(arguments.megabytes * 1e6 * 3 / 4))
    out = arguments.out or where.with_name(f"{where.stem}-page.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"written: {out}")
    print_failures(failed)
    return int(bool(failed)), {"written": [str(out)], "failed": [failure.scan_id for failure in failed]}


def inspect_store(
    store_path: StorePath,
    scan_ids: Sequence[str],
    out: Path,
    *,
    full: int,
    most: int | None = None,
    megabytes: float = MEGABYTES,
    workers: int = 1,
) -> tuple[list[Path], list[Failure]]:
    """Write the page, and the pictures of the scans shown in full beside it.

    Args:
        store_path: The store.
        scan_ids: Scans to show; none for a page on the whole store.
        out: The page.
        full: Number of scans of a store that are shown in full, below the table of all.
        most: Most scans on a page of the whole store; they are taken evenly.
        megabytes: Size of the page up to which it includes scans for the viewer.
        workers: Number of processes.

    Returns:
        The files written, and the damaged scans; the page lists them too.
    """
    store = open_store(store_path)
    ids = list(store.scan_ids)
    chosen = list(scan_ids) or spread(ids, len(ids) if most is None else most)
    in_full = set(scan_ids) or set(spread(chosen, full))
    done, failed = survey(store_path, chosen, in_full, workers=workers)
    reports = [one.report for one in done if one.report is not None]
    if len(scan_ids) == 1 and reports:
        scan = store.scan(scan_ids[0])
        page = scan_page(reports[0], pack_of(scan, level_within(scan, MOST_VOXELS_IN_PAGE), small=True))
    else:
        contents = store_contents(store, done, failed, num_chosen=len(chosen))
        page = store_page(contents)
        room = round((megabytes * 1e6 - len(page.encode())) * 3 / 4)  # base64 has 4 bytes for 3
        packs = dict(packs_within(store, to_pack(done, in_full), max(room, 0)))
        page = store_page(replace(contents, packs=packs))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return [out, *write_pictures(reports, out.with_name(f"{out.stem}-pictures"))], failed


def store_contents(
    store: Store, done: Sequence[Surveyed], damaged: Iterable[Failure], *, num_chosen: int
) -> StoreContents:
    """Return the contents of a store's page, except the scans in its viewer."""
    failures = [known.failure for known in known_scans(store).values() if known.failure]
    seconds = remembered_seconds(store.path)
    rows = [replace(one.row, seconds=seconds.get(one.row.scan_id)) for one in done]
    pictured = {one.scan_id for one in find_unusual(rows)}
    pictured |= set(spread([row.scan_id for row in rows], MOST_SLICES))
    return StoreContents(
        name=store.name,
        facts=store_facts(store, num_chosen),
        failures=tuple((one.scan_id, one.reason, one.remedy) for one in [*failures, *damaged]),
        rows=rows,
        score=summarize([one.score for one in done]),
        thumbnails={one.row.scan_id: one.thumbnail for one in done if one.row.scan_id in pictured},
        reports=[one.report for one in done if one.report is not None],
    )


def store_facts(store: Store, num_chosen: int) -> tuple[tuple[str, str], ...]:
    """Return facts about a store, as names and values."""
    number = len(store.scan_ids)
    shown = (("scans", f"{num_chosen:,} of {number:,}, taken evenly"),) if num_chosen < number else ()
    return (
        ("spacing", f"{store.info.spacing_mm:g} mm"),
        ("format", str(store.info.format_version)),
        *shown,
    )


def to_pack(done: Sequence[Surveyed], in_full: set[str]) -> list[str]:
    """Return the scans for the viewer, in order: those in full, unusual ones, then evenly over all."""
    rows = [one.row for one in done]
    unusual = [one.scan_id for one in find_unusual(rows)][:UNUSUAL_FIRST]
    evenly = spread([row.scan_id for row in rows], MOST_PACKED)
    wanted = [row.scan_id for row in rows if row.scan_id in in_full]
    return list(dict.fromkeys([*wanted, *unusual, *evenly]))[: max(MOST_PACKED, len(wanted))]


def spread(names: Sequence[str], most: int) -> list[str]:
    """Return at most `most` of the names, evenly spread over all of them."""
    return [names[i * len(names) // most] for i in range(most)] if most < len(names) else list(names)


def write_pictures(reports: Sequence[ScanReport], folder: Path) -> list[Path]:
    """Write montages of some scans: proposals of each size in three planes, and their coverage."""
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
