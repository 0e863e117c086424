"""One Dask worker and two on the same scans: scans a minute, and processor time a scan.

    python benchmarks/dask_workers.py                         the bundled hippocampus scans, four times each
    python benchmarks/dask_workers.py --raw M.csv --scans 12 --copies 1
    python benchmarks/dask_workers.py --workers 1 2 4

A real cluster: `dask scheduler` and `dask worker`, each a process of one thread, with one inner thread. Each
task is one scan. Starting is left out: a run into another store warms the workers, and scans are counted from
when each worker has finished its first. Where others use the machine, scans a minute say little; processor
time a scan says whether two workers do more work than one, and cores used how much of the machine they got.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands.arguments import EXAMPLES
from commands.caches import set_process_defaults
from commands.prepare import scheduler
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from pipeline.discovery import discover

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)


class Cluster:
    """A scheduler and workers on the loopback, ended with the block."""

    def __init__(self, workers: int, folder: Path) -> None:
        told = folder / "scheduler.json"
        place = ["--host", "127.0.0.1", "--no-dashboard"]
        self.processes = [self._start("scheduler", "--port", "0", "--scheduler-file", str(told), *place)]
        while not (told.exists() and told.read_text().strip().endswith("}")):
            time.sleep(0.1)
        self.address = json.loads(told.read_text())["address"]
        one = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder), *place]
        self.workers = [self._start("worker", self.address, *one) for _ in range(workers)]

    def _start(self, kind: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *more]
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=os.environ | ONE_THREAD | path)

    def processor_seconds(self) -> float:
        """Of all workers, so far."""
        ticks = 0
        for worker in self.workers:
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End all processes."""
        for process in [*self.workers, *self.processes]:
            process.kill()
            process.wait()


def write_manifest(raw: Path, scans: int, copies: int, path: Path) -> int:
    """Write a manifest of the first scans of another, each so many times; how many rows it has."""
    sources = [
        s for s in discover(raw, Settings.read(None).ingest.series_rules).sources if s.format == "file"
    ]
    chosen = sources[:scans]
    rows = [f"{s.scan_id}-{copy},{s.files[0]}" for copy in range(copies) for s in chosen]
    path.write_text("\n".join(["id,image", *rows]) + "\n", encoding="utf-8")
    return len(rows)


def times_of_commits(store: Path) -> list[float]:
    """When each scan of a store was finished, seconds since 1970, sorted."""
    return sorted(path.stat().st_mtime for path in store.glob("scans/*/*/COMMIT.json"))


def measure(manifest: Path, folder: Path, workers: int) -> dict[str, float]:
    """Prepare the scans on so many workers; the rate from when each has finished one scan."""
    cluster = Cluster(workers, folder)
    try:
        settings = Settings.read(None)
        for store in (folder / "warm", folder / "store"):
            before = cluster.processor_seconds()
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                prepare_store(manifest, store, settings, Options(scheduler=cluster.address))
        computed = cluster.processor_seconds() - before
    finally:
        cluster.end()
    times = times_of_commits(folder / "store")
    seconds, counted = times[-1] - times[workers - 1], len(times) - workers
    return {
        "workers": workers,
        "scans": len(times),
        "seconds": seconds,
        "scans_a_minute": 60 * counted / seconds,
        "processor_seconds_a_scan": computed / len(times),
        "cores_used": computed / len(times) * counted / seconds,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, default=EXAMPLES.parent / "hippocampus")
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--copies", type=int, default=4, help="how often each scan is prepared")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_process_defaults()
    scheduler.BATCH_SCANS = 1
    rows = []
    print("| workers | scans | seconds | scans a minute | processor seconds a scan | cores used | load |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers in options.workers:
        folder = Path(tempfile.mkdtemp(prefix="dask-workers-"))
        try:
            write_manifest(options.raw, options.scans, options.copies, folder / "manifest.csv")
            row = measure(folder / "manifest.csv", folder, workers)
        finally:
            shutil.rmtree(folder)
        rows.append(row)
        print(
            f"| {workers} | {row['scans']} | {row['seconds']:.1f} | {row['scans_a_minute']:.1f} | "
            f"{row['processor_seconds_a_scan']:.2f} | {row['cores_used']:.2f} | {row['load']:.1f} |",
            flush=True,
        )
    first = rows[0]
    for row in rows[1:]:
        faster = row["scans_a_minute"] / first["scans_a_minute"]
        dearer = row["processor_seconds_a_scan"] / first["processor_seconds_a_scan"]
        print(
            f"{row['workers']} workers: {faster:.2f} times the scans a minute of {first['workers']}, "
            f"{dearer:.2f} times the processor time a scan"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
