"""Slices of a scan as pictures with masks over them: arrays in, RGB arrays or PNG bytes out.

The radiological convention is used: axial from the feet (the patient's right is on the left, front on top),
coronal from the front (right on the left, head on top), sagittal with the front on the left and the head on
top. Letters at the edges show the directions. Pixels are square in mm, whatever the spacing.

Reads: volumes (z, y, x) whose indices grow to S, A, R; spacing in mm. Writes: uint8 (height, width, 3).
Bounds: masks are drawn smoothly (linear interpolation, threshold 0.5), so an outline can be wrong by up to
        half
a voxel; parts of one voxel's width stay visible.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pipeline.quality import IntArray, ScanLike

Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
"""Planes, in the order of the array axis that each one cuts."""
Rgb: TypeAlias = NDArray[np.uint8]
"""uint8 (height, width, 3)."""
Color: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

EDGES: dict[Plane, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
"""Letters at the left, right, upper and lower edge of each plane."""

PALETTE: tuple[Color, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121,
    167), (235, 235, 235), (128, 62, 32), (150, 220, 90), (120, 94, 220), (255, 176, 160),
)  # fmt: skip
"""Colours of regions, in pictures and in the viewer. The first seven are those of Okabe and Ito (2008), which
colour-blind people can distinguish."""
LABEL_COLOR: Color = (255, 221, 51)
"""Outlines of expert labels."""
PROPOSAL_COLOR: Color = (64, 196, 255)
"""Fill of the proposal that is compared with a label."""
COMPARISON_COLORS: tuple[Color, Color, Color] = ((86, 180, 233), (230, 159, 0), (204, 121, 167))
"""Colours of voxels in both label and proposal, in the label only, in the proposal only: colours 3, 2 and 8
of Okabe and Ito (2008), which colour-blind people can distinguish."""

HEAT: NDArray[np.float32] = np.array(
    [
        (40, 30, 90),
        (70, 60, 150),
        (50, 110, 180),
        (40, 160, 160),
        (90, 195, 120),
        (190, 215, 80),
        (253, 231, 37),
    ],
    dtype=np.float32,
)
"""Colours of a count, low to high: dark blue, green, yellow; readable without colour vision."""

CT_WINDOW_HU = (-160.0, 240.0)
"""Soft-tissue window: level 40, width 400, usual for the trunk."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Conversion of real values to grey: low is black and high is white, or the reverse."""

    low: float
    """Real value at one end of the grey scale."""
    high: float
    inverted: bool = False
    """Whether low is white, as is usual for PET."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One mask on a slice."""

    mask: NDArray[np.bool_]
    """(height, width), turned for display as the slice is."""
    color: Color
    fill: float = 0.3
    """Opacity of the inside, 0 to 1."""
    outline: int = 1
    """Width of the outline in pixels; 0 draws none."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Size of a drawn slice, and the marks on it."""

    mm_per_pixel: float
    marks: bool = True
    """Letters at the edges, and a scale bar."""
    cross: tuple[float, float] | None = None
    """Position (row, column) in voxels of the turned slice that is marked with a cross."""


def in_hounsfield(scan: ScanLike) -> bool:
    """Whether real values are Hounsfield units: the scan is CT, and ingest has not found another unit."""
    intensity = scan.attributes.get("intensity")
    unit = intensity.get("unit", "HU") if isinstance(intensity, Mapping) else "HU"
    return scan.modality == "ct" and unit == "HU"


def display_window(scan: ScanLike) -> Window:
    """Return the display window of a scan: soft tissue for CT, robust extremes of the body for MR and PET."""
    if in_hounsfield(scan):
        return Window(low=CT_WINDOW_HU[0], high=CT_WINDOW_HU[1])
    sample = scan.image[::2, ::2, ::2].astype(np.float32) * scan.scale + scan.offset
    inside = sample[sample > np.percentile(sample, 20)]
    low, high = (float(v) for v in np.percentile(inside if inside.size else sample, (0.5, 99.7)))
    low = min(low, float(np.percentile(sample, 5)))
    return Window(low=low, high=max(high, low + 1e-6), inverted=scan.modality == "pet")


def cut(volume: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """Return one slice of a volume (z, y, x), turned for display.

    Returns:
        (height, width): rows from the top, columns from the left, as `EDGES` names them.
    """
    match plane:
        case "axial":
            return volume[index, ::-1, ::-1]
        case "coronal":
            return volume[::-1, index, ::-1]
        case "sagittal":
            return volume[::-1, ::-1, index]


def cut_region(shape: tuple[int, ...], plane: Plane, index: int) -> tuple[slice, slice, slice]:
    """Return the box of a slice, one voxel thick; read it, then call `cut(box, plane, 0)`."""
    region = [slice(0, n) for n in shape]
    region[PLANES.index(plane)] = slice(index, index + 1)
    return (region[0], region[1], region[2])


def place(point_zyx: tuple[int, int, int], shape: tuple[int, ...], plane: Plane) -> tuple[float, float]:
    """Return the position (row, column) of a voxel on the turned slice through it.

    Args:
        point_zyx: The voxel.
        shape: Shape (z, y, x) of the volume.
        plane: Plane of the slice.
    """
    axis = PLANES.index(plane)
    row, column = (shape[a] - 1 - point_zyx[a] for a in range(3) if a != axis)
    return float(row), float(column)


def locate(
    row: float, column: float, point_zyx: tuple[int, int, int], shape: tuple[int, ...], plane: Plane
) -> tuple[int, int, int]:
    """Return the voxel (z, y, x) at a position on the turned slice through a point; the inverse of `place`.

    Positions outside the scan are moved to its edge.

    Args:
        row: Row on the turned slice.
        column: Column on the turned slice.
        point_zyx: A voxel of the slice.
        shape: Shape (z, y, x) of the volume.
        plane: Plane of the slice.
    """
    axis = PLANES.index(plane)
    found = list(point_zyx)
    for a, turned in zip((a for a in range(3) if a != axis), (row, column), strict=True):
        found[a] = min(max(shape[a] - 1 - round(turned), 0), shape[a] - 1)
    return (found[0], found[1], found[2])


def voxel_mm(spacing_zyx_mm: tuple[float, float, float], plane: Plane) -> tuple[float, float]:
    """Return height and width of a voxel on a plane, in mm."""
    axis = PLANES.index(plane)
    height, width = (spacing_zyx_mm[a] for a in range(3) if a != axis)
    return height, width


def gray(codes: IntArray, scan: ScanLike, window: Window) -> NDArray[np.uint8]:
    """Return codes of a slice as grey levels, uint8 of the same shape."""
    real = codes.astype(np.float32) * scan.scale + scan.offset
    level = np.clip((real - window.low) / (window.high - window.low), 0, 1)
    return np.asarray(np.rint(255 * (1 - level if window.inverted else level)), dtype=np.uint8)


def draw_slice(
    picture: NDArray[np.uint8],
    plane: Plane,
    voxel: tuple[float, float],
    *,
    frame: Frame,
    overlays: Sequence[Overlay] = (),
) -> Rgb:
    """Return a slice with overlays, at the frame's size.

    Args:
        picture: uint8 (height, width) grey or (height, width, 3) colours, turned for display.
        plane: Decides the letters at the edges.
        voxel: Height and width of a voxel in mm.
        frame: Size and marks.
        overlays: All fills are drawn first, then all outlines, so that no outline is hidden.
    """
    rows, columns = picture.shape[:2]
    height = max(1, round(rows * voxel[0] / frame.mm_per_pixel))
    width = max(1, round(columns * voxel[1] / frame.mm_per_pixel))
    enlarged = Image.fromarray(picture).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.asarray(enlarged).astype(np.float32)
    masks = [_enlarge(overlay.mask, width, height) for overlay in overlays]
    for overlay, mask in zip(overlays, masks, strict=True):
        if overlay.fill:
            canvas[mask] += overlay.fill * (np.array(overlay.color, np.float32) - canvas[mask])
    for overlay, mask in zip(overlays, masks, strict=True):
        if overlay.outline:
            canvas[_rim(mask, overlay.outline)] = overlay.color
    drawn = Image.fromarray(np.rint(canvas).astype(np.uint8))
    if frame.cross is not None:
        _draw_cross(drawn, (frame.cross[0] + 0.5) / rows * height, (frame.cross[1] + 0.5) / columns * width)
    if frame.marks:
        _draw_marks(drawn, plane, frame.mm_per_pixel)
    return np.asarray(drawn)


def draw_borders(
    picture: Rgb, ids: IntArray, *, color: Color = (120, 200, 255), opacity: float = 0.75
) -> Rgb:
    """Return a picture of a slice with lines between neighbouring regions.

    Args:
        picture: (height, width, 3), the enlarged slice.
        ids: (rows, columns) region of each voxel of the slice.
        color: Colour of the lines.
        opacity: Opacity of the lines, 0 to 1.
    """
    height, width = picture.shape[:2]
    rows = np.arange(height) * ids.shape[0] // height
    columns = np.arange(width) * ids.shape[1] // width
    large = ids[np.ix_(rows, columns)]
    border = np.zeros((height, width), dtype=np.bool_)
    border[:-1] |= large[:-1] != large[1:]
    border[:, :-1] |= large[:, :-1] != large[:, 1:]
    mixed = picture.astype(np.float32)
    mixed[border] += opacity * (np.array(color, np.float32) - mixed[border])
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def _enlarge(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """Return a mask at the picture's size, with smooth edges."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture) >= 128


def _rim(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the inner edge of a mask, `width` pixels wide; the picture's border is not an edge."""
    inside = ndimage.binary_erosion(mask, iterations=width, border_value=1)
    return np.asarray(mask & ~inside, dtype=np.bool_)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, so that pictures are equal everywhere."""
    return ImageFont.load_default(size=size)


def write(
    picture: Image.Image, place: tuple[float, float], text: str, *, anchor: str = "la", size: int = 12,
    color: Color = (255, 255, 255), halo: Color | None = (0, 0, 0),
) -> None:  # fmt: skip
    """Write a line of text on a picture; the dark halo makes it readable on any grey."""
    ImageDraw.Draw(picture).text(
        place, text, font=_font(size), fill=color, anchor=anchor,
        stroke_width=0 if halo is None else 1, stroke_fill=halo,
    )  # fmt: skip


def _draw_marks(picture: Image.Image, plane: Plane, mm_per_pixel: float) -> None:
    """Draw letters at the edges, and a scale bar of a round length at the lower right."""
    width, height = picture.size
    if min(width, height) < 60:
        return
    left, right, top, bottom = EDGES[plane]
    size = 11 if min(width, height) < 200 else 13
    write(picture, (4, height / 2), left, anchor="lm", size=size)
    write(picture, (width - 4, height / 2), right, anchor="rm", size=size)
    write(picture, (width / 2, 3), top, anchor="ma", size=size)
    write(picture, (width / 2, height - 3), bottom, anchor="md", size=size)
    bar_mm = max((mm for mm in (5, 10, 20, 50, 100, 200) if mm / mm_per_pixel <= 0.3 * width), default=5)
    length = bar_mm / mm_per_pixel
    pen = ImageDraw.Draw(picture)
    y = height - 7
    pen.line((width - 7 - length, y, width - 7, y), fill=(0, 0, 0), width=4)
    pen.line((width - 6 - length, y, width - 8, y), fill=(255, 255, 255), width=2)
    name = f"{bar_mm // 10} cm" if bar_mm >= 10 else f"{bar_mm} mm"
    write(picture, (width - 7 - length / 2, y - 4), name, anchor="md", size=size - 1)


def _draw_cross(picture: Image.Image, row: float, column: float) -> None:
    """Draw a cross with an open centre."""
    pen = ImageDraw.Draw(picture)
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            pen.line(
                (column + 4 * dx, row + 4 * dy, column + 12 * dx, row + 12 * dy), fill=color, width=width
            )


def beside(pictures: Sequence[Rgb], *, gap: int = 6, background: Color = (0, 0, 0), columns: int = 0) -> Rgb:
    """Return pictures in a row, or in rows of `columns`, each centred in its cell."""
    columns = columns or len(pictures)
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [
        max(row[c].shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(pictures)))
    ]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    size = (sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1), 3)
    sheet = np.broadcast_to(np.array(background, np.uint8), size).copy()
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture, width in zip(row, widths, strict=False):
            y, x = top + (height - picture.shape[0]) // 2, left + (width - picture.shape[1]) // 2
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            left += width + gap
        top += height + gap
    return sheet


def arrange_planes(planes: Sequence[Rgb], *, gap: int = 6) -> Rgb:
    """Return three planes in a row, or axial next to coronal over sagittal, whichever is smaller."""
    row = beside(planes, gap=gap)
    stack = beside([planes[0], beside(planes[1:], gap=gap, columns=1)], gap=gap)
    return stack if stack.size < row.size else row


def captioned(picture: Rgb, text: str, *, size: int = 12, background: Color = (0, 0, 0)) -> Rgb:
    """Return a picture with lines of text above it."""
    lines = text.split("\n")
    step = round(1.4 * size)
    strip = step * len(lines) + 4
    wide = max(picture.shape[1], *(int(np.ceil(_font(size).getlength(line))) + 4 for line in lines))
    sheet = Image.new("RGB", (wide, picture.shape[0] + strip), background)
    sheet.paste(Image.fromarray(picture), (0, strip))
    for number, line in enumerate(lines):
        write(sheet, (2, 2 + step * number), line, size=size, color=(235, 235, 235), halo=None)
    return np.asarray(sheet)


def to_png(picture: Rgb, *, colors: int | None = None) -> bytes:
    """Return PNG bytes; with `colors` (at most 256) as a palette, at about a third of the size."""
    image = Image.fromarray(picture)
    if colors is not None:
        image = image.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return target.getvalue()


def volume_text(volume_ml: float) -> str:
    """Return a volume as text: "1.20 L", "34.5 mL"."""
    return f"{volume_ml / 1000:.2f} L" if volume_ml >= 1000 else f"{volume_ml:.3g} mL"
