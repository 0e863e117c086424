"""How right an answer may be, from its own probabilities: the Dice that they expect.

*Takes* probabilities (z, y, x), 0..1. Where masks were registered, the images tell more
(`training.inference.refinement.confidence`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_dice(probability: NDArray[np.float32], drawn: NDArray[np.bool_]) -> float:
    """Return the Dice that probabilities expect of what is drawn of them; 0 if nothing is.

    Args:
        probability: Probability of the structure, (z, y, x).
        drawn: Its voxels.
    """
    if not drawn.any():
        return 0.0
    return 2 * float(probability[drawn].sum()) / float(drawn.sum() + probability.sum())


def network_confidence(probability: NDArray[np.float32], threshold: float) -> float:
    """Return an estimate of the Dice of what a fine-tuned network draws, 0..1; 0 if it draws nothing.

    It is the square of the expected Dice, because networks are too sure of what they draw; docs/results.md
    gives its error.

    Args:
        probability: Probability of the structure, (z, y, x).
        threshold: Probability from which a voxel is drawn.
    """
    return expected_dice(probability, probability >= threshold) ** 2
