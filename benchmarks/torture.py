"""Disturb everything that writes, at random moments and in every way we know, and compare with calm runs.

    python -m benchmarks.torture     a short one, some minutes; the long one:
    python -m benchmarks.torture --kills 200 --faults 50 --full 10 --at-rest 3 --inputs 500 --work DIR

It prints one table, and writes it as JSON (`DIR/torture.json`). Killed or stopped itself, the same command
goes on from there: every life is a line of `DIR/lives.jsonl`. The exit code is 1 if anything was lost, wrong,
half-written or left running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.torture_children import become_reaper
from benchmarks.torture_company import clock_life, company_life
from benchmarks.torture_kills import KILLS_A_LIFE, Life, count_calls, fault_life, full_life, kill_life
from benchmarks.torture_rest import FAULTS, RUN_FILES, Damaged, kinds_of, run_rest_life, store_rest_life
from benchmarks.torture_subjects import Subject, import_all, one_thread, subjects
from commands.prepare.prefect_server import prefect_server

SHARES = {"prepare": 5, "commit": 6, "import": 4, "pretrain": 2.5, "finetune": 2.5}
"""How the kills are shared out."""

FAULT_SHARES = {"prepare": 3, "commit": 4, "import": 4, "pretrain": 1, "finetune": 1}
"""How the faults are shared out."""

INPUTS_AT_ONCE = 100
"""Mutated files that are read in one process."""


class Record:
    """The lives so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        self.lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def of(self, series: str, subject: str) -> list[dict[str, Any]]:
        """Return the lives of a series."""
        return [line for line in self.lines if (line["series"], line["subject"]) == (series, subject)]

    def disturbances(self, series: str, subject: str) -> int:
        """Return how often a subject was disturbed."""
        return sum(life["disturbances"] for life in self.of(series, subject))

    def add(self, life: Life) -> None:
        """Add one, and say so."""
        line = life.to_json()
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        words = "; ".join(life.wrong) if life.wrong else "as undisturbed"
        print(f"{life.series}, {life.subject} {life.number}: {words}", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Torture:
    """One torture: its subjects, its folder, what was done so far."""

    made: dict[str, Subject]
    work: Path
    record: Record
    seed: int

    def undisturbed(self, name: str) -> Path:
        """Return the folder of a subject's undisturbed run."""
        return self.work / "inputs" / "undisturbed" / name

    def life(self, series: str, name: str) -> tuple[int, Path]:
        """Return number and empty folder of the next life."""
        number = len(self.record.of(series, name))
        return number, empty(self.work / "lives" / f"{series.replace(' ', '-')}-{name}-{number}")

    def kill(self, kills: int) -> None:
        """Kill each subject its share of times."""
        for name, wanted in shared(kills, SHARES).items():
            while (left := wanted - self.record.disturbances("kills", name)) > 0:
                number, folder = self.life("kills", name)
                self.record.add(
                    kill_life(
                        self.made[name],
                        self.undisturbed(name),
                        folder,
                        kills=min(KILLS_A_LIFE, left),
                        seed=self.seed,
                        number=number,
                    )
                )

    def fail(self, faults: int) -> None:
        """Fail calls of each subject its share of times."""
        for name, wanted in shared(faults, FAULT_SHARES).items():
            if len(self.record.of("faults", name)) >= wanted:
                continue
            calls = count_calls(self.made[name], empty(self.work / "lives" / f"count-{name}"))
            while self.record.disturbances("faults", name) < wanted:
                number, folder = self.life("faults", name)
                self.record.add(
                    fault_life(
                        self.made[name],
                        self.undisturbed(name),
                        folder,
                        calls=calls,
                        seed=self.seed,
                        number=number,
                    )
                )

    def fill(self, times: int) -> None:
        """Let the disk be full at random moments."""
        for name, wanted in shared(times, FAULT_SHARES).items():
            while len(self.record.of("full disk", name)) < wanted:
                number, folder = self.life("full disk", name)
                self.record.add(
                    full_life(self.made[name], self.undisturbed(name), folder, seed=self.seed, number=number)
                )

    def crowd(self, times: int) -> None:
        """Run writers of stores two and three times at once."""
        for name, wanted in shared(times, {"prepare": 1, "commit": 2, "import": 1}).items():
            while len(self.record.of("at once", name)) < wanted:
                number, folder = self.life("at once", name)
                self.record.add(company_life(self.made[name], self.undisturbed(name), folder, number=number))

    def set_clocks_back(self, times: int) -> None:
        """Set the clock back in the middle of a run."""
        for name, wanted in shared(times, dict.fromkeys(SHARES, 1.0)).items():
            while len(self.record.of("clock back", name)) < wanted:
                number, folder = self.life("clock back", name)
                self.record.add(
                    clock_life(self.made[name], self.undisturbed(name), folder, seed=self.seed, number=number)
                )

    def damage_at_rest(self, places: int) -> None:
        """Damage every kind of file of a store and of a run in every way, in so many places each."""
        store, run = self.undisturbed("prepare"), self.undisturbed("pretrain")
        for key, fault in self._damages("store", kinds_of(store / "store"), places):
            number, folder = self.life("at rest", "store")
            damaged = Damaged(key=key, fault=fault, number=number)
            raw = self.work / "inputs" / "raw"
            self.record.add(store_rest_life(self.made["prepare"], store, folder, damaged, raw))
        for key, fault in self._damages("run", kinds_of(run / "run", RUN_FILES), places):
            number, folder = self.life("at rest", "run")
            damaged = Damaged(key=key, fault=fault, number=number)
            self.record.add(run_rest_life(self.made["pretrain"], run, folder, damaged))

    def _damages(self, subject: str, keys: Sequence[str], places: int) -> list[tuple[str, str]]:
        """Return every file with every fault, so many times, without those that were done."""
        wanted = [(key, fault) for _ in range(places) for key in keys for fault in FAULTS]
        return wanted[len(self.record.of("at rest", subject)) :]

    def mutate(self, inputs: int) -> None:
        """Read files with random faults, some hundred in a process."""
        while (done := self.record.disturbances("inputs", "all formats")) < inputs:
            number = len(self.record.of("inputs", "all formats"))
            count = min(INPUTS_AT_ONCE, inputs - done)
            self.record.add(mutated_inputs(count, seed=self.seed + number, number=number))


def shared(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Share a number out; at least one each, if there are enough."""
    whole = sum(shares.values())
    found = {name: round(total * share / whole) for name, share in shares.items()}
    first = next(iter(found))
    found[first] += total - sum(found.values())
    return found


def mutated_inputs(count: int, *, seed: int, number: int) -> Life:
    """Read files with random faults in a process with limits on memory and time."""
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.mutated_files", "--count", f"{count}", "--seed", f"{seed}"],
        capture_output=True,
        text=True,
        check=False,
    )
    life = Life(series="inputs", subject="all formats", number=number, disturbances=count)
    life.seconds = time.monotonic() - began
    if run.returncode:
        life.wrong = (run.stdout + run.stderr).splitlines()[-20:]
    else:
        rows = [line.split()[-4:] for line in run.stdout.splitlines()]
        life.told = sum(int(row[0]) for row in rows if len(row) == 4 and all(map(str.isdigit, row)))
    return life


def empty(folder: Path) -> Path:
    """Return the folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def table_of(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table: a row for each series and subject, a sum for each series."""
    rows = []
    for series in dict.fromkeys(line["series"] for line in lines):
        of_series = [line for line in lines if line["series"] == series]
        names = list(dict.fromkeys(line["subject"] for line in of_series))
        rows += [
            _row(series, name, [line for line in of_series if line["subject"] == name]) for name in names
        ]
        if len(names) > 1:
            rows.append(_row(series, "all", of_series))
    return rows


def _row(series: str, name: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        series,
        name,
        *(f"{sum(line[key] for line in lines)}" for key in ("disturbances", "in_the_middle", "told")),
        f"{len(lines)}",
        f"{sum(bool(line['wrong']) for line in lines)}",
        f"{sum(line['seconds'] for line in lines):.0f}",
    ]


COLUMNS = ("series", "subject", "disturbances", "half-written", "told", "lives", "wrong", "seconds")


def print_table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the table as Markdown, and what was wrong."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- | --- |" + " ---: |" * (len(COLUMNS) - 2))
    for row in table_of(lines):
        print("| " + " | ".join(row) + " |")
    for line in lines:
        for words in line["wrong"]:
            print(f"WRONG: {line['series']}, {line['subject']} {line['number']}: {words}")


@contextmanager
def shared_server(work: Path) -> Iterator[None]:
    """One Prefect server for all children."""
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    with prefect_server(meanwhile=import_all, embedded=True) as settings:
        url, password = settings.values()
        os.environ |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}
        yield


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"kills": 20, "faults": 10, "full": 5, "at-once": 4, "clocks": 5, "at-rest": 1, "inputs": 100}
    defaults["seed"] = 0
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--work", type=Path, help="folder to work in, and to go on from (default: a new one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: torture.json in the work folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the torture."""
    arguments = parse(argv)
    one_thread()
    become_reaper()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="torture-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    record = Record(work / "lives.jsonl")
    with shared_server(work):
        torture = Torture(made=subjects(work / "inputs"), work=work, record=record, seed=arguments.seed)
        torture.kill(arguments.kills)
        torture.fail(arguments.faults)
        torture.fill(arguments.full)
        torture.crowd(arguments.at_once)
        torture.set_clocks_back(arguments.clocks)
        torture.damage_at_rest(arguments.at_rest)
    torture.mutate(arguments.inputs)
    print_table(record.lines)
    document = {"columns": COLUMNS, "rows": table_of(record.lines), "lives": record.lines}
    (arguments.json or work / "torture.json").write_text(json.dumps(document, indent=1) + "\n")
    return int(any(line["wrong"] for line in record.lines))


if __name__ == "__main__":
    sys.exit(main())
