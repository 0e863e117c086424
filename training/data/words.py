"""Words: bit k of a voxel's word says whether it lies in mask k. K masks cost one small integer a voxel.

On the CPU they are uint16, in tensors int16 (15 masks at most are drawn, so no word is negative): PyTorch has
few operations on uint16. They become masks on the training device only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_words(words: Tensor, num_masks: int) -> Tensor:
    """Return the masks of words, bool (B, K, Z, Y, X); the last one is all ones.

    Args:
        words: (B, Z, Y, X), an integer type; bit k is mask k, for k < K - 1.
        num_masks: K, the all-ones mask counted.
    """
    masks = torch.empty((words.shape[0], num_masks, *words.shape[1:]), dtype=torch.bool, device=words.device)
    for bit in range(num_masks - 1):
        torch.ne(words & (1 << bit), 0, out=masks[:, bit])
    masks[:, -1] = True
    return masks
