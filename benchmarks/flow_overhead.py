"""How much time Prefect and Dask cost beside the work itself.

    python benchmarks/flow_overhead.py                 bundled scans, one process and two Dask workers

Prepares the scans once for real. Then hands the same scans out again, a task each: every task sees that its
scan is committed already and does nothing, so what is left is bookkeeping. Start-up (server, cluster) is paid
once a run and told apart. The share is that of a task in the work of a scan; small scans share tasks, and pay
less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

from commands.prepare import scheduler
from commands.prepare.command import prepare_store, run_flow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from commands.arguments import EXAMPLES
from commands.prepare.outcomes import RunReport
from commands.prepare.plan import Job, Plan
from commands.prepare.scan_task import Setup
from commands.prepare.settings import Settings, found_now, wanted_digests
from commands.prepare.work import Options, Work
from pipeline.discovery import Discovery, discover

TASKS = 50


def idle_work(raw: Path, store: Path, settings: Settings, options: Options) -> Work:
    """A run of many tasks that find nothing to do."""
    sources = discover(raw, settings.ingest.series_rules).sources
    small = min(sources, key=lambda source: sum(path.stat().st_size for path in source.files))
    job = Job(found=found_now(small), stage="ingest", why="benchmark")
    return Work(
        store_path=store,
        options=options,
        setup=Setup(settings=settings, wanted=wanted_digests(settings.values()), device="auto"),
        plan=Plan(jobs=(job,) * TASKS, done=(), failed=(), absent=()),
        raw=raw,
        discovery=Discovery(sources=(), failures=(), notes=()),
    )


def measure(raw: Path, store: Path, options: Options) -> tuple[float, float]:
    """Seconds of start-up and of one task without work."""
    settings = Settings.read(None)
    times = []
    whole = scheduler.submit

    def submit(*arguments: object) -> object:
        times.append(time.monotonic())
        return whole(*arguments)  # type: ignore[arg-type]

    scheduler.BATCH_SCANS, scheduler.submit = 1, submit
    began = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()):
        run_flow(idle_work(raw, store, settings, options))
    scheduler.submit = whole
    # The first tasks wait for the cluster and for imports in its workers: start-up.
    settled = 10
    return times[settled] - began, (times[-1] - times[settled]) / (len(times) - 1 - settled)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, default=EXAMPLES)
    raw = parser.parse_args().raw
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            report: RunReport = prepare_store(raw, store, Settings.read(None), Options())
        work = sum(outcome.seconds for outcome in report.committed) / len(report.committed)
        print(f"work: {work:.2f} s a scan over {len(report.committed)} scans")
        for name, options in (("in this process", Options()), ("2 Dask workers", Options(workers=2))):
            start, task = measure(raw, store, options)
            share = f"{task / work:.1%} of the work of a scan"
            print(f"{name}: {start:.1f} s start-up, {1000 * task:.0f} ms a task, {share}")


if __name__ == "__main__":
    main()
