"""The phantom's proposals, for the tests of propose(): made once, on small grids."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute.backend import Backend
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.proposal_set import ProposalSet, propose
from pipeline.quality.intervals import proposal_mask
from tests.phantom import Phantom, phantom
from tests.pipeline.drawn_regions import CPU

COARSE = ((24, 26, 26), (4.5, 2.6, 2.9))
"""Shape and spacing of a grid of 16,000 voxels."""

FINE = ((36, 40, 40), (3.0, 1.7, 1.9))
"""The same patient in 58,000 voxels."""

CONFIG = ProposalConfig(max_proposals=600)


@cache
def patient(
    grid: tuple[tuple[int, int, int], tuple[float, float, float]] = FINE, modality: str = "ct"
) -> Phantom:
    return phantom(shape_zyx=grid[0], spacing_zyx_mm=grid[1], modality=modality)


def proposals_of(
    image: NDArray[Any],
    spacing_zyx_mm: tuple[float, float, float],
    *,
    modality: str = "ct",
    config: ProposalConfig = CONFIG,
    backend: Backend = CPU,
) -> ProposalSet:
    """Of an image in real units; CT is clipped as ingest does."""
    low, high = (-991.0, 500.0) if modality == "ct" else (float(image.min()), float(image.max()) + 1)
    return propose(
        np.clip(image, low, high).astype(np.int16),
        scale=1.0,
        offset=0.0,
        intensity_range=(low, high),
        spacing_zyx_mm=spacing_zyx_mm,
        unit="HU" if modality == "ct" else "",
        config=config,
        backend=backend,
    )


def patient_proposals(*, grid: tuple[Any, Any] = FINE, modality: str = "ct", **options: Any) -> ProposalSet:
    return proposals_of(patient(grid, modality).image, grid[1], modality=modality, **options)


def masks_of(proposals: ProposalSet) -> NDArray[np.bool_]:
    """(N, z, y, x)."""
    return np.stack([proposal_mask(proposals, index) for index in range(len(proposals.table))])


def best_iou(masks: NDArray[np.bool_], structure: NDArray[np.bool_]) -> float:
    overlap = (masks & structure).sum(axis=(1, 2, 3))
    return float((overlap / (masks | structure).sum(axis=(1, 2, 3))).max())


def bytes_of(proposals: ProposalSet) -> tuple[bytes, ...]:
    """Everything that is stored, with its types."""
    arrays = (*proposals.atoms, *proposals.orders, proposals.table, proposals.scores)
    header = repr([(array.dtype.str, array.shape) for array in arrays] + [proposals.sources])
    return (header.encode(), *(array.tobytes() for array in arrays))
