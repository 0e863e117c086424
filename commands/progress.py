"""Progress of a run: fraction done, rate, time left. Numbers in, one line of text out.

Reads: counts, weights and seconds. Writes: text. The time left is estimated by weight (about voxels), since
scans differ by a factor of a thousand. It is not shown at the beginning, nor while a scan takes much longer
than those before: then the line names the scan in progress and its time. The estimate is wrong if the time
does not depend on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Step: TypeAlias = Literal["windows", "references"]
"""Steps for a target: windows that the network predicts, or references that are registered."""

Unit: TypeAlias = Literal["scan", "pair"]
"""What is counted; a pair is of two scans."""

_LEAST_SECONDS = 3.0
"""The time left is not shown before."""

_STILL_SECONDS = 60.0
"""If no scan has ended for this long, the time left may be wrong."""

_STILL_SCANS = 3.0
"""The time left is not shown if this was also this many times the mean time of a scan."""

_STILL_STEP_SECONDS = 5.0
"""The time of a window or reference that takes longer is shown."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of work on several scans."""

    done: int
    total: int
    failed: int
    """Number of failed scans among those done."""
    weight_done: float
    weight_total: float
    seconds: float
    """Since the work began."""
    still_seconds: float = 0.0
    """Seconds since the last scan ended, or since the work began."""
    in_hand: str = ""
    """The scan in progress; of several the one that was begun first."""
    in_hand_seconds: float = 0.0
    """Seconds since it was begun."""
    unit: Unit = "scan"
    """What is counted."""

    @classmethod
    def of_equals(
        cls,
        done: int,
        total: int,
        seconds: float,
        *,
        failed: int = 0,
        in_hand: str = "",
        unit: Unit = "scan",
    ) -> Progress:
        """Return the progress, just after a scan ended or was begun, of scans (or pairs) of equal weight."""
        return cls(
            done=done,
            total=total,
            failed=failed,
            weight_done=done,
            weight_total=total,
            seconds=seconds,
            in_hand=in_hand,
            unit=unit,
        )

    def later(self, seconds: float) -> Progress:
        """Return the progress some seconds later, if no scan has ended since."""
        return replace(
            self,
            seconds=self.seconds + seconds,
            still_seconds=self.still_seconds + seconds,
            in_hand_seconds=self.in_hand_seconds + seconds,
        )

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done, by weight."""
        return self.weight_done / self.weight_total if self.weight_total > 0 else 1.0

    @property
    def is_still(self) -> bool:
        """Whether a scan takes much longer than those before, so that the time left is unknown."""
        usual = (self.seconds - self.still_seconds) / self.done if self.done else 0.0
        return self.still_seconds >= max(_STILL_SECONDS, _STILL_SCANS * usual)

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end; None at the beginning, and while a scan takes unusually long."""
        if self.weight_done <= 0 or self.seconds < _LEAST_SECONDS or self.is_still:
            return None
        return self.seconds * (self.weight_total - self.weight_done) / self.weight_done

    def line(self) -> str:
        """Return one line: "37/261 scans, 2 failed, 12.3 a minute, 9 min left, in hand: ann (5 s)"."""
        parts = [f"{self.done}/{self.total} {self.unit}s"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.done and self.seconds > 0:
            parts.append(rate(self.done, self.seconds))
        if self.done < self.total:
            if self.seconds_left is not None:
                parts.append(f"{duration(self.seconds_left)} left")
            elif self.is_still:
                parts.append(f"no {self.unit} has ended for {duration(self.still_seconds)}")
            if self.in_hand:
                parts.append(f"in hand: {self.in_hand} ({duration(self.in_hand_seconds)})")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class TargetProgress:
    """Progress of the targets, as `shown` takes it."""

    target: int
    """Number of the target, from 1."""
    num_targets: int
    name: str
    done: int
    """Windows of this target that are predicted, or references that are registered to it."""
    total: int
    """Number of all windows or references; 0 while the target is read."""
    seconds: float
    """Since the work began."""
    step: Step = "windows"
    """What is counted."""
    steps: tuple[Step, ...] = ("windows",)
    """Steps of a target, in order."""
    step_seconds: float = 0.0
    """Seconds since this step began."""
    failed: int = 0
    """Targets that failed so far."""
    still_seconds: float = 0.0
    """Seconds since the last window or reference ended, or since the target was begun."""

    def later(self, seconds: float) -> TargetProgress:
        """Return the progress some seconds later, if nothing has ended since."""
        return replace(self, seconds=self.seconds + seconds, still_seconds=self.still_seconds + seconds)

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done; targets, and steps of a target, have equal weights."""
        done = self.done / self.total if self.total else 0.0
        part = (self.steps.index(self.step) + done) / len(self.steps)
        return (self.target - 1 + part) / self.num_targets

    def line(self) -> str:
        """Return one line: "target 2/3 case_7: window 14/96, 40 s left of this target"."""
        parts = [f"target {self.target}/{self.num_targets} {self.name}: "]
        parts[0] += self._in_hand()
        if self.step_seconds >= _LEAST_SECONDS and 0 < self.done < self.total:
            left = self.step_seconds * (self.total - self.done) / self.done
            alone = self.num_targets == 1 and self.step == self.steps[-1]
            what = "" if alone else f" of these {self.step}" if len(self.steps) > 1 else " of this target"
            parts.append(f"{duration(left)} left{what}")
        if self.still_seconds >= _STILL_STEP_SECONDS:
            parts.append(f"at it for {duration(self.still_seconds)}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    def _in_hand(self) -> str:
        """Return the window or reference in progress."""
        if not self.total:
            return "reading"
        if self.step == "windows":
            return f"window {self.done}/{self.total}"
        if self.done < self.total:
            return f"registering reference {self.done + 1}/{self.total}"
        return "drawing and writing"


def rate(done: int, seconds: float) -> str:
    """Return a mean rate as text: "12.3 a minute", "40 an hour"."""
    a_minute = 60 * done / seconds
    return f"{a_minute:.1f} a minute" if a_minute >= 1 else f"{60 * a_minute:.0f} an hour"


def duration(seconds: float) -> str:
    """Return a span of time as text: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
