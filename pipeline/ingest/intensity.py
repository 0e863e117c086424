"""From real units to int16 codes, and the numbers that undo it.

*Reads*: an image (z, y, x) in real units on the stored grid. *Writes*: int16 codes on the same grid, where
real value = code * scale + offset; and the clip bounds, mean and standard deviation in real units.

    CT        clipped to a fixed window in HU; one code is one HU, offset 0
    MR, PET   clipped to two percentiles of the stored volume; `num_codes` steps between them, code 0 = the
    lower

Mean and standard deviation are those of the whole stored volume after the clip (not of the foreground), as in
the published recipe; (value - mean) / std is what training sees.
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
        unit: "HU", "Bq/ml", or "arbitrary".
    """

    low: float
    high: float
    mean: float
    std: float
    unit: str

    def to_dict(self) -> dict[str, float | str]:
        """Plain values for a file."""
        return asdict(self)


def encode(
    image: NDArray[np.float32], *, window: tuple[float, float], step: float, offset: float, unit: str
) -> tuple[NDArray[np.int16], Intensity]:
    """Codes of the clipped image, and the statistics of what the codes stand for."""
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
    """Window, step and offset of CT: 1 HU a code."""
    return config.ct_window_hu, 1.0, 0.0


def percentile_window(
    image: NDArray[np.float32], config: IngestConfig
) -> tuple[tuple[float, float], float, float]:
    """Window, step and offset of MR and PET, from percentiles of the volume.

    Where almost everything is one value (a brain in a sea of zeros) the percentiles coincide; the whole range
    then serves.
    """
    low, high = (float(v) for v in np.percentile(image, config.percentiles))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return (low, high), (high - low) / config.num_codes, low


def looks_like_hounsfield(image: NDArray[Any], config: IngestConfig) -> bool:
    """Whether a scan said to be CT can be in HU.

    True CT has values below 0 (fat, air). One without them may be masked or rescaled to a byte and still fit
    the window; one that also has many values above the window is an unsigned image with another offset.
    """
    sample = strided_sample(image)
    return bool(sample.min() < 0 or np.percentile(sample, 98) <= config.ct_window_hu[1])


def strided_sample(image: NDArray[Any], max_voxels: int = 1_000_000) -> NDArray[Any]:
    """A regular sub-lattice of about `max_voxels` voxels, the same every time."""
    step = max(1, int(np.ceil((image.size / max_voxels) ** (1 / 3))))
    steps = tuple(slice(None, None, min(step, max(1, n // 8))) for n in image.shape)
    return image[steps]
