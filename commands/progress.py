"""How far a long work is, how fast it goes, and how long it will take: numbers in, one line of text out.

Reads: counts, weights and seconds. Writes: text. Time left is told by weight (about voxels), for scans differ
a thousandfold; it is not told before a little is done, nor while nothing has moved for a minute, and is wrong
where weights say little about time.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_SECONDS = 3.0
"""Time left is not told before."""

_STILL_SECONDS = 60.0
"""Without the end of a scan for so long, time left is not told, but what is in hand."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A state of a work of several scans."""

    done: int
    total: int
    failed: int
    weight_done: float
    weight_total: float
    seconds: float
    """Since the work began."""
    still_seconds: float = 0.0
    """Since the last scan ended, or since the work began."""
    in_hand: str = ""
    """What is being worked on, in words."""

    @classmethod
    def of_equals(cls, done: int, total: int, seconds: float) -> Progress:
        """A state of a work of scans that count alike."""
        return cls(done=done, total=total, failed=0, weight_done=done, weight_total=total, seconds=seconds)

    @property
    def fraction(self) -> float:
        """Share of the work that is done, by weight."""
        return self.weight_done / self.weight_total if self.weight_total > 0 else 1.0

    @property
    def scans_a_minute(self) -> float:
        """Mean rate so far."""
        return 60 * self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end, None where it is too early to tell, or nothing has moved for long."""
        if self.weight_done <= 0 or self.seconds < _LEAST_SECONDS or self.still_seconds >= _STILL_SECONDS:
            return None
        return self.seconds * (self.weight_total - self.weight_done) / self.weight_done

    def line(self) -> str:
        """The state in one line: "37/261 scans, 2 failed, 12.3 a minute, 9 min left"."""
        parts = [f"{self.done}/{self.total} scans"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.done:
            parts.append(f"{self.scans_a_minute:.1f} a minute")
        if self.seconds_left is not None and self.done < self.total:
            parts.append(f"{duration(self.seconds_left)} left")
        if self.still_seconds >= _STILL_SECONDS and self.done < self.total:
            parts.append(f"no scan has ended for {self.still_seconds // 60:.0f} min")
            parts += [self.in_hand] if self.in_hand else []
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A span of time as people say it: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
