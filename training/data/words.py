"""Words: bit k of a voxel's word says whether the voxel is in mask k; one integer per voxel for K masks.

Words are uint16 in NumPy and int16 in tensors, because PyTorch has few operations on uint16; at most 15 masks
are drawn, so no word is negative. They are unpacked into masks on the training device only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_words(words: Tensor, num_masks: int) -> Tensor:
    """Return the masks of words, bool (B, K, Z, Y, X); the last one is all ones.

    Args:
        words: (B, Z, Y, X), an integer type; bit k is mask k, for k < K - 1.
        num_masks: K, including the mask of all ones.
    """
    masks = torch.empty((words.shape[0], num_masks, *words.shape[1:]), dtype=torch.bool, device=words.device)
    for bit in range(num_masks - 1):
        torch.ne(words & (1 << bit), 0, out=masks[:, bit])
    masks[:, -1] = True
    return masks
