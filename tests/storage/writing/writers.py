"""Processes that write a store of four scans, to be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.torture_children import run_child
from tests.storage.writer import main

IDS = ("b", "a", "d", "c")


def writer(store: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a writer; it prints `ready`, and what it has committed."""
    command = [sys.executable, "-m", "tests.storage.writer", str(store), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])


def run_writer(store: Path, *arguments: str) -> int:
    """Run a writer to its end in a fork of this process, which has imported all; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        ended = run_child(lambda: main([str(store), *arguments]), Path(folder) / "log")
    return -signal.SIGKILL if ended.code is None else ended.code
