"""A training sample: two cuts of scans with the words of its masks, and how they are made.

*Takes* a scan, the boxes of two views, the atoms around them. *Gives* exact counts of visible voxels, words,
cuts: int16 (z, y, x). Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage import Level, Scan
from storage.records import build_lookup
from training.data.boxes import Box
from training.data.sampling import visible_voxels
from training.data.whole_scans import ResampledCut


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Two cuts of one scan."""

    index: int
    """Number of the sample in the run."""
    scan_id: str
    """The scan it is from."""
    cuts: tuple[NDArray[np.int16], NDArray[np.int16]]
    """Image codes of the reference's and the target's cut, (z, y, x)."""
    words: tuple[NDArray[np.int16], NDArray[np.int16]]
    """Words of both cuts, (z, y, x)."""
    scale: float
    """Z-score units per code step."""
    offset: float
    """Z-score of code 0."""
    padding_code: int
    """Value of `cuts` outside the scan."""
    views: tuple[Box, Box]
    """Unwarped views of the reference and the target, in voxels of the level that was read."""
    masks: tuple[int, ...]
    """The proposal of each bit; proposals are repeated where too few are visible."""


@dataclass(frozen=True, kw_only=True)
class ViewPair:
    """The views of the reference and the target, and the proposals that are visible in both."""

    level: Level
    """Level of the scan that is read."""
    views: tuple[Box, Box]
    """Unwarped views of the reference and the target, in voxels of the level."""
    cuts: tuple[Box, Box] | tuple[ResampledCut, ResampledCut]
    """The views with the margins that warping needs."""
    region: Box
    """The smallest box around both cuts, clipped to the scan, in voxels of the level."""
    atoms: dict[int, NDArray[np.uint16]]
    """Atoms in the region, (z, y, x), of each layer that a visible proposal needs."""
    ids: NDArray[np.int64]
    """Visible proposals, (n,)."""
    voxels: NDArray[np.int64]
    """Visible voxels of each, (n,), in the view that shows fewer of them."""

    def cut(self, number: int, array: NDArray[np.int16], *, padding: int, image: bool) -> NDArray[np.int16]:
        """Return one cut of an array of the region.

        Args:
            number: 0 for the reference, 1 for the target.
            array: (z, y, x) in the region.
            padding: Value outside the scan.
            image: Whether to interpolate; words are sampled by nearest neighbour.
        """
        cut = self.cuts[number]
        if isinstance(cut, Box):
            return cut_out(array, self.region, cut, padding)
        return cut.take(array, self.region, padding=padding, image=image)


def visible_in(
    scan: Scan,
    ids: NDArray[np.int64],
    atoms: Mapping[int, NDArray[np.uint16]],
    boxes: Sequence[Box],
    region: Box,
) -> NDArray[np.int64]:
    """Return the voxel counts of proposals in each of two boxes, (2, n), from the atoms of a region."""
    layers = range(scan.num_layers)
    counts = [_histograms(atoms[layer], boxes, region) if layer in atoms else None for layer in layers]
    return visible_voxels(ids, scan.proposals, [scan.orders(layer) for layer in layers], counts)


def _histograms(atoms: NDArray[np.uint16], views: Sequence[Box], region: Box) -> NDArray[np.int64]:
    """Return the voxels of each atom id in the first view plus 2^32 times those in the second, (65536,)."""
    first, second = (
        np.bincount(atoms[view.within(region).slices].ravel(), minlength=65_536) for view in views
    )
    return first + (second << 32)


def words_of(scan: Scan, masks: NDArray[np.int64], pair: ViewPair) -> NDArray[np.int16]:
    """Return the words in the region of a pair of views, int16 (z, y, x): bit k is proposal masks[k]."""
    runs: dict[int, list[tuple[int, NDArray[np.uint16]]]] = {}
    for bit, (proposal, layer) in enumerate(zip(masks, scan.proposals.layer[masks], strict=True)):
        runs.setdefault(int(layer), []).append((bit, scan.atom_ids(int(proposal))))
    words: NDArray[np.uint16] | None = None
    for layer, members in runs.items():
        layer_words = np.take(build_lookup(members), pair.atoms[layer])
        words = layer_words if words is None else words | layer_words
    assert words is not None
    return words.view(np.int16)  # at most 15 bits are used, so no value is negative


def cut_out(array: NDArray[np.int16], region: Box, cut: Box, padding: int) -> NDArray[np.int16]:
    """Return the part of an array in a cut, with `padding` outside the region.

    Args:
        array: int16 (z, y, x) in the region.
        region: The box that the array covers, voxels of the scan.
        cut: The box to return.
        padding: Value outside the region.
    """
    result = np.full(cut.shape, padding, dtype=np.int16)
    shared = cut.intersect(region)
    result[shared.within(cut).slices] = array[shared.within(region).slices]
    return result
