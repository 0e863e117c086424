"""Choice of the slices and proposals of a scan that are shown, and montages of them.

Reads: a scan (see `pipeline.quality.stored_scan.ScanLike`) and points, rows of its proposal table,
       structures.
Writes: RGB pictures (`pipeline.report.slices`) and the choices behind them.
Bounds: choices are deterministic; a montage shows examples, not every proposal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.quality import (
    SIZE_CLASS_NAMES,
    SIZE_CLASSES_MM3,
    VOXELS,
    X0,
    X1,
    Z0,
    Z1,
    IntArray,
    Rows,
    ScanLike,
    proposal_mask,
)
from pipeline.report.slices import (
    HEAT,
    LABEL_COLOR,
    PALETTE,
    PLANES,
    PROPOSAL_COLOR,
    Color,
    Frame,
    Overlay,
    Plane,
    Rgb,
    Window,
    cut,
    display_window,
    draw_borders,
    draw_slice,
    gray,
    in_hounsfield,
    voxel_mm,
)
from pipeline.volumes import background_threshold

Point = tuple[int, int, int]
"""A voxel (z, y, x)."""

CT_SOFT_HU = (-300.0, 200.0)
"""Regions whose mean lies outside this range are shown in another window."""
CT_BODY_HU = -500.0
"""Voxels above this are body, and so are cavities that they enclose (lungs, bowel gas)."""


def foreground(scan: ScanLike) -> NDArray[np.bool_]:
    """Return the body mask, bool (z, y, x): above a threshold, holes in axial slices filled."""
    if in_hounsfield(scan):
        threshold = (CT_BODY_HU - scan.offset) / scan.scale
    else:
        threshold = background_threshold(scan.image[::2, ::2, ::2])
    mask = scan.image > threshold
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def focus_point(scan: ScanLike, body: NDArray[np.bool_]) -> Point:
    """Return the voxel (z, y, x) whose three slices show most.

    With labels: most structures, then most labelled voxels. Without: a large body area with high contrast,
    among the slices between a fifth and four fifths of the body's voxels.

    Args:
        scan: The scan.
        body: bool (z, y, x), True in the body.
    """
    shape = scan.image.shape
    ratings = [np.zeros(size) for size in shape]
    for label in scan.labels:
        where = np.nonzero(label.array)
        width = int(label.array.max()) + 1
        values = label.array[where].astype(np.int64)
        for axis, size in enumerate(shape):
            counts = np.bincount(where[axis] * width + values, minlength=size * width).reshape(size, width)
            ratings[axis] += np.count_nonzero(counts, axis=1) + counts.sum(axis=1) / (values.size + 1)
    z, y, x = (
        int(np.argmax(rating)) if rating.any() else _contrasted_slice(scan, body, axis)
        for axis, rating in enumerate(ratings)
    )
    return (z, y, x)


def _contrasted_slice(scan: ScanLike, body: NDArray[np.bool_], axis: int) -> int:
    """Return the slice with the largest product of body area and standard deviation of intensity in it."""
    others = tuple(a for a in range(3) if a != axis)
    area = body.sum(axis=others)
    if not area.any():
        return len(area) // 2
    values = np.where(body, scan.image.astype(np.float32), 0)
    mean = values.sum(axis=others) / np.maximum(area, 1)
    variance = (values**2).sum(axis=others) / np.maximum(area, 1) - mean**2
    rating = ndimage.uniform_filter1d(area * np.sqrt(np.maximum(variance, 0)), max(1, len(area) // 12))
    start, stop = np.searchsorted(np.cumsum(area) / area.sum(), (0.2, 0.8))
    return int(start + np.argmax(rating[start : stop + 1]))


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice of a scan with its proposals, turned for display."""

    plane: Plane
    index: int
    levels: NDArray[np.uint8]
    """(height, width) grey levels."""
    atoms: tuple[NDArray[np.integer], ...]
    """(height, width, 1) per layer: with three axes, so that masks can be looked up in it."""
    orders: Sequence[Rows]
    table: NDArray[np.integer]
    voxel: tuple[float, float]
    """Height and width of a voxel in mm."""

    def mask(self, row: int) -> NDArray[np.bool_]:
        """Return the mask of a proposal on this slice, bool (height, width)."""
        return proposal_mask(self, row)[:, :, 0]

    def draw(self, overlays: Sequence[Overlay], frame: Frame) -> Rgb:
        """Return the slice with overlays."""
        return draw_slice(self.levels, self.plane, self.voxel, frame=frame, overlays=overlays)

    def draw_atoms(self, frame: Frame) -> Rgb:
        """Return the slice with the borders of its atoms."""
        return draw_borders(self.draw([], frame), self.atoms[0][:, :, 0])


def slice_of(scan: ScanLike, plane: Plane, index: int, window: Window | None = None) -> Slice:
    """Return a slice of a scan, in the given display window or the usual one."""
    return Slice(
        plane=plane,
        index=index,
        levels=gray(cut(scan.image, plane, index), scan, window or display_window(scan)),
        atoms=tuple(cut(atoms, plane, index)[:, :, None] for atoms in scan.atoms),
        orders=scan.orders,
        table=scan.table,
        voxel=voxel_mm(scan.spacing_zyx_mm, plane),
    )


def rows_by_size(scan: ScanLike) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the proposals by size class, best first; smallest class first.

    Empty classes are left out.
    """
    volumes = scan.table[:, VOXELS] * float(np.prod(scan.spacing_zyx_mm))
    classes = np.searchsorted(SIZE_CLASSES_MM3, volumes, side="right")
    found = ((name, np.flatnonzero(classes == k)) for k, name in enumerate(SIZE_CLASS_NAMES))
    return {name: rows for name, rows in found if rows.size}


def disjoint_rows(
    slices: Sequence[Slice], rows: Iterable[int], *, most: int = 60, tries: int = 400
) -> list[int]:
    """Return the best-ranked proposals that hardly overlap on the slices, in order of rank.

    A proposal is chosen if at most a tenth of it overlaps those chosen before, over all slices together.

    Args:
        slices: The slices.
        rows: Rows of the proposals, best first.
        most: The most proposals.
        tries: The most rows that are examined.
    """
    chosen: list[int] = []
    painted = [np.zeros(s.levels.shape, dtype=np.bool_) for s in slices]
    for row in islice(rows, tries):
        masks = [s.mask(int(row)) for s in slices]
        area = sum(int(mask.sum()) for mask in masks)
        shared = sum(int((mask & p).sum()) for mask, p in zip(masks, painted, strict=True))
        if area == 0 or shared > 0.1 * area:
            continue
        chosen.append(int(row))
        for p, mask in zip(painted, masks, strict=True):
            p |= mask
        if len(chosen) == most:
            break
    return chosen


def frame_of(scan: ScanLike, pixels: int) -> Frame:
    """Return a frame in which the longest edge of the scan has `pixels`; equal for its three planes."""
    edge_mm = max(n * mm for n, mm in zip(scan.image.shape, scan.spacing_zyx_mm, strict=True))
    return Frame(mm_per_pixel=edge_mm / pixels)


def planes_with(
    scan: ScanLike, point: Point, rows: Sequence[int], *, pixels: int = 360, fill: float = 0.32
) -> list[Rgb]:
    """Return the three planes through a point with proposals over them, each in its own colour."""
    frame = frame_of(scan, pixels)
    return [
        s.draw([_overlay(s.mask(row), k, fill) for k, row in enumerate(rows)], frame)
        for s in slices_through(scan, point)
    ]


def slices_through(scan: ScanLike, point: Point) -> list[Slice]:
    """Return the three slices through a point."""
    window = display_window(scan)
    return [slice_of(scan, plane, point[axis], window) for axis, plane in enumerate(PLANES)]


def _overlay(mask: NDArray[np.bool_], number: int, fill: float) -> Overlay:
    return Overlay(mask=mask, color=PALETTE[number % len(PALETTE)], fill=fill)


def size_montages(
    scan: ScanLike, point: Point, *, pixels: int = 360, marks: bool = True
) -> dict[str, list[Rgb]]:
    """Return, for each size class, the three planes through a point with its best disjoint proposals."""
    return group_montages(scan, point, rows_by_size(scan), pixels=pixels, marks=marks)


def group_montages(
    scan: ScanLike,
    point: Point,
    groups: Mapping[str, NDArray[np.int64]],
    *,
    pixels: int = 360,
    marks: bool = True,
) -> dict[str, list[Rgb]]:
    """Return, for each group of rows, the three planes through a point with its best disjoint proposals."""
    slices = slices_through(scan, point)
    frame = replace(frame_of(scan, pixels), marks=marks)
    montages = {}
    for name, rows in groups.items():
        chosen = disjoint_rows(slices, rows)
        montages[name] = [
            s.draw([_overlay(s.mask(r), k, 0.32) for k, r in enumerate(chosen)], frame) for s in slices
        ]
    return montages


def widest_slice(mask: NDArray[np.bool_], spacing_zyx_mm: tuple[float, float, float]) -> tuple[Plane, int]:
    """Return the slice with the largest section of a mask; axial unless another is a third larger."""
    best: tuple[float, Plane, int] = (0.0, "axial", mask.shape[0] // 2)
    for axis, plane in enumerate(PLANES):
        areas = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        section = float(areas.max()) * float(np.prod(voxel_mm(spacing_zyx_mm, plane)))
        if section * (1.0 if axis == 0 else 0.75) > best[0]:
            best = (section, plane, int(np.argmax(areas)))
    return best[1], best[2]


def proposal_tile(scan: ScanLike, row: int, *, color: Color = PROPOSAL_COLOR, pixels: int = 200) -> Rgb:
    """Return a picture of one proposal on its widest slice, with its surroundings."""
    low, high = scan.table[row, Z0 : X0 + 1], scan.table[row, Z1 : X1 + 1]
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    inside = proposal_mask(scan, row, box)
    plane, index = widest_slice(inside, scan.spacing_zyx_mm)
    mean = float(scan.image[box][inside].mean()) * scan.scale + scan.offset
    s = slice_of(scan, plane, index + int(low[PLANES.index(plane)]), window_for(scan, mean))
    mask = s.mask(row)
    return close_up(s, mask, [Overlay(mask=mask, color=color, fill=0.3, outline=1)], pixels)


def window_for(scan: ScanLike, mean: float) -> Window:
    """Return the display window for a region with this mean: a lung window for air, a wide one for bone."""
    if in_hounsfield(scan) and not CT_SOFT_HU[0] < mean < CT_SOFT_HU[1]:
        return Window(low=-1000, high=200) if mean < 0 else Window(low=-150, high=500)
    return display_window(scan)


def structure_tile(scan: ScanLike, label: IntArray, value: int, row: int, *, pixels: int = 220) -> Rgb:
    """Return a structure (outline) and the proposal that matches it (fill), on the structure's widest slice.

    Args:
        scan: The scan.
        label: Label map (z, y, x).
        value: Value of the structure.
        row: Row of the proposal, -1 for none.
        pixels: Edge of the picture.
    """
    structure = label == value
    plane, index = widest_slice(structure, scan.spacing_zyx_mm)
    mean = float(scan.image[structure].mean()) * scan.scale + scan.offset
    s = slice_of(scan, plane, index, window_for(scan, mean))
    truth = cut(structure, plane, index)
    overlays = [Overlay(mask=truth, color=LABEL_COLOR, fill=0, outline=2)]
    if row >= 0:
        overlays.insert(0, Overlay(mask=s.mask(row), color=PROPOSAL_COLOR, fill=0.42, outline=1))
    return close_up(s, truth, overlays, pixels)


def close_up(
    s: Slice,
    around: NDArray[np.bool_],
    overlays: Sequence[Overlay],
    pixels: int,
    *,
    cross: tuple[int, int] | None = None,
) -> Rgb:
    """Return a square part of a slice around a mask: 1.6 times its extent, at least 60 mm wide.

    Black outside the scan.

    Args:
        s: The slice.
        around: bool (height, width) mask to show; must not be empty.
        overlays: Drawn on the part.
        pixels: Edge of the picture.
        cross: Voxel (row, column) of the slice that is marked.
    """
    where = np.argwhere(around)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    shape, voxel = np.array(s.levels.shape), np.array(s.voxel)
    edge_mm = min(max(float(np.max((high - low) * voxel)) * 1.6, 60.0), float(np.max(shape * voxel)))
    half = edge_mm / voxel / 2
    start = np.clip(np.floor((low + high) / 2 - half), 0, np.maximum(shape - 2 * half, 0)).astype(int)
    stop = np.minimum(start + np.ceil(2 * half).astype(int), shape)
    part = (slice(start[0], stop[0]), slice(start[1], stop[1]))
    inside = [replace(overlay, mask=overlay.mask[part]) for overlay in overlays]
    moved = None if cross is None else (float(cross[0] - start[0]), float(cross[1] - start[1]))
    frame = Frame(mm_per_pixel=edge_mm / pixels, cross=moved)
    drawn = replace(s, levels=s.levels[part]).draw(inside, frame)[:pixels, :pixels]
    square = np.zeros((pixels, pixels, 3), dtype=np.uint8)
    top, left = ((pixels - n) // 2 for n in drawn.shape[:2])
    square[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return square


def coverage_limits(cover: NDArray[np.int32]) -> tuple[int, int]:
    """Return the counts at the ends of the colour scale: 1st and 99th percentile of covered voxels."""
    covered = cover[cover > 0]
    if not covered.size:
        return 1, 2
    low, high = (int(v) for v in np.percentile(covered, (1, 99)))
    return low, max(high, low + 1)


def coverage_planes(
    scan: ScanLike, cover: NDArray[np.int32], point: Point, *, pixels: int = 360
) -> list[Rgb]:
    """Return the three planes through a point, coloured by how many proposals contain each voxel.

    Colours are equal steps of the logarithm between `coverage_limits`; voxels in no proposal stay grey.
    """
    low, high = (float(np.log(count)) for count in coverage_limits(cover))
    pictures = []
    for axis, plane in enumerate(PLANES):
        s = slice_of(scan, plane, point[axis])
        counts = cut(cover, plane, point[axis])
        share = np.clip((np.log(np.maximum(counts, 1)) - low) / (high - low), 0, 1)
        heat = HEAT[np.rint(share * (len(HEAT) - 1)).astype(int)]
        base = s.levels[:, :, None].astype(np.float32)
        mixed = np.where((counts > 0)[:, :, None], 0.22 * base + 0.78 * heat, base)
        colored = np.rint(mixed).astype(np.uint8)
        pictures.append(draw_slice(colored, plane, s.voxel, frame=frame_of(scan, pixels)))
    return pictures


def overview_slice(scan: ScanLike, point: Point, *, pixels: int = 150) -> Rgb:
    """Return the axial slice through a point with the best disjoint proposals of 1 mL and more."""
    s = slice_of(scan, "axial", point[0])
    voxels = SIZE_CLASSES_MM3[0] / float(np.prod(scan.spacing_zyx_mm))
    rows = disjoint_rows([s], np.flatnonzero(scan.table[:, VOXELS] >= voxels), most=40)
    height, width = (n * mm for n, mm in zip(s.levels.shape, s.voxel, strict=True))
    frame = Frame(mm_per_pixel=max(height, width) / pixels, marks=False)
    return s.draw([_overlay(s.mask(row), k, 0.4) for k, row in enumerate(rows)], frame)
