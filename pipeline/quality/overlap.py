"""Exact overlap of every proposal with every labelled structure.

A proposal is an interval of a depth-first order of atoms, so no mask is made. The voxels of a structure are
counted per atom and summed along each order; the intersection with an interval is a difference of two prefix
sums. This takes one pass over the voxels, then O(atoms x orders + proposals) per structure.

Reads: atoms (z, y, x) uint16, rows of orders uint16, table (N, 11) int32, label (z, y, x) integer, 0 =
background.
Writes: overlap counts (S, N), best IoU and Dice per structure among the first n proposals, and the limit of
        the
atoms.
Bounds: voxel counts are int64 and exact; IoU and Dice are float64. A labelled voxel outside all atoms is a
missed voxel of every proposal. The limit of the atoms uses layer 0 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.quality.intervals import num_atoms
from pipeline.quality.stored_scan import ORDER, START, STOP, IntArray, Intervals

COUNTS = (50, 100, 250, 500, 1000, 2000, 4000)
"""Numbers of best-ranked proposals for which quality is reported."""

_SLAB_VOXELS = 1 << 21  # voxels counted at a time: limits the int64 temporaries to a few tens of MB


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Voxel counts of S structures and N proposals; all overlap measures follow from them."""

    values: tuple[int, ...]
    """Label value of each structure, ascending."""
    structure_voxels: NDArray[np.int64]
    """(S,) voxels of each structure on the stored grid."""
    proposal_voxels: NDArray[np.int64]
    """(N,) voxels of each proposal."""
    intersection: NDArray[np.int64]
    """(S, N) voxels in common."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """(S, N) intersection over union, 0 to 1."""
        union = self.structure_voxels[:, None] + self.proposal_voxels[None, :] - self.intersection
        return np.asarray(self.intersection / np.maximum(union, 1), dtype=np.float64)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(S, N) Dice coefficient, 0 to 1."""
        total = self.structure_voxels[:, None] + self.proposal_voxels[None, :]
        return np.asarray(2 * self.intersection / np.maximum(total, 1), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class BestOverlap:
    """Best overlap of the first n proposals with each structure; columns follow `counts`, the last is all."""

    values: tuple[int, ...]
    """Label value of each structure."""
    structure_voxels: NDArray[np.int64]
    """(S,) voxels of each structure."""
    counts: tuple[int, ...]
    """Numbers of proposals; the last one is N, all of them."""
    iou: NDArray[np.float64]
    """(S, len(counts)) best IoU."""
    dice: NDArray[np.float64]
    """(S, len(counts)) best Dice, of the same proposal: Dice = 2 IoU / (1 + IoU)."""
    best: NDArray[np.int64]
    """(S,) row of the proposal with the best IoU of all; -1 if there is no proposal."""


@dataclass(frozen=True, kw_only=True)
class AtomLimit:
    """Best overlap of any union of atoms with each structure; no proposal can be better."""

    values: tuple[int, ...]
    """Label value of each structure."""
    iou: NDArray[np.float64]
    """(S,) largest IoU over all unions of atoms."""
    dice: NDArray[np.float64]
    """(S,) largest Dice over all unions of atoms."""


def structure_counts(label: IntArray) -> dict[int, int]:
    """Return the number of voxels of each structure of a label map, by value, ascending.

    Args:
        label: (z, y, x) integer, non-negative; 0 is background and left out.

    Raises:
        ValueError: a label value is negative or not an integer.
    """
    if label.dtype.kind not in "ui":
        raise ValueError(f"a label map must have integer values, got {label.dtype}")
    if label.dtype.kind == "i" and label.size and int(label.min()) < 0:
        raise ValueError(f"label values must not be negative, got {int(label.min())}")
    counts = np.zeros(int(label.max()) + 1 if label.size else 1, dtype=np.int64)
    flat = np.ravel(label)
    for begin in range(0, flat.size, _SLAB_VOXELS):
        counts += np.bincount(flat[begin : begin + _SLAB_VOXELS], minlength=counts.size)
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts[1:]) + 1}


def joint_counts(
    atoms: IntArray, label: IntArray, values: Sequence[int], *, num_atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels of each atom, and of each pair of structure and atom.

    Args:
        atoms: (z, y, x) ids; ids of `num_atoms` or above are not atoms.
        label: (z, y, x) values on the same grid.
        values: S label values that count as structures.
        num_atoms: Number of atoms A.

    Returns:
        int64 (A,) voxels per atom, and int64 (S, A) voxels per structure and atom.

    Raises:
        ValueError: the two volumes differ in shape.
    """
    if atoms.shape != label.shape:
        raise ValueError(f"atoms and label must share a grid, got {atoms.shape} and {label.shape}")
    highest = max((*values, int(label.max()) if label.size else 0, 0))
    slot = np.full(highest + 1, len(values), dtype=np.int64)  # the last slot is "no structure"
    slot[np.asarray(values, dtype=np.int64)] = np.arange(len(values))
    width = num_atoms + 1  # the last column is "no atom"
    totals = np.zeros(width, dtype=np.int64)
    joint = np.zeros((len(values) + 1) * width, dtype=np.int64)
    flat_atoms, flat_label = np.ravel(atoms), np.ravel(label)
    for begin in range(0, flat_atoms.size, _SLAB_VOXELS):
        ids = np.minimum(flat_atoms[begin : begin + _SLAB_VOXELS].astype(np.int64), num_atoms)
        totals += np.bincount(ids, minlength=width)
        part = flat_label[begin : begin + _SLAB_VOXELS]
        chosen = np.flatnonzero(part)
        if chosen.size:
            joint += np.bincount(slot[part[chosen]] * width + ids[chosen], minlength=joint.size)
    return totals[:num_atoms], joint.reshape(-1, width)[: len(values), :num_atoms]


def interval_overlap(
    proposals: Intervals, label: IntArray, *, values: Sequence[int] | None = None
) -> Overlap:
    """Return the exact intersection of every proposal with every structure of a label map.

    Args:
        proposals: Atoms, orders and table of N proposals.
        label: (z, y, x) integer, on the grid of the atoms; 0 is background.
        values: Label values of the structures (default: all in the label map, ascending).

    Raises:
        ValueError: the label is not an integer map on the grid of the atoms.
    """
    found = structure_counts(label)
    wanted = tuple(found) if values is None else tuple(int(v) for v in values)
    table = np.asarray(proposals.table)
    proposal_voxels = np.zeros(len(table), dtype=np.int64)
    intersection = np.zeros((len(wanted), len(table)), dtype=np.int64)
    first_order = 0
    for layer, (atoms, rows) in enumerate(zip(proposals.atoms, proposals.orders, strict=True)):
        totals, joint = joint_counts(atoms, label, wanted, num_atoms=num_atoms(proposals, layer))
        counts = np.concatenate([totals[None], joint])
        for order, row in enumerate(rows, start=first_order):
            here = np.flatnonzero(table[:, ORDER] == order)
            sums = np.zeros((len(counts), len(row) + 1), dtype=np.int64)
            np.cumsum(counts[:, row], axis=1, out=sums[:, 1:])
            inside = sums[:, table[here, STOP]] - sums[:, table[here, START]]
            proposal_voxels[here], intersection[:, here] = inside[0], inside[1:]
        first_order += len(rows)
    return Overlap(
        values=wanted,
        structure_voxels=np.array([found.get(v, 0) for v in wanted], dtype=np.int64),
        proposal_voxels=proposal_voxels,
        intersection=intersection,
    )


def best_overlap(overlap: Overlap, counts: Sequence[int] = COUNTS) -> BestOverlap:
    """Return the best IoU and Dice of each structure among the first n proposals.

    Args:
        overlap: Counts of S structures and N proposals.
        counts: The numbers n. All N proposals are added as the last. An n above N gives the value of all N;
            without proposals every value is 0.
    """
    num_structures, num_proposals = overlap.intersection.shape
    iou = np.zeros((num_structures, len(counts) + 1))
    best = np.full(num_structures, -1, dtype=np.int64)
    if num_proposals and num_structures:
        every = overlap.iou
        running = np.maximum.accumulate(every, axis=1)
        columns = [min(max(int(n), 1), num_proposals) - 1 for n in (*counts, num_proposals)]
        iou = running[:, columns]
        best = np.argmax(every, axis=1).astype(np.int64)
    return BestOverlap(
        values=overlap.values,
        structure_voxels=overlap.structure_voxels,
        counts=(*(int(n) for n in counts), num_proposals),
        iou=iou,
        dice=2 * iou / (1 + iou),
        best=best,
    )


def atom_limit(
    atoms: IntArray, label: IntArray, *, num_atoms: int, values: Sequence[int] | None = None
) -> AtomLimit:
    """Return the largest IoU and Dice of any union of atoms with each structure, exactly.

    Adding an atom increases the measure exactly if the fraction of the atom inside the structure exceeds a
    threshold (the optimum's IoU / (1 + IoU), or half its Dice). So the best union is a prefix of the atoms
    sorted by that fraction.

    Args:
        atoms: (z, y, x) ids; ids of `num_atoms` or above are not atoms.
        label: (z, y, x) integer, on the same grid; 0 is background.
        num_atoms: Number of atoms.
        values: Label values of the structures (default: all in the label map, ascending).
    """
    found = structure_counts(label)
    wanted = tuple(found) if values is None else tuple(int(v) for v in values)
    totals, joint = joint_counts(atoms, label, wanted, num_atoms=num_atoms)
    iou, dice = np.zeros(len(wanted)), np.zeros(len(wanted))
    for s, value in enumerate(wanted):
        touched = np.flatnonzero(joint[s])
        if not touched.size:
            continue
        inside, size = joint[s, touched], totals[touched]
        by_fraction = np.argsort(-(inside / size), kind="stable")
        shared, covered = np.cumsum(inside[by_fraction]), np.cumsum(size[by_fraction])
        voxels = found.get(value, 0)
        iou[s] = np.max(shared / (voxels + covered - shared))
        dice[s] = np.max(2 * shared / (voxels + covered))
    return AtomLimit(values=wanted, iou=iou, dice=dice)


def name_of(value: int, label_name: str, value_names: Mapping[int, str] | None) -> str:
    """Return the name of a structure: its declared name, else the label map's name and the value."""
    declared = (value_names or {}).get(value)
    return declared if declared else f"{label_name} {value}"
