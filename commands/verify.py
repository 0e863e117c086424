"""Every committed byte of a store against its checksum."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from commands.progress import Progress
from commands.terminal import print_table, shown
from storage import open_store, verify


def run_verify(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Mass verify."""
    began, total, seen = time.monotonic(), len(open_store(arguments.store)), []
    with shown("verify") as show:

        def on_scan(scan_id: str) -> None:
            seen.append(scan_id)
            show(Progress.of_equals(len(seen), max(total, len(seen)), time.monotonic() - began))

        problems = list(verify(arguments.store, on_scan=on_scan))
    rows = [(problem.scan_id or "(the store)", problem.key, problem.what) for problem in problems]
    if rows:
        print_table(f"problems ({len(rows)})", ("scan", "file", "what"), rows)
    print(f"{len(seen)} scans verified, {len(problems)} problems")
    return int(bool(problems)), {
        "num_scans": len(seen),
        "problems": [asdict(problem) for problem in problems],
    }
