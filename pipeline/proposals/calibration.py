"""What turns the settings of the proposals into real intensities of a scan.

Reads:  codes, int16 (z, y, x), and how they stand for real values.
Writes: `Calibration`: windows and thresholds in real units, and where the body is.
Bounds: one pass over the scan; settings in HU are taken as they are, all else are percentiles of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, slabs_of
from pipeline.hierarchies import Window
from pipeline.proposals.config import ProposalConfig
from pipeline.volumes import body_mask


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns settings into real intensities: the range, and for other scans than CT the histogram."""

    hounsfield: bool
    low: float
    high: float
    values: NDArray[np.float64]
    """Real values of the codes that occur above the floor, ascending."""
    cumulated: NDArray[np.int64]
    """How many voxels are at or below each."""

    @classmethod
    def of(
        cls,
        codes: Any,
        scale: float,
        offset: float,
        bounds: tuple[float, float],
        unit: str,
        backend: Backend,
    ) -> Calibration:
        """The calibration of a scan, `bounds` being the ends of its stored range."""
        low, high = bounds
        counts = np.zeros(1 << 16, np.int64)
        for start, stop in slabs_of(codes.shape, 1):
            shifted = codes[start:stop].ravel().astype(backend.xp.int32) + (1 << 15)
            counts += np.asarray(backend.to_host(backend.xp.bincount(shifted, minlength=1 << 16)))
        values = np.arange(-(1 << 15), 1 << 15, dtype=np.float64) * scale + offset
        there = (counts > 0) & (values > low + 0.03 * (high - low))
        order = np.argsort(values[there], kind="stable")
        return cls(
            hounsfield=unit == "HU",
            low=low,
            high=high,
            values=values[there][order],
            cumulated=np.cumsum(counts[there][order]),
        )

    def body(
        self,
        image: NDArray[np.int16],
        scale: float,
        offset: float,
        spacing_zyx_mm: tuple[float, float, float],
        config: ProposalConfig,
    ) -> NDArray[np.bool_]:
        """Where the body is; thresholds are compared as codes."""
        most = (self.low + 0.1 * (self.high - self.low) - offset) / scale
        threshold = (config.body_threshold_hu - offset) / scale if self.hounsfield else None
        return body_mask(image, spacing_zyx_mm, threshold=threshold, most=most)

    def percentile(self, percent: float) -> float:
        """Real value that so many percent of the voxels above the floor do not exceed."""
        if not len(self.values):
            return self.low
        rank = np.searchsorted(self.cumulated, percent / 100 * self.cumulated[-1], side="left")
        return float(self.values[min(int(rank), len(self.values) - 1)])

    def windows(self, config: ProposalConfig) -> list[Window]:
        """Intensity windows in real units; the whole range for (0, 100)."""
        if self.hounsfield:
            return list(config.ct_windows_hu)
        windows = []
        for low, high in config.percentile_windows:
            ends = (
                self.percentile(low) if low > 0 else self.low,
                self.percentile(high) if high < 100 else self.high,
            )
            if ends[0] < ends[1]:
                windows.append(ends)
        return windows or [(self.low, self.high)]

    def thresholds(self, config: ProposalConfig) -> Iterator[float]:
        """Thresholds of the components, in real units."""
        if self.hounsfield:
            yield from config.component_thresholds_hu
        else:
            yield from (self.percentile(percent) for percent in config.component_percentiles)
