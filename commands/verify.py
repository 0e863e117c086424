"""`mass verify`: check of every committed byte of a store against its checksum."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from commands.progress import Progress
from commands.terminal import print_table, shown
from storage import Problem, StorePath, verify
from storage.reading import read_index


def run_verify(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass verify`; return the exit code and the results for --json."""
    num_scans, problems = verified(arguments.store)
    rows = [(problem.scan_id or "(the store)", problem.key, problem.what) for problem in problems]
    if rows:
        print_table(f"problems ({len(rows)})", ("scan", "file", "what"), rows)
    print(f"{num_scans} scans verified, {len(problems)} problems")
    if problems:
        print("`mass repair STORE` makes again what is damaged")
    return int(bool(problems)), {
        "num_scans": num_scans,
        "problems": [asdict(problem) for problem in problems],
    }


def verified(store: StorePath) -> tuple[int, list[Problem]]:
    """Check a whole store, with progress; return the number of scans and the problems."""
    began, total = time.monotonic(), len(read_index(store).entries)
    seen: list[str] = []
    problems: list[Problem] = []
    with shown("verify") as show:

        def on_scan(scan_id: str) -> None:
            failed = len({problem.scan_id for problem in problems if problem.scan_id})
            done, seconds = len(seen), time.monotonic() - began
            show(Progress.of_equals(done, max(total, done + 1), seconds, failed=failed, in_hand=scan_id))
            seen.append(scan_id)

        problems.extend(verify(store, on_scan=on_scan))
    return len(seen), problems
