"""Pictures of in-context segmentations: reference with mask, target with prediction and expected mask.

    one row per case, one block per plane:   reference + its mask | target + prediction (+ expected mask)

Reads:  images float (z, y, x), masks bool (z, y, x), spacing in mm.
Writes: RGB images (Pillow), or a PNG. Outlines of mask and prediction are orange, of the expected mask blue.
Bounds: each plane shows one slice only, the one with the largest area of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_GAP = 4
DRAWN_COLOR, EXPECTED_COLOR = (255, 150, 20), (86, 180, 233)
"""Orange and sky blue, which colour-blind people tell apart (after Okabe and Ito, 2008)."""
_PLANES = ("axial", "coronal", "sagittal")
EDGES = (("R", "L"), ("R", "L"), ("A", "P"))
"""Letters at the left and right edge of slices along z, y and x."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One in-context segmentation: the reference with its mask, the target with the prediction."""

    reference: NDArray[np.floating]
    """Image of the reference, (z, y, x)."""
    mask: NDArray[np.bool_]
    """Mask of the reference, (z, y, x)."""
    target: NDArray[np.floating]
    """Image of the target, (z, y, x)."""
    prediction: NDArray[np.bool_]
    """Predicted mask of the target, (z, y, x)."""
    expected: NDArray[np.bool_] | None = None
    """Expected mask of the target, (z, y, x), from its label; None if it is not known."""
    spacing_zyx_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxel size of both images, mm."""
    title: str = ""
    """Title above the row."""
    reference_name: str = "reference"
    """Name of the left panels."""
    own_dice: float | None = None
    """Dice measured on the target's own grid, to be shown; None shows the Dice of the masks here."""

    def __post_init__(self) -> None:
        for image, mask in ((self.reference, self.mask), (self.target, self.prediction)):
            if image.ndim != 3 or image.shape != mask.shape:
                raise ValueError(
                    f"image and mask must be (z, y, x) on one grid, got {image.shape}, {mask.shape}"
                )
        if self.expected is not None and self.expected.shape != self.target.shape:
            raise ValueError(f"expected must be {self.target.shape}, got {self.expected.shape}")

    @property
    def dice(self) -> float | None:
        """Dice of prediction and expected mask; None if the expected mask is unknown or empty."""
        if self.own_dice is not None:
            return self.own_dice
        if self.expected is None or not self.expected.any():
            return None
        both = int((self.expected & self.prediction).sum())
        return 2 * both / int(self.expected.sum() + self.prediction.sum())


def draw_cases(cases: Sequence[Case], *, height: int = 160) -> Image.Image:
    """Return a picture with one row per case.

    Args:
        cases: At least one.
        height: Height of a panel, pixels.
    """
    rows = [_draw_case(case, height) for case in cases]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, sum(row.height for row in rows)), "black")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def write_png(path: Path, cases: Sequence[Case], *, height: int = 160) -> None:
    """Write the picture of all cases (`draw_cases`) as a PNG; the folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_cases(cases, height=height).save(path)


def _draw_case(case: Case, height: int) -> Image.Image:
    panels: list[Image.Image] = []
    shown = case.prediction if case.expected is None or not case.expected.any() else case.expected
    for axis in range(3):
        panels.append(
            _panel(case.reference, [(case.mask, DRAWN_COLOR)], case.mask, axis, case.spacing_zyx_mm, height)
        )
        outlines = [(case.prediction, DRAWN_COLOR)]
        if case.expected is not None:
            outlines.insert(0, (case.expected, EXPECTED_COLOR))
        panels.append(_panel(case.target, outlines, shown, axis, case.spacing_zyx_mm, height))
    title = case.title + ("" if case.dice is None else f"  Dice {case.dice:.2f}")
    head = 14
    width = sum(panel.width + _GAP for panel in panels)
    row = Image.new("RGB", (width, height + head + _GAP), "black")
    draw = ImageDraw.Draw(row)
    draw.text((2, 1), title, fill="white")
    left = 0
    for number, panel in enumerate(panels):
        row.paste(panel, (left, head))
        name = "target" if number % 2 else f"{_PLANES[number // 2]} {case.reference_name}"
        draw.text((left + 3, head + 1), name, fill="white", stroke_width=1, stroke_fill="black")
        left += panel.width + _GAP
    return row


def _panel(
    image: NDArray[np.floating],
    outlines: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]],
    shown: NDArray[np.bool_],
    axis: int,
    spacing_zyx_mm: tuple[float, float, float],
    height: int,
) -> Image.Image:
    """Return one slice with outlines, resampled to square pixels (in mm), with letters at its edges.

    Args:
        image: (z, y, x).
        outlines: Masks (z, y, x) and their colours.
        shown: Mask (z, y, x) that the slice is chosen for, see `best_slice`.
        axis: Axis that the slice is perpendicular to.
        spacing_zyx_mm: Voxel size.
        height: Of the panel, pixels.
    """
    index = best_slice(shown, axis)
    rows, columns = (spacing for other, spacing in enumerate(spacing_zyx_mm) if other != axis)
    gray = turned(np.take(image, index, axis=axis))
    low, high = np.percentile(image, (1, 99))
    levels = np.clip((gray - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    size = (max(1, round(height * gray.shape[1] * columns / (gray.shape[0] * rows))), height)
    panel = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR).convert("RGB")).copy()
    for mask, colour in outlines:
        flat = turned(np.take(mask, index, axis=axis))
        panel[_edge(np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.NEAREST)))] = colour
    picture = Image.fromarray(panel)
    _write_edges(picture, axis)
    return picture


def best_slice(mask: NDArray[np.bool_], axis: int) -> int:
    """Return the index along an axis of the slice with the largest mask area; the middle if it is empty."""
    areas = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def turned(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a slice of a volume (z, y, x) in RAS, turned for display in the radiological convention.

    Rows run from the head (axial: from the front), columns from the patient's right (sagittal: from the
    front): the same as in the reports of `mass inspect`.
    """
    return np.ascontiguousarray(plane[::-1, ::-1])


def _write_edges(panel: Image.Image, axis: int) -> None:
    """Write the letters of the left and right edge into a panel."""
    pen = ImageDraw.Draw(panel)
    left, right = EDGES[axis]
    pen.text((3, panel.height // 2), left, fill="white", anchor="lm", stroke_width=1, stroke_fill="black")
    edge = (panel.width - 3, panel.height // 2)
    pen.text(edge, right, fill="white", anchor="rm", stroke_width=1, stroke_fill="black")


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask (y, x) that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
