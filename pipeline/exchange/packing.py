"""Masks as sets of atoms, exact to the voxel, packed into layers by first fit.

Two masks may share a layer if one lies in the other or they have no voxel in common. Then the masks of a
layer are a forest. An atom is a mask without the masks inside it, and a mask is a run of atoms in depth-first
order.

    masks       [    liver    ]  [kidney]      layer 0: liver > tumour, kidney
                  [tumour]
                [   left half     ]            layer 1: it crosses the liver and the kidney

Masks are added from the largest to the smallest. So a mask fits into a layer if and only if, at all of its
voxels, the innermost mask of the layer is the same one, or there is none.

*Reads*: `PlacedMask`. *Writes*: layers uint16 (z, y, x), orders, and a table of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.exchange.placing import PlacedMask

_NO_ATOM = 65_534
"""Id of voxels without an atom; ids of atoms lie below it."""

_COLUMNS = 11
"""Columns of a table of proposals: order, start, stop, box (6), voxels, source."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedMasks:
    """Masks as runs of atoms."""

    atoms: tuple[NDArray[np.uint16], ...]
    """(z, y, x) per layer: ids 0..A-1, or 65534."""
    orders: tuple[tuple[NDArray[np.uint16], ...], ...]
    """For each layer one row of all its atoms."""
    table: NDArray[np.int32]
    """(M, 11): order (that is, the layer), start, stop, z0, y0, x0, z1, y1, x1, voxels, 0."""
    names: tuple[str, ...]
    """Name of each row."""
    scores: tuple[float | None, ...]
    """Score of each row, from the files; None without one."""


@dataclass(kw_only=True)
class _Layer:
    """A layer while it is filled. Its masks are called members; they are numbered parents first."""

    innermost: NDArray[np.uint16]
    """(z, y, x): number of the innermost member at each voxel."""
    members: list[int] = field(default_factory=list)
    """Row of each member."""
    parents: list[int] = field(default_factory=list)
    """Number of the member around each one; 65534 for none."""

    def parent_of(self, mask: PlacedMask, voxels: NDArray[np.bool_]) -> int | None:
        """Return the number of the member around a mask, 65534 for none, or None if it does not fit."""
        around = self.innermost[mask.box][voxels]
        first = int(around[0])
        fits = len(self.members) < _NO_ATOM and bool((around == first).all())
        return first if fits else None

    def add(self, row: int, mask: PlacedMask, voxels: NDArray[np.bool_], parent: int) -> None:
        """Add a mask that fits."""
        self.innermost[mask.box][voxels] = len(self.members)
        self.members.append(row)
        self.parents.append(parent)

    def finish(self) -> tuple[NDArray[np.uint16], NDArray[np.uint16], list[tuple[int, int]]]:
        """Return the atoms, their order, and the run (start, stop) of each member."""
        has_voxel = np.bincount(self.innermost.ravel(), minlength=_NO_ATOM + 1)[: len(self.members)] > 0
        atom_of = np.full(65_536, _NO_ATOM, dtype=np.uint16)
        atom_of[np.flatnonzero(has_voxel)] = np.arange(has_voxel.sum(), dtype=np.uint16)
        sizes = [int(has) for has in has_voxel]
        for number in reversed(range(len(self.members))):
            if self.parents[number] != _NO_ATOM:
                sizes[self.parents[number]] += sizes[number]
        next_free = {_NO_ATOM: 0}
        order = np.zeros(int(has_voxel.sum()), dtype=np.uint16)
        runs = []
        for number, parent in enumerate(self.parents):
            start = next_free[parent]
            next_free[parent] += sizes[number]
            next_free[number] = start + int(has_voxel[number])
            if has_voxel[number]:
                order[start] = atom_of[number]
            runs.append((start, start + sizes[number]))
        return atom_of[self.innermost], order, runs


def pack_masks(masks: Sequence[PlacedMask], shape_zyx: tuple[int, int, int]) -> PackedMasks:
    """Return masks as runs of atoms; row i of the table has exactly the voxels of the i-th best mask.

    Rows are sorted by falling score if every mask has one, else they have the order of the masks.

    Args:
        masks: At least one; all on one grid.
        shape_zyx: Shape of the grid.
    """
    ranked = list(masks)
    if all(mask.score is not None for mask in masks):
        ranked.sort(key=lambda mask: -(mask.score or 0.0))
    layers: list[_Layer] = []
    for row in sorted(range(len(ranked)), key=lambda row: (-ranked[row].num_voxels, row)):
        mask, voxels = ranked[row], ranked[row].voxels
        for layer in layers:
            parent = layer.parent_of(mask, voxels)
            if parent is not None:
                break
        else:
            layers.append(layer := _Layer(innermost=np.full(shape_zyx, _NO_ATOM, dtype=np.uint16)))
            parent = _NO_ATOM
        layer.add(row, mask, voxels, parent)
    table = np.zeros((len(ranked), _COLUMNS), dtype=np.int32)
    atoms, orders = [], []
    for number, layer in enumerate(layers):
        ids, order, runs = layer.finish()
        atoms.append(ids)
        orders.append((order,))
        for row, run in zip(layer.members, runs, strict=True):
            starts, stops = zip(*((part.start, part.stop) for part in ranked[row].box), strict=True)
            table[row, :10] = (number, *run, *starts, *stops, ranked[row].num_voxels)
    return PackedMasks(
        atoms=tuple(atoms),
        orders=tuple(orders),
        table=table,
        names=tuple(mask.name for mask in ranked),
        scores=tuple(mask.score for mask in ranked),
    )
