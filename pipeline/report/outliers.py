"""Scans unlike the others of their data set, with the reasons: what a person should look at first.

A value is unusual if it is farther from the median of the data set's scans of one modality than five robust
standard deviations (1.4826 times the median absolute deviation), and than a difference that matters to a
reader: a factor, or an amount. The second bound counts where scans are all alike, and the deviation is 0.
Sets with fewer than five scans have no such statistics; a few bounds hold for every scan.

Reads: `ScanRow`s. Writes: `Unusual`s, worst first, the same for the same rows. Bounds: one pass per value
and data set; values that are not known are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.report.rows import ScanRow

FEWEST_SCANS = 5
"""Scans of data sets with fewer scans are not compared with each other."""
DEVIATIONS = 5.0
"""Robust standard deviations; a normal distribution has one value in 1.7 million beyond."""
ROBUST = 1.4826
"""Standard deviations in a median absolute deviation of a normal distribution."""

FEWEST_PROPOSALS = 100
LEAST_COVERED = 0.5
MOST_OUTSIDE = 0.3
FEWEST_VOXELS = 8


@dataclass(frozen=True, kw_only=True)
class Unusual:
    """A scan unlike the others of its data set."""

    scan_id: str
    reasons: tuple[str, ...]
    severity: float
    """How far it is beyond the bound that it exceeds most; 1 is at the bound."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A value that is compared within a data set."""

    name: str
    value: Callable[[ScanRow], float | None]
    text: Callable[[float], str]
    factor: float = 0.0
    """For values that are compared as ratios: the least factor that matters. 0 for differences."""
    amount: float = 0.0
    """For differences: the least one that matters."""
    low_only: bool = False
    """Whether only low values are unusual."""

    def scaled(self, row: ScanRow) -> float | None:
        """Return the value on the scale on which it is compared."""
        value = self.value(row)
        if value is None or (self.factor and value <= 0):
            return None
        return float(np.log(value)) if self.factor else value


def _mm(value: float) -> str:
    return f"{value:.3g} mm"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _edge(axis: int) -> Callable[[ScanRow], float | None]:
    return lambda row: row.source_spacing_mm[axis] if row.source_spacing_mm else None


MEASURES = (
    Measure(name="smallest voxel edge of the file", value=_edge(0), text=_mm, factor=1.5),
    Measure(name="largest voxel edge of the file", value=_edge(2), text=_mm, factor=1.5),
    Measure(name="height", value=lambda row: row.extent_zyx_mm[0], text=_mm, factor=1.5),
    Measure(name="depth", value=lambda row: row.extent_zyx_mm[1], text=_mm, factor=1.5),
    Measure(name="width", value=lambda row: row.extent_zyx_mm[2], text=_mm, factor=1.5),
    Measure(name="spread of intensities", value=lambda row: row.std, text=_number, factor=1.5),
    Measure(name="number of proposals", value=lambda row: row.num_proposals, text=_count, factor=1.5),
    Measure(name="number of atoms", value=lambda row: row.num_atoms, text=_count, factor=3.0),
    Measure(name="part of the body covered", value=lambda row: row.covered, text=_share, amount=0.1),
    Measure(name="proposals outside the body", value=lambda row: row.outside, text=_share, amount=0.1),
    Measure(name="mean best IoU", value=lambda row: row.mean_iou, text=_number, amount=0.15, low_only=True),
)
"""Values that are compared within a data set, beside the mean intensity."""


def find_unusual(rows: Sequence[ScanRow]) -> list[Unusual]:
    """Return the scans that are unlike the others of their data set and modality, the most unusual first."""
    reasons: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        reasons[row.scan_id] = _whatever_the_others(row)
    ordered = sorted(rows, key=_group)
    for _, members in groupby(ordered, key=_group):
        group = list(members)
        if len(group) < FEWEST_SCANS:
            continue
        for measure in (*MEASURES, _mean_intensity(group)):
            for scan_id, severity, reason in _beyond(group, measure):
                reasons[scan_id].append((severity, reason))
    found = [
        Unusual(
            scan_id=scan_id,
            reasons=tuple(reason for _, reason in sorted(listed, reverse=True)),
            severity=max(severity for severity, _ in listed),
        )
        for scan_id, listed in reasons.items()
        if listed
    ]
    return sorted(found, key=lambda one: (-one.severity, one.scan_id))


def small_groups(rows: Sequence[ScanRow]) -> list[str]:
    """Return the data sets, with their modality, that have too few scans to be compared within."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[_group(row)] = counts.get(_group(row), 0) + 1
    return [
        f"{name} ({modality.upper()})" for (name, modality), n in sorted(counts.items()) if n < FEWEST_SCANS
    ]


def _group(row: ScanRow) -> tuple[str, str]:
    return row.dataset, row.modality


def _whatever_the_others(row: ScanRow) -> list[tuple[float, str]]:
    """Return the bounds that a scan exceeds, whatever its data set: severity and reason."""
    found = []
    if row.num_proposals < FEWEST_PROPOSALS:
        found.append((FEWEST_PROPOSALS / max(row.num_proposals, 1), f"only {row.num_proposals} proposals"))
    if row.covered is not None and row.covered < LEAST_COVERED:
        found.append((LEAST_COVERED / max(row.covered, 0.01), f"only {row.covered:.0%} of the body covered"))
    if row.outside is not None and row.outside > MOST_OUTSIDE:
        found.append((row.outside / MOST_OUTSIDE, f"{row.outside:.0%} of the proposals outside the body"))
    if min(row.shape_zyx) < FEWEST_VOXELS:
        found.append((FEWEST_VOXELS / min(row.shape_zyx), f"only {min(row.shape_zyx)} voxels along an axis"))
    if row.std is not None and row.std == 0:
        found.append((10.0, "every voxel has the same intensity"))
    return found


def _mean_intensity(group: Sequence[ScanRow]) -> Measure:
    """Return the measure of the mean intensity: half the usual spread within a scan matters."""
    spreads = [row.std for row in group if row.std is not None]
    amount = 0.5 * float(np.median(spreads)) if spreads else 0.0
    return Measure(name="mean intensity", value=lambda row: row.mean, text=_number, amount=amount)


def _beyond(group: Sequence[ScanRow], measure: Measure) -> list[tuple[str, float, str]]:
    """Return the scans whose value is beyond the bound: id, severity and reason."""
    known = [(row, scaled) for row in group if (scaled := measure.scaled(row)) is not None]
    if len(known) < FEWEST_SCANS:
        return []
    values = np.array([scaled for _, scaled in known])
    median = float(np.median(values))
    deviation = ROBUST * float(np.median(np.abs(values - median)))
    matters = float(np.log(measure.factor)) if measure.factor else measure.amount
    bound = max(DEVIATIONS * deviation, matters)
    if bound <= 0:
        return []
    typical = measure.text(float(np.exp(median)) if measure.factor else median)
    found = []
    for (row, _), value in zip(known, values, strict=True):
        away = (median - value) if measure.low_only else abs(value - median)
        if away > bound:
            shown = measure.text(float(np.exp(value)) if measure.factor else float(value))
            found.append((row.scan_id, float(away / bound), f"{measure.name}: {shown}, usually {typical}"))
    return found
