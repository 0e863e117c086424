"""From real units to int16 codes, and the numbers that convert back.

*Reads*: an image (z, y, x) in real units on the stored grid. *Writes*: int16 codes on the same grid, where
real value = code * scale + offset; and the clip bounds, mean and standard deviation in real units.

    CT        clipped to a fixed window in HU; one code is 1 HU, offset 0
    MR, PET   clipped to two percentiles of the stored volume; `num_codes` steps between them; code 0 is the
              lower percentile

Mean and standard deviation are those of the whole stored volume after the clip (not of the foreground), as in
the published recipe; training uses (value - mean) / std.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.config import IngestConfig


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Clip bounds and z-score statistics in real units.

    Attributes:
        low: Lower clip bound.
        high: Upper clip bound.
        mean: Mean of the stored volume after the clip.
        std: Standard deviation of the stored volume after the clip; above 0.
        unit: "HU", "SUV", "Bq/ml", or "arbitrary".
    """

    low: float
    high: float
    mean: float
    std: float
    unit: str

    def to_dict(self) -> dict[str, float | str]:
        """Return the fields as plain values, to be written to a file."""
        return asdict(self)


def encode(
    image: NDArray[np.float32], *, window: tuple[float, float], step: float, offset: float, unit: str
) -> tuple[NDArray[np.int16], Intensity]:
    """Return the codes of the clipped image, and the statistics of the values that the codes stand for.

    Args:
        image: float32 (z, y, x) in real units.
        window: Lower and upper clip bound, in real units.
        step: Real units per code.
        offset: Real value of code 0.
        unit: Name of the unit.

    Returns:
        int16 (z, y, x), rint((clipped - offset) / step); and the statistics.
    """
    low, high = window
    codes, counts = np.empty(image.shape, np.int16), np.zeros(65536, np.int64)
    for z, plane in enumerate(image):  # a plane at a time: no second float volume
        codes[z] = np.rint((np.clip(plane, low, high) - offset) / step)
        counts += np.bincount(codes[z].ravel().astype(np.int32) + 32768, minlength=65536)
    present = np.flatnonzero(counts)
    values = (present - 32768) * step + offset
    mean = float(np.dot(counts[present], values) / codes.size)
    std = float(np.sqrt(np.dot(counts[present], (values - mean) ** 2) / codes.size))
    return codes, Intensity(low=low, high=high, mean=mean, std=std, unit=unit)


def ct_window(config: IngestConfig) -> tuple[tuple[float, float], float, float]:
    """Return window in HU, step and offset for CT: 1 HU per code."""
    return config.ct_window_hu, 1.0, 0.0


def percentile_window(
    image: NDArray[np.float32], config: IngestConfig
) -> tuple[tuple[float, float], float, float]:
    """Return window, step and offset for MR and PET, from percentiles of the volume.

    If nearly all voxels have one value (a brain with zeros around it), the percentiles are equal; then the
    whole range is used.

    Args:
        image: float32 (z, y, x) in real units.
        config: Percentiles and number of codes.
    """
    low, high = (float(v) for v in np.percentile(image, config.percentiles))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return (low, high), (high - low) / config.num_codes, low


def looks_like_hounsfield(image: NDArray[Any], config: IngestConfig) -> bool:
    """Whether a scan that is declared as CT can be in HU.

    Real CT has values below 0 (fat, air). A scan without them can be masked or rescaled to 8 bits; it passes
    if nearly all values are below the window's upper end. A scan without negative values and with many values
    above the window is an unsigned image with another offset.

    Args:
        image: (z, y, x) in declared HU.
        config: Has the window of CT.
    """
    sample = strided_sample(image)
    return bool(sample.min() < 0 or np.percentile(sample, 98) <= config.ct_window_hu[1])


def strided_sample(image: NDArray[Any], max_voxels: int = 1_000_000) -> NDArray[Any]:
    """Return a regular subset of about `max_voxels` voxels, (z, y, x); the same every time."""
    step = max(1, int(np.ceil((image.size / max_voxels) ** (1 / 3))))
    steps = tuple(slice(None, None, min(step, max(1, n // 8))) for n in image.shape)
    return image[steps]
