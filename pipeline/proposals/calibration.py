"""Calibration: intensity windows and thresholds of the settings, converted to real intensities of a scan.

Reads:  codes, int16 (z, y, x), with their scale and offset.
Writes: `Calibration`: windows and thresholds in real units, and the body mask.
Bounds: one pass over the scan. For CT the settings are in HU; for other scans they are percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Backend, DeviceArray, slabs_of
from pipeline.hierarchies import Window
from pipeline.proposals.config import ProposalConfig
from pipeline.volumes import body_mask


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Intensity range of a scan, and for percentiles the histogram of its voxels."""

    hounsfield: bool
    """Whether the intensities are in HU, so that settings in HU apply."""
    low: float
    """Lower end of the stored range, in real units."""
    high: float
    """Upper end of the stored range, in real units."""
    values: NDArray[np.float64]
    """(V,) real values that occur above the floor (the lowest 3 % of the range), ascending."""
    cumulated: NDArray[np.int64]
    """(V,) number of voxels above the floor that are at or below each value."""

    @classmethod
    def of(
        cls,
        codes: DeviceArray,
        scale: float,
        offset: float,
        bounds: tuple[float, float],
        unit: str,
        backend: Backend,
    ) -> Calibration:
        """Return the calibration of a scan.

        Args:
            codes: int16 (z, y, x) on the backend; real value = code * scale + offset.
            scale: Real units per code.
            offset: Real value of code 0.
            bounds: Lower and upper end of the stored range, in real units.
            unit: "HU" for CT; any other unit for percentiles.
            backend: Backend that holds the codes.
        """
        low, high = bounds
        counts = np.zeros(1 << 16, np.int64)
        for start, stop in slabs_of(codes.shape, 1):
            shifted = codes[start:stop].ravel().astype(backend.xp.int32) + (1 << 15)
            counts += np.asarray(backend.to_host(backend.xp.bincount(shifted, minlength=1 << 16)))
        values = np.arange(-(1 << 15), 1 << 15, dtype=np.float64) * scale + offset
        occurs = (counts > 0) & (values > low + 0.03 * (high - low))
        order = np.argsort(values[occurs], kind="stable")
        return cls(
            hounsfield=unit == "HU",
            low=low,
            high=high,
            values=values[occurs][order],
            cumulated=np.cumsum(counts[occurs][order]),
        )

    def body(
        self,
        image: NDArray[np.int16],
        scale: float,
        offset: float,
        spacing_zyx_mm: tuple[float, float, float],
        config: ProposalConfig,
    ) -> NDArray[np.bool_]:
        """Return the body mask, bool (z, y, x).

        Args:
            image: int16 codes (z, y, x) on the host.
            scale: Real units per code.
            offset: Real value of code 0.
            spacing_zyx_mm: Voxel size in mm.
            config: Has the threshold of a CT in HU; it is converted to codes.
        """
        most = (self.low + 0.1 * (self.high - self.low) - offset) / scale
        threshold = (config.body_threshold_hu - offset) / scale if self.hounsfield else None
        return body_mask(image, spacing_zyx_mm, threshold=threshold, most=most)

    def percentile(self, percent: float) -> float:
        """Return the real value that `percent` % of the voxels above the floor do not exceed."""
        if not len(self.values):
            return self.low
        rank = np.searchsorted(self.cumulated, percent / 100 * self.cumulated[-1], side="left")
        return float(self.values[min(int(rank), len(self.values) - 1)])

    def windows(self, config: ProposalConfig) -> list[Window]:
        """Return the intensity windows in real units; 0 % and 100 % are the ends of the stored range."""
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
        """Yield the thresholds of the connected components, in real units."""
        if self.hounsfield:
            yield from config.component_thresholds_hu
        else:
            yield from (self.percentile(percent) for percent in config.component_percentiles)
