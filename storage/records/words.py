"""Words of masks: bit k of a voxel's word says whether the voxel is in mask k. Arrays in, arrays out.

A proposal is an interval of atoms. So K masks over A atoms are one table of A words, and the words of a crop
take one look-up per voxel, whatever K is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from storage.layout import MAX_WORD_BITS
from storage.records.regions import Region
from storage.records.scan_record import Proposals


def build_lookup(
    runs: Sequence[tuple[int, NDArray[np.uint16]]],
) -> NDArray[np.uint16]:
    """Return the word of every atom id.

    Args:
        runs: For each mask of one atom layer, its bit (0..15) and the ids of its atoms.

    Returns:
        uint16 (65536,): an entry for every uint16, so that no id has to be checked; 0 if the id is in no
            mask.
    """
    lookup = np.zeros(65_536, dtype=np.uint16)
    for bit, ids in runs:
        assert 0 <= bit < MAX_WORD_BITS
        lookup[ids] |= np.uint16(1 << bit)
    return lookup


def covered_part(target: Region, boxes: NDArray[np.int32]) -> Region | None:
    """Return the smallest box around the part of `target` that `boxes` cover, relative to target's corner.

    Args:
        target: A box, (z, y, x).
        boxes: (K, 6) z0, y0, x0, z1, y1, x1, half-open, in the same frame as target.

    Returns:
        The box, or None if no box overlaps the target.
    """
    corner = np.array([part.start for part in target])
    lows = np.maximum(boxes[:, :3], corner)
    highs = np.minimum(boxes[:, 3:], [part.stop for part in target])
    meets = (lows < highs).all(axis=1)
    if not meets.any():
        return None
    low, high = lows[meets].min(axis=0) - corner, highs[meets].max(axis=0) - corner
    return tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))


def unpack_words(words: NDArray[np.uint16], num_masks: int) -> NDArray[np.bool_]:
    """Return the masks in words, uint16 (z, y, x), as bool (K, z, y, x)."""
    masks = np.empty((num_masks, *words.shape), dtype=np.bool_)
    for bit in range(num_masks):
        np.not_equal(words & np.uint16(1 << bit), 0, out=masks[bit])
    return masks


def count_voxels(
    proposals: Proposals, rows: Sequence[NDArray[np.uint16]], counts: Sequence[NDArray[np.int64]]
) -> NDArray[np.int32]:
    """Return the number of voxels of every proposal, int32 (N,), from those of the atoms.

    Args:
        proposals: All proposals of a scan.
        rows: Atoms of each order, depth first.
        counts: For each layer, (65536,) voxels of every atom id.
    """
    voxels = np.zeros(len(proposals), dtype=np.int32)
    for order, (row, layer) in enumerate(zip(rows, proposals.layer_of_order, strict=True)):
        here = np.flatnonzero(proposals.order == order)
        sums = np.concatenate([[0], np.cumsum(counts[layer][row])])
        voxels[here] = sums[proposals.stop[here]] - sums[proposals.start[here]]
    return voxels


def add_words(
    words: NDArray[np.uint16],
    parts: Callable[[Callable[[Region], bool]], Iterator[tuple[Region, NDArray[np.uint16]]]],
    lookup: NDArray[np.uint16],
    boxes: NDArray[np.int32],
) -> None:
    """OR the masks of a layer into `words`.

    Args:
        words: (z, y, x); updated.
        parts: Yields the wanted parts of the layer's ids, with their position.
        lookup: (65536,) word of every atom id.
        boxes: (K, 6) boxes of the masks, relative to the corner of `words`.
    """
    for target, part in parts(lambda target: covered_part(target, boxes) is not None):
        inside = covered_part(target, boxes)
        assert inside is not None
        words[target][inside] |= lookup[part[inside]]
