"""A guess of the modality (CT, MR or PET) from file name and intensities, if nothing declares it.

*Reads*: a name, and an image (z, y, x) in real units. *Writes*: "ct", "mr" or "pet", and the reason. CT is
recognised reliably if the image contains air. PET is distinguished from MR by large voxels and a few very
high values, which can be wrong. Therefore the guess is recorded and shown, and a manifest's `modality` column
overrides it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats import NAME_WORDS, Modality
from pipeline.ingest.intensity import strided_sample


def guess_modality(
    image: NDArray[Any], spacing_zyx_mm: tuple[float, float, float], *, name: str
) -> tuple[Modality, str]:
    """Return the most likely modality, and the reason as text.

    Args:
        image: (z, y, x) in real units.
        spacing_zyx_mm: Voxel size along each axis, in mm.
        name: The file's name, which may contain the modality.
    """
    sample = strided_sample(image).astype(np.float32)
    low, high = float(sample.min()), float(sample.max())
    air = float(((sample > -1100) & (sample < -900)).mean())
    if low > -5000 and air > 0.01 and float((sample > -200).mean()) > 0.01:
        return "ct", f"{air:.0%} of the voxels lie near -1000 as air does in CT"
    for word in re.split(r"[^a-z0-9]+", name.lower()):
        if word in NAME_WORDS:
            return NAME_WORDS[word], f"its name says {word}"
    if float((sample < -50).mean()) > 0.02 and low >= -1100 and high < 4100:
        return "ct", "values below 0 in the range of Hounsfield units"
    body = sample[sample > sample.mean()]
    tail = high / max(float(np.median(body)), 1e-6) if body.size else 0.0
    if min(spacing_zyx_mm[1:]) >= 2.5 and tail > 8 and low >= 0:
        return "pet", f"coarse voxels and a hottest voxel {tail:.0f} times the bright median"
    return "mr", "no air near -1000 as in CT, no few hot voxels on a coarse grid as in PET"
