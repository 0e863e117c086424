"""Selection of a scan's proposals: those at a voxel from atom to organ, and those that pass a filter.

Reads: a scan (see `pipeline.quality.stored_scan.ScanLike`), a voxel, bounds. Writes: rows of its table,
       pictures.
Bounds: rows are exact; a picture shows one slice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.quality import SOURCE, VOXELS, IntArray, ScanLike, proposals_at
from pipeline.report.montages import Point, close_up, frame_of, size_montages, slice_of, slices_through
from pipeline.report.slices import (
    LABEL_COLOR,
    PALETTE,
    PLANES,
    PROPOSAL_COLOR,
    Overlay,
    Plane,
    Rgb,
    beside,
    captioned,
    cut,
    place,
    volume_text,
)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Bounds on proposals; all of them must hold."""

    min_ml: float = 0.0
    """Smallest volume in millilitres."""
    max_ml: float = float("inf")
    """Largest volume in millilitres."""
    sources: Collection[str] | None = None
    """Names of the accepted sources; None accepts all."""
    min_score: float = float("-inf")
    """Smallest score."""


def rows_where(scan: ScanLike, wanted: Filter) -> NDArray[np.int64]:
    """Return the rows of the proposals that pass a filter, best first: int64 (M,)."""
    volumes = scan.table[:, VOXELS] * float(np.prod(scan.spacing_zyx_mm)) / 1000
    keep = (volumes >= wanted.min_ml) & (volumes <= wanted.max_ml)
    keep &= np.asarray(scan.scores) >= wanted.min_score
    if wanted.sources is not None:
        codes = [code for code, name in enumerate(scan.sources) if name in wanted.sources]
        keep &= np.isin(scan.table[:, SOURCE], codes)
    return np.flatnonzero(keep).astype(np.int64)


def deepest_voxel(mask: NDArray[np.bool_]) -> Point:
    """Return the voxel (z, y, x) of a mask that is farthest from its surface, measured in voxels.

    Args:
        mask: bool (z, y, x).

    Raises:
        ValueError: the mask is empty.
    """
    where = np.argwhere(mask)
    if not where.size:
        raise ValueError("an empty mask has no deepest voxel")
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = np.pad(mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]], 1)
    depth = ndimage.distance_transform_edt(box)
    z, y, x = np.array(np.unravel_index(int(np.argmax(depth)), box.shape)) - 1 + low
    return (int(z), int(y), int(x))


def ladder(scan: ScanLike, point: Point, *, steps: int = 8) -> list[int]:
    """Return a few of the proposals that contain a voxel, smallest first, evenly spaced in log volume.

    Args:
        scan: The scan.
        point: Voxel (z, y, x).
        steps: The most proposals.

    Returns:
        Rows of the proposal table.
    """
    rows = proposals_at(scan, point)
    if rows.size <= steps:
        return [int(row) for row in rows]
    size = np.log(scan.table[rows, VOXELS])
    wanted = np.linspace(size[0], size[-1], steps)
    chosen = sorted({int(np.argmin(np.abs(size - target))) for target in wanted})
    return [int(rows[k]) for k in chosen]


def ladder_strip(
    scan: ScanLike, point: Point, rows: Sequence[int], *, plane: Plane = "axial", pixels: int = 190
) -> Rgb:
    """Return pictures of the atom at a voxel and of proposals that contain it.

    Each mask is filled on the slice through the voxel.

    Args:
        scan: The scan.
        point: Voxel (z, y, x).
        rows: Rows of the proposals.
        plane: Plane of the slice.
        pixels: Edge of each picture.
    """
    s = slice_of(scan, plane, point[PLANES.index(plane)])
    row, column = place(point, scan.image.shape, plane)
    at = (int(row), int(column))
    atom = s.atoms[0][:, :, 0] == s.atoms[0][(*at, 0)]
    voxel_ml = float(np.prod(scan.spacing_zyx_mm)) / 1000
    tiles = []
    for name, mask in [(-1, atom), *((r, s.mask(r)) for r in rows)]:
        overlay = Overlay(mask=mask, color=PROPOSAL_COLOR, fill=0.35)
        tile = close_up(s, mask, [overlay], pixels, cross=at)
        text = "atom\n" if name < 0 else _describe(scan, name, voxel_ml)
        tiles.append(captioned(tile, text))
    return beside(tiles, columns=5)


def _describe(scan: ScanLike, row: int, voxel_ml: float) -> str:
    volume = volume_text(float(scan.table[row, VOXELS]) * voxel_ml)
    return f"#{row}  {volume}\n{scan.sources[int(scan.table[row, SOURCE])]}"


def planes_at(
    scan: ScanLike,
    point: Point,
    *,
    rows: Sequence[int] = (),
    label: IntArray | None = None,
    pixels: int = 380,
) -> list[Rgb]:
    """Return the three planes through a voxel: a cross at it, proposals filled, structures outlined.

    Args:
        scan: The scan.
        point: Voxel (z, y, x).
        rows: Rows of the proposals.
        label: Label map (z, y, x); 0 is background.
        pixels: Longest edge of the scan in the pictures.
    """
    frame = frame_of(scan, pixels)
    pictures = []
    for axis, s in enumerate(slices_through(scan, point)):
        overlays = [Overlay(mask=s.mask(row), color=PALETTE[k % len(PALETTE)]) for k, row in enumerate(rows)]
        if label is not None:
            overlays += structure_outlines(cut(label, s.plane, point[axis]))
        cross = place(point, scan.image.shape, s.plane)
        pictures.append(s.draw(overlays, replace(frame, cross=cross)))
    return pictures


def structure_outlines(label: IntArray, *, fill: float = 0.0) -> list[Overlay]:
    """Return an overlay for each structure on a slice of a label map; yellow if there is only one.

    Args:
        label: (height, width), turned for display; 0 is background.
        fill: Opacity of the inside, 0 to 1.
    """
    values = [int(v) for v in np.unique(label) if v]
    colors = [LABEL_COLOR] if len(values) == 1 else [PALETTE[v % len(PALETTE)] for v in values]
    return [
        Overlay(mask=np.asarray(label == v), color=color, fill=fill)
        for v, color in zip(values, colors, strict=True)
    ]


def hierarchy_sheet(scan: ScanLike, point: Point, *, pixels: int = 240, label: IntArray | None = None) -> Rgb:
    """Return one picture from image to organ: a row per plane; columns image, atoms, size classes, labels."""
    slices = slices_through(scan, point)
    frame = frame_of(scan, pixels)
    plain = replace(frame, marks=False)
    columns = {"image": [s.draw([], frame) for s in slices]}
    columns["atoms"] = [s.draw_atoms(plain) for s in slices]
    columns |= size_montages(scan, point, pixels=pixels, marks=False)
    if label is not None:
        columns["labels"] = [
            s.draw(structure_outlines(cut(label, s.plane, i), fill=0.35), plain)
            for s, i in zip(slices, point, strict=True)
        ]
    top = [captioned(pictures[0], name, size=18) for name, pictures in columns.items()]
    rest = [pictures[k] for k in (1, 2) for pictures in columns.values()]
    return beside([*top, *rest], columns=len(columns))
