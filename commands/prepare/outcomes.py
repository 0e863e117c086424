"""Outcomes of the scans of a run, for the terminal and for --json.

Reads: nothing. Writes: plain values for JSON, rows for a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from commands.prepare.plan import FileStates
from commands.progress import duration
from pipeline.errors import Failure

State = Literal["committed", "failed", "not done"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one scan."""

    scan_id: str
    location: str
    """Name in messages, without a patient's name."""
    state: State
    dataset: str = ""
    failure: Failure | None = None
    """Why it failed; None in the other states."""
    stop: str = ""
    """For a scan that is not done: why the run stopped before its end."""
    lasting: bool = False
    """For a failure: whether the same files and settings would fail again."""
    why: str = ""
    """Reason why the scan was prepared."""
    seconds: float = 0.0
    num_proposals: int = 0
    source_digest: str = ""
    choices_digest: str = ""
    files: FileStates = ()
    traceback: str = ""
    """Traceback of an unexpected failure."""
    notes: tuple[str, ...] = ()
    """For a committed scan: remarks on its files, on corrections, and on imported masks."""

    def __post_init__(self) -> None:
        if (self.state == "failed") != (self.failure is not None):
            raise ValueError(f"{self.scan_id}: a scan that failed, and no other, has a failure")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A whole run of `mass prepare`."""

    committed: tuple[Outcome, ...]
    skipped: tuple[str, ...]
    """Scans that were done before."""
    failed: tuple[Failure, ...]
    """Failures sorted by id: of this run, of the search, and of earlier runs if nothing has changed."""
    not_done: tuple[Outcome, ...]
    reasons: dict[str, int]
    """Number of scans for each reason why they were prepared."""
    notes: tuple[str, ...]
    absent: tuple[str, ...]
    """Scans that the store has and the search did not find."""
    seconds: float
    stopped: str = ""
    """Why the run stopped early; empty if it did not."""
    interrupted: bool = False
    """Whether the user interrupted it."""

    @property
    def exit_code(self) -> int:
        """0 if every scan is committed, 1 if one failed or was not done, 130 after an interrupt."""
        return 130 if self.interrupted else int(bool(self.failed or self.not_done or self.stopped))

    def summary(self) -> str:
        """Return a summary of the run in one line."""
        parts = [f"{len(self.committed)} committed", f"{len(self.skipped)} done before"]
        parts.append(f"{len(self.failed)} failed")
        if self.not_done:
            parts.append(f"{len(self.not_done)} not done")
        return f"{', '.join(parts)}, in {duration(self.seconds)}"

    def noted(self) -> list[tuple[str, str]]:
        """Return (scan, note) for every note of a scan of this run."""
        return [(outcome.scan_id, note) for outcome in self.committed for note in outcome.notes]

    def groups(self) -> list[tuple[str, int, int, float]]:
        """Return (data set, scans committed, proposals per scan, seconds per scan), sorted by data set."""
        members: dict[str, list[Outcome]] = {}
        for outcome in self.committed:
            members.setdefault(outcome.dataset, []).append(outcome)
        return [
            (
                name,
                len(group),
                round(sum(outcome.num_proposals for outcome in group) / len(group)),
                round(sum(outcome.seconds for outcome in group) / len(group), 1),
            )
            for name, group in sorted(members.items())
        ]

    def rows(self, most: int = 1000) -> list[dict[str, Any]]:
        """Return a row per scan: failures, scans not done, then at most `most` that are committed."""
        failed: list[dict[str, Any]] = [{**row, "state": "failed"} for row in failure_values(self.failed)]
        left: list[dict[str, Any]] = [
            {"scan": o.scan_id, "state": "not done", "reason": o.stop} for o in self.not_done
        ]
        done: list[dict[str, Any]] = [
            {
                "scan": o.scan_id,
                "state": o.state,
                "proposals": o.num_proposals,
                "seconds": round(o.seconds, 1),
            }
            for o in self.committed[:most]
        ]
        columns = ("scan", "state", "proposals", "seconds", "reason", "remedy", "file", "kind")
        return [{name: row.get(name, "") for name in columns} for row in (*failed, *left, *done)]

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain values, for --json."""
        return {
            "committed": [
                {
                    "scan": outcome.scan_id,
                    "file": outcome.location,
                    "why": outcome.why,
                    "seconds": round(outcome.seconds, 3),
                    "num_proposals": outcome.num_proposals,
                    **({"notes": list(outcome.notes)} if outcome.notes else {}),
                }
                for outcome in self.committed
            ],
            "skipped": list(self.skipped),
            "failed": failure_values(self.failed),
            "not_done": [{"scan": o.scan_id, "file": o.location, "reason": o.stop} for o in self.not_done],
            "reasons": self.reasons,
            "notes": list(self.notes),
            "absent": list(self.absent),
            "seconds": round(self.seconds, 3),
            "stopped": self.stopped,
            "exit_code": self.exit_code,
        }


def counted_scans(number: int) -> str:
    """Return a number of scans as text."""
    return "1 scan" if number == 1 else f"{number:,} scans"


def failure_values(failures: Iterable[Failure]) -> list[dict[str, str]]:
    """Return failures as plain values."""
    return [
        {"scan": f.scan_id, "file": f.location, "kind": f.kind, "reason": f.reason, "remedy": f.remedy}
        for f in failures
    ]
