"""The proposals of a store against its labels."""

from __future__ import annotations

import json
import multiprocessing
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commands.terminal import counted, print_failures
from pipeline.score_tables import summarize, to_csv, to_json, to_markdown
from pipeline.scoring import ScanScore, score_scan
from pipeline.sources import SourceFailure
from storage import CorruptStore, open_store


def run_score(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Mass score."""
    scores, failed = score_scans(
        arguments.store, slic=arguments.baseline == "slic", workers=arguments.workers
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


def score_scans(store_path: Path, *, slic: bool, workers: int) -> tuple[list[ScanScore], list[SourceFailure]]:
    """The score of every scan of a store, and those whose bytes are damaged."""
    ids = open_store(store_path).scan_ids
    scores, failed = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else nullcontext() as pool:
        ahead = {i: pool.submit(score_one, store_path, i, slic) for i in ids} if pool else {}
        for scan_id in counted("score", ids):
            try:
                scores.append(ahead.pop(scan_id).result() if pool else score_one(store_path, scan_id, slic))
            except CorruptStore as error:
                failed.append(
                    SourceFailure(
                        scan_id=scan_id,
                        location="",
                        reason=str(error),
                        remedy="Run `mass verify`",
                        kind=type(error).__name__,
                    )
                )
    return scores, failed


def score_one(store_path: Path, scan_id: str, slic: bool) -> ScanScore:
    """The score of one scan."""
    return score_scan(open_store(store_path).scan(scan_id).record(), slic=slic)
