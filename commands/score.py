"""`mass score`: overlap of a store's proposals with its labels."""

from __future__ import annotations

import json
import multiprocessing
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from commands.terminal import CommandError, counted, print_failures
from pipeline.errors import Failure
from pipeline.quality import ScanScore, score_scan, summarize, to_csv, to_json, to_markdown
from storage import CorruptStore, Store, StorePath, open_store


def run_score(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass score`; return the exit code and the results for --json."""
    ids = chosen_ids(open_store(arguments.store), arguments.scan, arguments.dataset)
    scores, failed = score_scans(
        arguments.store, ids, slic=arguments.baseline == "slic", workers=arguments.workers
    )
    score = summarize(scores)
    markdown = to_markdown(score)
    print(markdown.split("## By structure")[0] + "Every structure: --markdown FILE or --csv FILE")
    for path, text in ((arguments.markdown, markdown), (arguments.csv, to_csv(score))):
        if path:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path}")
    print_failures(failed)
    return int(bool(failed)), json.loads(to_json(score)) | {"failed": [asdict(failure) for failure in failed]}


def chosen_ids(store: Store, scans: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Return the scans whose id and data set match the patterns; all without patterns.

    Raises:
        CommandError: No scan matches.
    """
    ids = [
        scan_id
        for scan_id in store.scan_ids
        if _fits(scan_id, scans) and _fits(store.entries[scan_id].dataset, datasets)
    ]
    if not ids:
        asked = ", ".join([*scans, *datasets]) or "anything"
        raise CommandError(f"{store.path}: no scan fits {asked}. `mass status` lists the scans")
    return ids


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def score_scans(
    store_path: StorePath, ids: Sequence[str], *, slic: bool, workers: int
) -> tuple[list[ScanScore], list[Failure]]:
    """Return the scores of scans of a store, and the failures of damaged ones."""
    scores: list[ScanScore] = []
    failed: list[Failure] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else nullcontext() as pool:
        ahead = {i: pool.submit(score_one, store_path, i, slic) for i in ids} if pool else {}
        for scan_id in counted("score", ids, failed=failed):
            try:
                scores.append(ahead.pop(scan_id).result() if pool else score_one(store_path, scan_id, slic))
            except CorruptStore as error:
                failed.append(Failure.of(error, scan_id=scan_id, remedy="Run `mass verify`"))
    return scores, failed


def score_one(store_path: StorePath, scan_id: str, slic: bool) -> ScanScore:
    """Return the score of one scan."""
    return score_scan(open_store(store_path).scan(scan_id).record(), slic=slic)
