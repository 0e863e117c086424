"""From DICOM headers to volumes: the slices of each volume, in order, and their grid.

*Reads*: headers. *Writes*: the slices of a series, sorted along their normal, or the reason why they are not
a regular volume. Slices belong together if they share series, direction (within half a degree), matrix and
pixel size. Series that are irregular by design are refused: variable gantry tilt, radial or cine stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadSpacing, DicomSeriesError, NoSuchFrame, NotVolumetric, ScanError
from pipeline.formats.dicom.frames import VOLUME_KEYS, Frame
from pipeline.formats.dicom.headers import Header
from pipeline.volumes import Grid, nine, triple

_SAME_DIRECTION = 1e-2
"""Largest difference of direction cosines within a stack; about half a degree."""

_SAME_POSITION_MM = 0.01
"""Slices closer than this along the normal have the same position, in mm."""

_OTHER_PLANE_DEGREES = 40.0
"""Stacks of one series that differ by more than this angle are separate scans (three planes of a
localizer)."""

_REMEDY_EXPORT = (
    "Export the series again with all its slices, or convert it to NIfTI with a tool that interpolates"
)


@dataclass(frozen=True, kw_only=True)
class SeriesRules:
    """How regular the slices of a DICOM series must be, and which volume of a 4D series is taken."""

    frame: int | None = None
    """Index of the volume of a 4D series or file, from 0; if None, 4D is an error."""
    min_slices: int = 3
    """Smallest number of slices of a volume."""
    slice_gap_tolerance: float = 0.05
    """Largest difference of a gap between slices from the median gap, as a fraction of the median."""
    tilt_tolerance_degrees: float = 0.3
    """Largest angle between the line through the slice positions and the slices' normal, in degrees."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices that share series, direction, matrix and pixel size. One multi-frame file is a stack, too.

    Attributes:
        headers: Headers in the order found.
        part: Index of this stack in its series, from 0; None if the series is one stack.
        problem: Why the whole series cannot be used; None if it can.
    """

    headers: tuple[Header, ...]
    part: int | None = None
    problem: ScanError | None = None


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The ordered slices of a regular volume.

    Attributes:
        headers: Headers from the first slice to the last; one header for a multi-frame file.
        frames: The frame of each slice, for a multi-frame file; else None.
        grid: The volume's grid; slices follow the normal (row direction x column direction).
    """

    headers: tuple[Header, ...]
    frames: tuple[Frame, ...] | None
    grid: Grid


def split_series(headers: Sequence[Header]) -> list[Stack]:
    """Return the stacks of one series; a multi-frame file holds one or more stacks of its own."""
    groups: list[list[Header]] = []
    for header in (part for whole in headers for part in _split_frames(whole)):
        group = next((g for g in groups if header.num_frames == 1 and _same_stack(g[0], header)), None)
        if group is None:
            groups.append([header])
        else:
            group.append(header)
    if len(groups) == 1:
        return [Stack(headers=tuple(groups[0]))]
    problem = _tilted(groups)
    if problem is not None:
        return [Stack(headers=tuple(headers), problem=problem)]
    return [Stack(headers=tuple(group), part=i) for i, group in enumerate(groups)]


def _split_frames(header: Header) -> list[Header]:
    """Return a header for each stack of a file: frames of one StackID, direction and pixel size."""
    groups: list[list[Frame]] = []
    for frame in header.frames or ():
        group = next((g for g in groups if g[0].stack == frame.stack and _same_plane(g[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return [
        replace(
            header,
            frames=tuple(group),
            orientation=group[0].orientation,
            pixel_spacing_mm=group[0].pixel_spacing_mm,
        )
        for group in groups
    ] or [header]


def _same_stack(first: Header, other: Header) -> bool:
    if first.num_frames > 1 or (first.rows, first.columns) != (other.rows, other.columns):
        return False
    return _same_plane(first, other)


def _same_plane(first: Header | Frame, other: Header | Frame) -> bool:
    """Whether two slices or frames have one direction and pixel size."""
    if (first.orientation is None) != (other.orientation is None):
        return False
    if first.orientation is not None and other.orientation is not None:
        gap = np.abs(np.subtract(first.orientation, other.orientation)).max()
        if gap > _SAME_DIRECTION:
            return False
    return bool(
        np.allclose(first.pixel_spacing_mm or (0, 0), other.pixel_spacing_mm or (0, 0), rtol=1e-3, atol=0)
    )


def _tilted(groups: Sequence[Sequence[Header]]) -> ScanError | None:
    """Return the error of a series whose slices differ by a few degrees (variable gantry tilt), or None."""
    normals = [n for g in groups if g[0].orientation and (n := _normal(g[0].orientation)) is not None]
    angles = [
        float(np.degrees(np.arccos(np.clip(abs(a @ b), 0, 1))))
        for i, a in enumerate(normals)
        for b in normals[:i]
    ]
    tilted = [a for a in angles if 0.3 < a < _OTHER_PLANE_DEGREES]
    if not tilted:
        return None
    tilts = sorted({h.tilt_degrees for g in groups for h in g if h.tilt_degrees is not None})
    range_of_tilts = f" (gantry tilt {tilts[0]:g} to {tilts[-1]:g} degrees)" if len(tilts) > 1 else ""
    return DicomSeriesError(
        "all slices of a series must have one direction, these differ by up to "
        f"{max(tilted):.1f} degrees{range_of_tilts}",
        path=None,
        remedy=_REMEDY_EXPORT,
    )


def order_slices(headers: Sequence[Header], rules: SeriesRules) -> Slices:
    """Return the slices of a stack from first to last, after checks that they are a regular volume.

    Raises:
        ScanError: They are not a regular volume. `path` is None; the caller adds it.
    """
    first = headers[0]
    if first.num_samples != 1:
        raise NotVolumetric(
            f"a scan must have one value per voxel, this has {first.num_samples} (colour)",
            path=None,
            remedy="Remove it, or export the grey-scale series that it was made from",
        )
    axes, points = _axes_and_points(headers)
    rows_mm, columns_mm = _pixel_spacing(first)
    along = points @ axes[:, 2]
    order = _one_volume(headers, along, rules.frame)
    if len(order) < rules.min_slices:
        raise NotVolumetric(
            f"a volume needs at least {rules.min_slices} slices, this has {len(order)}",
            path=None,
            remedy="Remove it (a localizer or a single picture), or export the whole series",
        )
    gap = _regular_gap(points[order], axes, rules, first.tilt_degrees)
    grid = Grid(
        shape_zyx=(len(order), first.rows, first.columns),
        spacing_xyz_mm=(columns_mm, rows_mm, gap),
        origin_xyz_mm=triple(points[order[0]]),
        direction=nine(axes),
    )
    if first.frames is not None:
        return Slices(headers=(first,), frames=tuple(first.frames[i] for i in order), grid=grid)
    return Slices(headers=tuple(headers[i] for i in order), frames=None, grid=grid)


def _axes_and_points(headers: Sequence[Header]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions of x, y, z as columns (3, 3), and the slices' first pixels (N, 3) in mm."""
    first = headers[0]
    normal = None if first.orientation is None else _normal(first.orientation)
    if first.num_frames > 1 and first.frames is None:
        raise DicomSeriesError(
            "every frame of a multi-frame file must have a position; these do not",
            path=None,
            remedy="Convert the file to NIfTI (for example with dcm2niix) and use that",
        )
    positions = [
        p
        for h in headers
        for p in ([h.position_xyz_mm] if h.frames is None else [f.position_xyz_mm for f in h.frames])
    ]
    known = [p for p in positions if p is not None]
    if first.orientation is None or normal is None or len(known) != len(positions):
        raise DicomSeriesError(
            "every slice must have its position and direction (ImagePositionPatient, "
            "ImageOrientationPatient)",
            path=None,
            remedy="Export the series again; without these tags its geometry is unknown",
        )
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    axes = np.stack([row, np.cross(normal, row), normal], axis=1)
    return axes, np.array(known, dtype=np.float64)


def _normal(orientation: Sequence[float]) -> NDArray[np.float64] | None:
    """Return the unit normal of a slice, or None if row and column are not at a right angle."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 1e-2:
        return None
    normal = np.cross(row, column)
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def _pixel_spacing(header: Header) -> tuple[float, float]:
    if header.pixel_spacing_mm is None or min(header.pixel_spacing_mm) <= 0:
        raise BadSpacing(
            f"the pixel spacing must be positive, got {header.pixel_spacing_mm}",
            path=None,
            remedy="Export the series again with its PixelSpacing, or correct the header",
        )
    return header.pixel_spacing_mm


def _one_volume(headers: Sequence[Header], along: NDArray[np.float64], frame: int | None) -> list[int]:
    """Return the slices of one volume in order of position; several volumes may share the positions (4D).

    Args:
        headers: One header per slice, or the header of a multi-frame file.
        along: (N,) position of each slice along the normal, in mm.
        frame: Index of the volume, for 4D.
    """
    frames = headers[0].frames
    keys = [h.order for h in headers] if frames is None else [(*f.order, float(f.number)) for f in frames]
    order = sorted(range(len(along)), key=lambda i: (along[i], keys[i]))
    positions: list[list[int]] = []
    for i in order:
        if positions and along[i] - along[positions[-1][0]] < _SAME_POSITION_MM:
            positions[-1].append(i)
        else:
            positions.append([i])
    counts = sorted({len(group) for group in positions})
    if counts == [1]:
        return [group[0] for group in positions]
    if len(counts) > 1:
        raise DicomSeriesError(
            f"no two slices may lie at one position, but {sum(len(g) > 1 for g in positions)} of the "
            f"{len(positions)} positions hold up to {counts[-1]}, with different pixels",
            path=None,
            remedy="Keep one acquisition per folder, or export the series again",
        )
    differ = "" if frames is None else _what_differs([frames[i] for i in positions[0]])
    chosen = _frame(frame, counts[0], differ)
    return [sorted(group, key=lambda i: keys[i])[chosen] for group in positions]


def _what_differs(frames: Sequence[Frame]) -> str:
    """Return in words how the frames at one position differ, such as "echo time 2.3, 4.6"; or ""."""
    found = []
    for name, values in zip(VOLUME_KEYS, zip(*(f.order for f in frames), strict=True), strict=True):
        distinct = sorted(set(values))
        if len(distinct) > 1:
            more = ", ..." if len(distinct) > 6 else ""
            found.append(f"{name} {', '.join(f'{v:g}' for v in distinct[:6])}{more}")
    return f" ({'; '.join(found)})" if found else ""


def _frame(frame: int | None, count: int, differ: str) -> int:
    if frame is None:
        raise NoSuchFrame(
            f"the series is 4D: each position holds {count} slices{differ}",
            path=None,
            remedy=f"Choose one with frame = 0 to {count - 1} (manifest column `frame`, or "
            "the ingest setting)",
        )
    if frame >= count:
        raise NoSuchFrame(
            f"frame {frame} was asked for, but there are {count}{differ}",
            path=None,
            remedy=f"Choose frame = 0 to {count - 1}",
        )
    return frame


def _regular_gap(
    points: NDArray[np.float64], axes: NDArray[np.float64], rules: SeriesRules, tilt: float | None
) -> float:
    """Return the mean distance between neighbouring slices in mm.

    Raises:
        DicomSeriesError: Slices are missing, the gaps are uneven, or the slices are shifted sideways (gantry
            tilt).
    """
    steps = np.diff(points, axis=0)
    gaps = steps @ axes[:, 2]
    sideways = np.linalg.norm(steps - gaps[:, None] * axes[:, 2], axis=1)
    lean = float(np.degrees(np.arctan2(np.median(sideways), np.median(gaps))))
    typical = float(np.median(gaps))
    problems = []
    if lean > rules.tilt_tolerance_degrees:
        in_header = "" if tilt is None else f"; the header's gantry tilt is {tilt:g}"
        problems.append(
            f"slices must be stacked along their normal, these lean {lean:.1f} degrees from "
            f"it (gantry tilt{in_header})"
        )
    allowed = max(rules.slice_gap_tolerance * typical, _SAME_POSITION_MM)
    odd = np.flatnonzero(np.abs(gaps - typical) > allowed)
    if odd.size:
        problems.append(_describe_gaps(gaps, typical, odd, allowed))
    elif lean <= rules.tilt_tolerance_degrees and sideways.max() > 0.5 * typical:
        problems.append("slices must be stacked along their normal, some are shifted sideways")
    if problems:
        raise DicomSeriesError("; and ".join(problems), path=None, remedy=_REMEDY_EXPORT)
    return float(gaps.mean())


def _describe_gaps(gaps: NDArray[np.float64], typical: float, odd: NDArray[np.intp], allowed: float) -> str:
    """Return a message on the gaps: slices are missing, or the gaps are uneven."""
    multiples = gaps[odd] / typical
    whole = np.rint(multiples)
    if np.all((whole >= 2) & (np.abs(multiples - whole) * typical <= allowed * whole)):
        missing = int((whole - 1).sum())
        return (
            f"slices are missing: {missing} of {len(gaps) + 1 + missing}, first between "
            f"slices {odd[0] + 1} and "
            f"{odd[0] + 2} (gap {gaps[odd[0]]:.2f} mm where {typical:.2f} mm is usual)"
        )
    return f"slice gaps must be even, these run from {gaps.min():.2f} to {gaps.max():.2f} mm"
