"""A Dask cluster of several processes, as an administrator starts one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parent.parent.parent


def wait_for(holds: Callable[[], object], *, what: str) -> None:
    deadline = time.monotonic() + PATIENT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.started = 0
        told = folder / "scheduler.json"
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told))
        wait_for(told.exists, what="the scheduler started")
        wait_for(lambda: told.read_text().strip().endswith("}"), what="it told its address")
        self.address = json.loads(told.read_text())["address"]

    def start(self, kind: str, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        self.started += 1
        log = (self.folder / f"{kind}{self.started}.log").open("wb")
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *more, "--no-dashboard"]
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        with log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=os.environ | path | environment
            )
        self.processes.append(process)
        return process

    def worker(self, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        place = ("--host", "127.0.0.1", "--local-directory", str(self.folder))
        return self.start("worker", self.address, "--no-nanny", *place, *more, **environment)

    def end_workers(self) -> None:
        """Kill all but the scheduler, and wait until it knows that they are gone."""
        for process in self.processes[1:]:
            process.kill()
            process.wait()
        del self.processes[1:]
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            wait_for(lambda: not client.scheduler_info()["workers"], what="the workers are gone")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
