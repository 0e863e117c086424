"""Kill `mass prepare` at random moments, let it finish, and compare with a run that nobody disturbed.

    python benchmarks/kill.py                          20 kills on the bundled scans, about ten minutes
    python benchmarks/kill.py --raw RAW --kills 50     more, on other scans

SIGKILL goes to the process that was started, as from the kernel or an impatient user; its children are left
to themselves. Checked: the stores have the same bytes, no finished scan was done again (inode and time of its
COMMIT.json stay), and no child outlives its parent by more than five seconds. Exit code 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "manifest.csv"


def start(raw: Path, store: Path, more: Sequence[str]) -> subprocess.Popen[bytes]:
    """Begin a run."""
    command = [sys.executable, "-m", "commands", "prepare", str(raw), str(store), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def commits(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each finished scan's COMMIT.json."""
    found = store.glob("scans/*/*/COMMIT.json")
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def children(process: int) -> set[int]:
    """All descendants of a process that live now."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, pending = set(), [process]
    while pending:
        parent = pending.pop()
        more = {child for child, of in parents.items() if of == parent} - found
        found |= more
        pending += more
    return found


def alive(processes: set[int]) -> set[int]:
    """Those of the processes that still run."""
    return {process for process in processes if Path(f"/proc/{process}").exists()}


def kill_once(raw: Path, store: Path, more: Sequence[str], delay_seconds: float) -> tuple[bool, set[int]]:
    """Begin a run and kill it after a while; whether it was still running, and who outlived it."""
    run = start(raw, store, more)
    try:
        run.wait(timeout=delay_seconds)
        return False, set()
    except subprocess.TimeoutExpired:
        family = children(run.pid)
        run.kill()
        run.wait()
    deadline = time.monotonic() + 5
    while (left := alive(family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return True, left


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, default=EXAMPLES)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--config", default="")
    arguments = parser.parse_args()
    more = ["--workers", arguments.workers, *(["--config", arguments.config] if arguments.config else [])]
    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.monotonic()
        run = start(arguments.raw, folder / "undisturbed", more)
        first = None
        while run.poll() is None:
            if first is None and commits(folder / "undisturbed"):
                first = time.monotonic() - began
            time.sleep(0.05)
        total = time.monotonic() - began
        expected, number = files(folder / "undisturbed"), len(commits(folder / "undisturbed"))
        print(f"undisturbed: {number} scans in {total:.0f} s, the first after {first or total:.0f} s")
        longest = total
        stores, again, outlived, working, done = [folder / "killed0"], 0, 0, 0, 0
        kept: dict[str, tuple[int, int]] = {}
        while done < arguments.kills:
            killed, left = kill_once(arguments.raw, stores[-1], more, dice.uniform(0, longest))
            now = commits(stores[-1])
            again += sum(now.get(scan_id) != state for scan_id, state in kept.items())
            outlived += len(left)
            if killed:
                done += 1
                working += bool(list(stores[-1].glob("tmp/*")))
                print(f"kill {done:3}: {len(now):3} of {number} scans finished", flush=True)
            kept = now
            if not killed:  # it came to its end before: another store for the kills that are left
                stores.append(folder / f"killed{len(stores)}")
                kept = {}
        last = start(arguments.raw, stores[-1], more)
        last.wait()
        again += sum(commits(stores[-1]).get(scan_id) != state for scan_id, state in kept.items())
        differing = [
            key
            for store in stores
            for key in {*expected, *files(store)}
            if files(store).get(key) != expected.get(key)
        ]
    print(f"{done} kills, {working} of them while a scan was being written, over {len(stores)} stores")
    print(f"finished scans done again: {again}; children that outlived a kill: {outlived}")
    print(
        f"files that differ from the undisturbed store: {len(differing)} of {len(expected)}", *differing[:5]
    )
    return int(bool(again or outlived or differing))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    sys.exit(main())
